package ui

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// shownFree are the locks that were let go last; of the others there is a count.
const shownFree = 20

// freeRow is a lock of aimlock's own that nobody holds, and what its last holder
// left on record.
type freeRow struct {
	Name   string `json:"name"`
	Holder string `json:"holder"`
	// Ended is how the last hold did.
	Ended string `json:"ended"`
	// At is by the clock of who wrote it; null: nobody did.
	At *time.Time `json:"at"`
	// index is Consul's, of the last write: by it locks stand in their order.
	index uint64
}

// How a hold ended.
const (
	endedBroken  = "broken"
	endedLetGo   = "let go"
	endedUnasked = "its session ended"
)

// freeChange is what is shown of the free locks.
type freeChange struct {
	Set []freeRow `json:"set"`
	// More are free, and were let go before those.
	More int `json:"more"`
}

// freeOf is nil for a lock that is of another tool, or was never held.
func freeOf(v *locksmith.Verdict) *freeRow {
	s := v.Snapshot
	if !s.Own || s.Pair == nil || s.Holder == nil {
		return nil
	}
	h := s.Holder
	r := &freeRow{Name: s.Name, Holder: lastHolder(h), Ended: endedUnasked, At: h.ReleasedAt, index: s.Pair.ModifyIndex}
	switch {
	case h.Broken != "":
		r.Ended = endedBroken
	case h.Released:
		r.Ended = endedLetGo
	}
	return r
}

// lastHolder names a holder in a cell of a table.
func lastHolder(h *records.Holder) string {
	words := []string{cmp.Or(h.Operation, "aimlock")}
	if h.User != "" {
		words = append(words, h.User+"@"+h.Host)
	} else if h.Host != "" {
		words = append(words, "on "+h.Host)
	}
	return text.Clip(text.Printable(strings.Join(words, ", ")), 200)
}

// letGo notes that nobody holds a lock, or forgets one that somebody does, and tells
// whether that is new. The caller has the mutex.
func (b *board) letGo(key string, row *freeRow) bool {
	old := b.free[key]
	switch {
	case row == nil && old == nil, row != nil && old != nil && row.index == old.index:
		return false
	case row == nil:
		delete(b.free, key)
	default:
		b.free[key] = row
	}
	b.lastFree = nil
	return true
}

// freeLocks are the locks that were let go last, the last one first; ok is false
// before the first reading.
func (b *board) freeLocks() (freeChange, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.ready {
		return freeChange{}, false
	}
	if b.lastFree == nil {
		out := &freeChange{Set: []freeRow{}}
		rows := slices.SortedFunc(maps.Values(b.free), func(x, y *freeRow) int {
			return cmp.Or(cmp.Compare(y.index, x.index), cmp.Compare(x.Name, y.Name))
		})
		out.More = max(0, len(rows)-shownFree)
		for _, r := range rows[:min(len(rows), shownFree)] {
			out.Set = append(out.Set, *r)
		}
		b.lastFree = out
	}
	return *b.lastFree, true
}

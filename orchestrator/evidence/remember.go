package evidence

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// What an observer saw is of use to others as far as it can be carried over
// without their clocks being compared. One thing can: what had stood still for
// an age when it was written down, and still stands at the same index when it is
// read, has stood for at least that age. The time between writing and reading
// comes on top of it and is not known, so the age is never known whole, and what
// has no index that would show a change (who leads Consul) cannot be carried
// over at all.

// maxAge bounds an age out of a record.
const maxAge = 10 * 365 * 24 * time.Hour

// Remember is what m saw stand still, as of now, in the form in which others
// take it: see [Scribe].
func (m *Memory) Remember(now time.Time) []records.Remembered {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []records.Remembered
	sorted := slices.SortedFunc(slices.Values(m.since), func(a, b seen) int { return strings.Compare(a.what, b.what) })
	for _, s := range sorted {
		if s.what == "hold" && !m.heldLast() {
			return nil
		}
		// Whole seconds, downwards: never more than what was seen.
		if age := math.Floor(now.Sub(s.at).Seconds()); age > 0 {
			out = append(out, records.Remembered{What: s.what, Version: s.mark, Age: age, Whole: s.changed})
		}
	}
	return out
}

// takeMemory takes in what another observer remembers of the lock of s, as far
// as it is about what still stands.
func (r *Reader) takeMemory(s *Snapshot, p *api.KVPair) {
	var o records.Observed
	if records.Decode(p.Key, p.Value, &o) != nil || o.Kind != records.ObservedMemory || o.Lock != s.Name {
		return
	}
	for _, rem := range o.Remembers {
		if rem.Age > 0 && rem.Age <= maxAge.Seconds() {
			s.Remembered = append(s.Remembered, Remembered{rem, keys.LastSegment(p.Key)})
		}
	}
}

// Remembered is what one observer wrote of one thing.
type Remembered struct {
	records.Remembered
	Observer string
}

// markOf names the state of a thing in a snapshot as Memory.Observe does; "" if
// it is not in it.
func (r *Reader) markOf(s *Snapshot, what string) string {
	switch {
	case what == "hold":
		return s.Hold()
	case what == "progress":
		return version(s.Deps[r.Keys.Progress(s.Name)])
	case what == "rollout" && s.Holder != nil:
		return version(s.Deps[r.Keys.Rollout(s.Holder.RolloutID)])
	}
	if id, c := s.checkOf(); c != nil && what == "check "+id {
		return checkMark(c)
	}
	return ""
}

// stood is for how long a thing has stood as it does in s: what mem saw itself
// or, if that is more, what another observer wrote of this very state. whole is
// only true of what mem saw begin.
func (r *Reader) stood(s *Snapshot, mem *Memory, what string, now time.Time) (d time.Duration, whole bool, source string) {
	d, whole, _ = mem.standing(what, now)
	source = srcMemory
	if whole {
		return d, whole, source
	}
	mark := r.markOf(s, what)
	for _, rem := range s.Remembered {
		if rem.What != what || rem.Version != mark || mark == "" {
			continue
		}
		// It stood when s was read, which was after it was written down.
		if age := time.Duration(rem.Age*float64(time.Second)) + max(0, now.Sub(s.ReadAt)); age > d {
			d, source = age, "observer "+shown(rem.Observer)
		}
	}
	return d, whole, source
}

// How a Scribe spares Consul.
const (
	// scribeFrom is the least age that is worth writing down.
	scribeFrom = 15 * time.Second
	// scribeLeast is the least time between two writes of WriteAll.
	scribeLeast = 5 * time.Millisecond
)

// Scribe writes down what one long-lived observer remembers, at
// observed/<lock>/<observer>, for commands that have no memory. A thing that
// stands still is written when it has stood for 15 s, and again whenever its age
// has doubled: what others know is then never less than half of the truth, and a
// lock that is held for a day costs some dozen writes. It is safe for concurrent
// use.
type Scribe struct {
	consul   *consulkv.Client
	keys     keys.Prefix
	observer string

	mu      sync.Mutex
	written map[string]map[string]records.Remembered // by lock, by what
}

// NewScribe makes a scribe for an observer, such as "locksmith@host". Its name
// must be one path segment, not that of a Consul node (that key is the host's
// agent's), and no other process's.
func NewScribe(c *consulkv.Client, p keys.Prefix, observer string) (*Scribe, error) {
	if err := keys.CheckName("observer", observer); err != nil {
		return nil, err
	}
	return &Scribe{consul: c, keys: p, observer: observer, written: map[string]map[string]records.Remembered{}}, nil
}

// Note writes what m remembers of the lock that s shows, if that is due, and
// takes the record away once nobody holds the lock. It reports whether it wrote.
// Call it at every look, or where Due says so: it mostly does nothing. What failed
// is due again at the next call.
func (c *Scribe) Note(ctx context.Context, s *Snapshot, m *Memory, now time.Time) (bool, error) {
	rem := remembers(s, m, now)
	if !c.due(s.Name, rem) {
		return false, nil
	}
	key := c.keys.Observed(s.Name, c.observer)
	op := consulkv.Delete(key)
	ops := []consulkv.Op{op}
	if len(rem) > 0 {
		ops = []consulkv.Op{
			// Never about a hold that is over.
			consulkv.CheckIndex(s.Key, s.Index()),
			consulkv.Set(key, records.Encode(&records.Observed{
				Version: records.Version, Kind: records.ObservedMemory, Observer: c.observer, Lock: s.Name, Session: s.SessionID(), Token: s.Index(),
				At: now.UTC(), Remembers: rem,
			})),
		}
	}
	_, err := consulkv.Retry(ctx, c.consul, "write "+key, func(ctx context.Context) (consulkv.Results, error) { return c.consul.Txn(ctx, ops...) })
	if _, refused := errors.AsType[*consulkv.Refused](err); refused {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(rem) == 0 {
		delete(c.written, s.Name)
		return true, nil
	}
	c.written[s.Name] = map[string]records.Remembered{}
	for _, x := range rem {
		c.written[s.Name][x.What] = x
	}
	return true, nil
}

func remembers(s *Snapshot, m *Memory, now time.Time) []records.Remembered {
	if !s.Held() {
		return nil
	}
	return m.Remember(now)
}

// Due reports whether Note would write. It asks nobody.
func (c *Scribe) Due(s *Snapshot, m *Memory, now time.Time) bool {
	return c.due(s.Name, remembers(s, m, now))
}

func (c *Scribe) due(lock string, rem []records.Remembered) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	written := c.written[lock]
	for _, x := range rem {
		old, ok := written[x.What]
		if x.Age >= scribeFrom.Seconds() && (!ok || old.Version != x.Version || x.Age >= 2*old.Age) {
			return true
		}
	}
	return written != nil && len(rem) == 0
}

// Note is what Scribe.WriteAll is given of one lock.
type Note struct {
	Snapshot *Snapshot
	Memory   *Memory
}

// WriteAll notes several locks, with a short pause after each, until one fails or ctx ends.
func (c *Scribe) WriteAll(ctx context.Context, notes []Note) error {
	for _, n := range notes {
		if wrote, err := c.Note(ctx, n.Snapshot, n.Memory, time.Now()); err != nil {
			return err
		} else if wrote && !pause(ctx, scribeLeast) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// delayLeft says between which bounds the lock-delay that is left of a free
// lock lies; ok is false where no end of a hold was seen.
func (m *Memory) delayLeft(now time.Time) (low, high time.Duration, ok bool) {
	if m == nil {
		return 0, 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.ended
	if e.by.IsZero() || e.delay < 0 {
		return 0, 0, false
	}
	return max(0, e.delay-now.Sub(e.after)), max(0, e.delay-now.Sub(e.by)), true
}

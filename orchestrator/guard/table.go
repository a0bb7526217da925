package guard

import (
	"container/heap"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// lock is what is remembered of one lock. The facts of a verdict are not: with
// 10,000 locks they would be most of the memory.
type lock struct {
	key  string
	snap *evidence.Snapshot
	obs  *locksmith.Observer

	state, policy, rule, reason string
	// since is when state began, as seen here.
	since time.Time
	// doubt is when it is told that the lock is UNKNOWN; zero: it is told, or the lock
	// is not. shown is the state before that.
	doubt time.Time
	shown string
	// cool is until when a lock that nobody holds is COOLING; see cools.
	cool time.Time

	// due is when it is to be judged again though nothing changed; zero: never.
	due time.Time
	// place is its index in the table's heap; -1: it is not in it.
	place int

	// acting: a break uses obs. What comes meanwhile is judged when it is done.
	acting bool
	// askAt is before when no break is tried again, and tries how often it
	// came to nothing on this hold.
	askAt time.Time
	tries int
	// ended is a hold that is known to have ended, though snap may still show
	// it: nothing is judged by that.
	ended string
	// settling: a HOT lock is read again before anybody is told, see settle.
	settling bool
	settled  locksmith.Settled
	// told is the refusal that was told last, so that it is told once.
	told string
	// procs are the holder's processes, where they are of this host.
	procs []records.Process
}

// cools makes COOLING of the FREE of a lock whose holder was seen to go without
// letting go of it: Consul ended its session, and keeps the lock for as long as the
// holder's record asked. Consul tells that to no read, and to ask for each lock by a
// write is not worth it here; of another tool's lock nothing tells whether it was let go.
func (l *lock) cools(v *locksmith.Verdict) {
	switch h := v.Snapshot.Holder; {
	case v.State != locksmith.Free, h == nil, h.Released:
		l.cool = time.Time{}
	case l.state != "" && l.state != locksmith.Free && l.state != locksmith.Cooling:
		delay := time.Duration(h.Quiesce * float64(time.Second))
		l.cool = v.Snapshot.ReadAt.Add(min(max(0, delay), locksmith.MaxQuiesce))
	}
	if v.At.Before(l.cool) {
		v.State = locksmith.Cooling
	}
}

// table holds the locks by key, and those that are due at some time in a heap.
// It belongs to the loop.
type table struct {
	locks map[string]*lock
	heap  dueHeap
}

func newTable() *table { return &table{locks: map[string]*lock{}} }

// schedule sets when l is due; the zero time: never.
func (t *table) schedule(l *lock, due time.Time) {
	l.due = due
	switch {
	case due.IsZero() && l.place >= 0:
		heap.Remove(&t.heap, l.place)
	case due.IsZero():
	case l.place >= 0:
		heap.Fix(&t.heap, l.place)
	default:
		heap.Push(&t.heap, l)
	}
}

// drop forgets a lock.
func (t *table) drop(l *lock) {
	t.schedule(l, time.Time{})
	delete(t.locks, l.key)
}

// next is when the first lock is due; ok is false if none is.
func (t *table) next() (time.Time, bool) {
	if len(t.heap) == 0 {
		return time.Time{}, false
	}
	return t.heap[0].due, true
}

// due takes the locks that are due out of the heap, at most n.
func (t *table) due(now time.Time, n int) []*lock {
	var out []*lock
	for len(t.heap) > 0 && len(out) < n && !t.heap[0].due.After(now) {
		l := heap.Pop(&t.heap).(*lock)
		l.due = time.Time{}
		out = append(out, l)
	}
	return out
}

// dueHeap has the lock that is due first at its top.
type dueHeap []*lock

var _ heap.Interface = (*dueHeap)(nil)

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push is for package heap.
func (h *dueHeap) Push(x any) {
	l := x.(*lock)
	l.place = len(*h)
	*h = append(*h, l)
}

// Pop is for package heap.
func (h *dueHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.place = -1
	return l
}

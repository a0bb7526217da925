package sim

import (
	"cmp"
	"container/heap"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"time"
)

// effect is something that one part wants to do to the world, or the world to it:
// a request, the delivery of an answer, a step on a disk, a turn after a timer. It
// waits until the scheduler lets it happen.
type effect struct {
	// what names it, the same in every run of a seed; n tells those of one name
	// apart.
	what string
	n    int
	// of is the effect that this one came of; it has that one's number.
	of *effect
	// inc is whose it is: while that part is stopped, it waits. nil: the world's.
	inc *incarnation
	// extra is how long it takes beside the time that chance gives it.
	extra time.Duration
	at    time.Time
	do    func()
	// gone reports that nobody waits for it any more; nil: it happens anyway.
	gone func() bool
	// void reports that it was given up in the same moment: whether it was begun at
	// all was a matter of which goroutine ran first.
	void func() bool
	// leaves: it is a request, which leaves the machine and is not stopped with it.
	leaves bool
}

// scheduler lets one effect happen at a time, in an order that the seed decides:
// each effect takes a time that is drawn by its name, so that leaving a fault out
// leaves what comes before it as it was.
type scheduler struct {
	seed uint64
	wake chan struct{}

	mu      sync.Mutex
	arrived []*effect

	// The rest belongs to the world's goroutine.

	queue queue
	seen  map[string]int
}

// freeRequests lets go what a process has sent before it was stopped.
func (s *scheduler) freeRequests(a *actor) {
	for _, e := range s.queue {
		if e.leaves && e.inc != nil && e.inc.actor == a {
			e.inc = nil
		}
	}
}

func newScheduler(seed uint64) *scheduler {
	return &scheduler{seed: seed, wake: make(chan struct{}, 1), seen: map[string]int{}}
}

// park hands an effect over.
func (s *scheduler) park(e *effect) {
	s.mu.Lock()
	s.arrived = append(s.arrived, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// collect puts what has arrived into the queue. All else stands still meanwhile.
func (s *scheduler) collect(now time.Time) {
	s.mu.Lock()
	list := s.arrived
	s.arrived = nil
	s.mu.Unlock()
	// In which order the goroutines came here is the machine's scheduler's doing.
	for _, e := range list {
		if e.of != nil {
			e.n = e.of.n
		}
	}
	slices.SortStableFunc(list, func(a, b *effect) int { return cmp.Or(cmp.Compare(a.what, b.what), cmp.Compare(a.n, b.n)) })
	for _, e := range list {
		if e.void != nil && e.void() {
			continue
		}
		if e.of == nil {
			e.n = s.seen[e.what]
			s.seen[e.what]++
		}
		e.at = now.Add(e.extra + s.latency(e))
		heap.Push(&s.queue, e)
	}
}

// Latencies: most of what is sent arrives within milliseconds, some of it much
// later, so that any two things that are under way at once may come in any order.
const (
	usual    = 4 * time.Millisecond
	slow     = 120 * time.Millisecond
	slowOne  = 20 // of so many
	slowest  = 900 * time.Millisecond
	slowestN = 400
)

func (s *scheduler) latency(e *effect) time.Duration {
	r := draw(s.seed, e.what, uint64(e.n))
	most := usual
	switch {
	case r%slowestN == 1:
		most = slowest
	case r%slowOne == 0:
		most = slow
	}
	return 50*time.Microsecond + time.Duration((r>>16)%uint64(most))
}

// draw is a number that depends on the seed, a name and which of that name it is,
// and on nothing else.
func draw(seed uint64, what string, n uint64) uint64 {
	h := fnv.New64a()
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(seed>>(8*i)), byte(n>>(8*i))
	}
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(what))
	return mix(h.Sum64())
}

// mix is the finalizer of splitmix64: FNV alone leaves the high bits of similar
// names alike.
func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// shortHash names a request's body in the history.
func shortHash(b []byte) string {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return strconv.FormatUint(h.Sum64()&0xffffff, 16)
}

// queue is a heap by time, then by name.
type queue []*effect

var _ heap.Interface = (*queue)(nil)

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	a, b := q[i], q[j]
	if c := a.at.Compare(b.at); c != 0 {
		return c < 0
	}
	if c := cmp.Compare(a.what, b.what); c != 0 {
		return c < 0
	}
	return a.n < b.n
}

func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*effect)) }

func (q *queue) Pop() any {
	n := len(*q) - 1
	e := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	return e
}

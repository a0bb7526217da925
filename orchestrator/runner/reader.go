package runner

import (
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

const (
	// answersEvery is the least interval between two reads of answers, and
	// answersAtMost how far it grows.
	answersEvery  = 100 * time.Millisecond
	answersAtMost = 5 * time.Second
	// fewFlying nodes are read at each wake-up: that costs next to nothing.
	fewFlying = 64
	// answersPer is for how long a node that got its order is left alone at
	// least, times the nodes that got theirs with it: no Consul takes many more
	// than 20,000 answers in a second.
	answersPer = 50 * time.Microsecond
	// lateEvery is how often nodes are read that were given up.
	lateEvery = 5 * time.Second
)

// reader decides when the answers of which nodes are read. A wake-up says that
// some node has written something and not which, so each read is of all nodes
// in flight. For the whole to be O(N) bytes, reads must not come much faster
// than answers: after one that finds few new answers the interval doubles,
// after one that finds many it is halved. So a node is read some ten times at
// most, and the window stands idle for a tenth of a node's time. Where nobody
// waits for a place in the window, the next read is due when half of the rest
// will have answered, at the pace of the last interval: then all reads together
// are of two times the fleet.
//
// It is used by one goroutine.
type reader struct {
	interval time.Duration
	last     time.Time // end of the last read
	pending  bool      // something changed since
	late     time.Time // last read of the late ones
	buf      []int
}

// changed notes that something has been written, and returns when to read it.
func (r *reader) changed() time.Time {
	r.pending = true
	return r.due()
}

// due is when to read next; zero: not before something changes.
func (r *reader) due() time.Time {
	if !r.pending {
		return time.Time{}
	}
	return r.last.Add(max(r.interval, answersEvery))
}

// choose returns the nodes to read, valid until the next call.
func (r *reader) choose(s *orchestrator.State) []int {
	r.pending = false
	r.buf = s.AppendFlying(r.buf[:0])
	if time.Since(r.late) >= lateEvery {
		r.late = time.Now()
		r.buf = s.AppendLate(r.buf)
	}
	return r.buf
}

// gave notes that nodes got their orders just now.
func (r *reader) gave(nodes int) {
	if wait := time.Duration(nodes) * answersPer; wait > answersEvery {
		r.last, r.interval = time.Now(), min(wait, answersAtMost)
	}
}

// read takes how many nodes were read, how many of them had answered, and
// whether others wait for their places.
func (r *reader) read(nodes, answered int, backlog bool) {
	took := answersEvery
	if !r.last.IsZero() {
		took = time.Since(r.last)
	}
	r.last = time.Now()
	switch {
	case !backlog && answered > 0 && nodes-answered > fewFlying:
		half := float64(nodes-answered) / 2 / float64(answered) * float64(took)
		r.interval = min(answersAtMost, max(answersEvery, time.Duration(half)))
	case nodes-answered <= fewFlying:
		r.interval = answersEvery
	case answered*3 > nodes:
		r.interval = max(answersEvery, r.interval/2)
	case answered*10 < nodes:
		r.interval = min(answersAtMost, max(answersEvery, r.interval)*2)
	}
}

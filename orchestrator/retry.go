package orchestrator

import (
	"fmt"
	"slices"
	"time"
)

// A node that fails and has attempts left waits, longer each time, and is
// given its order again. While it waits it is pending and not in flight. It
// enters the failure budget once: when its last attempt has failed, or when it
// has gone away before it. Until then
// it is in doubt, and nodes in doubt count against the budget before any new
// node is given its order (see holding).
//
// What a node was given is known from the order itself, which carries the
// number of its attempt. The wait begins anew with every hold, so that no
// remote clock and no crash shortens it.

// again reports whether the node's order is one of a further attempt.
func (n *node) again() bool { return n.tries > 1 && !n.restore }

// doubts adds to the number of nodes in doubt.
func (s *State) doubts(i, n int) {
	s.doubt += n
	if st := s.plan.StageOf(i); st >= 0 {
		s.perStage[st].doubt += n
	}
}

// mayRetry reports whether a node that failed is given its order again. Who
// refused it has accepted a newer one and would refuse the next as well.
func (s *State) mayRetry(n *node, r Result) bool {
	if s.plan.Spec.Retry == nil || r != ResultFailed || int(n.tries) >= s.plan.Spec.Retry.Attempts {
		return false
	}
	switch s.status {
	case Waiting, Running, Baking, Paused:
		return true
	}
	return false
}

// await lets a node that failed wait for its next attempt.
func (s *State) await(i int, why string) {
	n := &s.nodes[i]
	r := s.plan.Spec.Retry
	wait := r.Wait(int(n.tries))
	n.waiting = true
	s.nWaiting++
	s.doubts(i, 1)
	s.setClass(i, ClassPending)
	if s.whys == nil {
		s.whys = map[int]string{}
	}
	s.whys[i] = why
	s.enqueue(i, wait)
	s.tell(TellNode, i, "attempt %d of %d failed: %s; the next one in %s", n.tries, r.Attempts, why, wait)
}

func (s *State) enqueue(i int, wait time.Duration) {
	if s.waits == nil {
		s.waits = make([][]at, s.plan.Spec.Retry.Attempts)
	}
	k := int(s.nodes[i].tries) - 1
	s.waits[k] = append(s.waits[k], at{i, s.now.Add(wait).UnixNano()})
}

// awaitAnew lets all waiting nodes wait from now on.
func (s *State) awaitAnew() {
	if s.nWaiting == 0 {
		return
	}
	s.waits = nil
	for i := range s.nodes {
		if n := &s.nodes[i]; n.waiting {
			s.enqueue(i, s.plan.Spec.Retry.Wait(int(n.tries)))
		}
	}
}

// unwait ends a node's wait.
func (s *State) unwait(i int) {
	s.nodes[i].waiting = false
	s.nWaiting--
	s.doubts(i, -1)
	delete(s.whys, i)
}

// giveAgain gives those nodes their order again whose wait is over, at most
// room, and returns how many.
func (s *State) giveAgain(room int) (given int) {
	if s.nWaiting == 0 {
		return 0
	}
	for k := range s.waits {
		var batch []int
		for q := s.waits[k]; given < room && len(q) > 0 && q[0].when <= s.now.UnixNano(); q = s.waits[k] {
			i, why := q[0].node, s.whys[q[0].node]
			s.waits[k] = q[1:]
			s.unwait(i)
			if s.gone(i) {
				// What made it fail may be what took it away: it is not left out
				// of the budget as merely unreachable.
				s.failed(i, why+"; then its agent went down")
				continue
			}
			batch = append(batch, i)
			given++
		}
		if len(batch) == 0 {
			continue
		}
		for _, i := range batch {
			n := &s.nodes[i]
			n.order, n.got = s.hold.next(), 0
			n.tries++
			s.launch(i)
		}
		s.order(Assign{Order: s.hold.next(), Nodes: batch, Attempt: k + 2})
	}
	return given
}

// giveUp ends all waits: there will be no next attempt.
func (s *State) giveUp() {
	if s.nWaiting == 0 {
		return
	}
	for i := range s.nodes {
		if s.nodes[i].waiting {
			why := s.whys[i]
			s.unwait(i)
			s.failed(i, why)
		}
	}
	s.waits = nil
}

// failed ends a node's turn for good.
func (s *State) failed(i int, why string) {
	s.budget.Failed++
	s.setClass(i, ClassFailed)
	if n := s.nodes[i].tries; n > 1 {
		why = fmt.Sprintf("%d attempts; the last: %s", n, why)
	}
	s.problem(i, why)
}

// nextRetry is when the next wait is over, in Unix nanoseconds; 0: never by
// itself. One that is over already waits for room, which an answer makes.
func (s *State) nextRetry() (when int64) {
	if s.nWaiting == 0 || !s.open || s.status != Running && s.status != Baking {
		return 0
	}
	for _, q := range s.waits {
		i := slices.IndexFunc(q, func(a at) bool { return a.when > s.now.UnixNano() })
		if i >= 0 && (when == 0 || q[i].when < when) {
			when = q[i].when
		}
	}
	return when
}

// rolledBack ends a rollback, and names who did not go back.
func (s *State) rolledBack() {
	s.undone()
	var away []int
	for i := range s.nodes {
		if n := &s.nodes[i]; n.restore && n.class == ClassUnreachable {
			away = append(away, i)
		}
	}
	late := ""
	if len(away) > 0 {
		late = fmt.Sprintf("; not reached, and going back when they return: %s", s.few(away))
	}
	if s.restoreFailed == 0 {
		s.setStatus(RolledBack, s.reason+late)
		return
	}
	who := ""
	if len(s.stuck) > 0 {
		slices.Sort(s.stuck)
		who = ": " + s.few(s.stuck)
	}
	s.setStatus(Failed, countNodes(s.restoreFailed)+" could not go back"+who+late)
}

// few names the first few of some nodes.
func (s *State) few(nodes []int) string {
	const most = 20
	names := make([]string, 0, most)
	for _, i := range nodes[:min(len(nodes), most)] {
		names = append(names, s.plan.Nodes[i])
	}
	return few(names, len(nodes))
}

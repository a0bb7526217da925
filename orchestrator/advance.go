package orchestrator

import (
	"fmt"
	"slices"
	"time"
)

// advance makes every decision that is due, until nothing changes. It returns
// true when the rollout has finished in this Step.
func (s *State) advance() (finished bool) {
	s.expireGraces()
	s.expireDeadlines()
	if s.superseded != "" {
		// One that had ended already, and was waiting for its last answers, keeps its
		// state: nobody asks for them any more.
		return s.finish(ClassSuperseded)
	}
	if !s.held {
		return false // nothing leaves without a hold
	}
	s.overdue()
	for {
		before, stage := s.status, s.stage
		switch s.status {
		case Waiting, Running:
			s.run()
		case Baking:
			if s.bake() {
				return s.finish(ClassSkipped)
			}
		case Paused:
		case RollingBack:
			if s.rollback() {
				return s.finish(ClassSkipped)
			}
		default: // terminal: wait for what is in flight
			s.standDown()
			if s.inFlight == 0 && s.unconfirmed == 0 {
				return s.finish(ClassSkipped)
			}
		}
		if s.status == before && s.stage == stage {
			return false
		}
	}
}

const windowClosed = "the window is closed"

// run gives nodes their turn, within the window and max_parallel.
func (s *State) run() {
	if why, then := s.overBudget(); why != "" {
		s.react(then, CauseFailure, why)
		return
	}
	_, end := s.plan.Stage(s.stage)
	work := s.next < end || s.nReady > 0 || s.nWaiting > 0
	if work && !s.open {
		s.setStatus(Waiting, "")
		if s.reason != windowClosed {
			s.reason, s.dirty = windowClosed, true
			s.tell(TellStatus, -1, "waiting: %s", windowClosed)
		}
		return
	}
	if s.status == Waiting {
		s.setStatus(Running, "")
		s.reason = ""
		s.announce()
		return
	}
	s.assign()
	if s.next == end && s.nReady == 0 && s.nDeferred == 0 && s.nWaiting == 0 && s.inFlight == 0 && s.unconfirmed == 0 {
		if why := s.unshown(); why != "" {
			s.pauseFor(CauseFailure, why)
			return
		}
		// A stage without nodes changed nothing, and so does a rollout of what all
		// nodes have: there is nothing to watch.
		s.bakingSince, s.promoted = s.now, s.promoted || s.skipped() || s.untouched()
		s.baked, s.bakeFrom = 0, s.now
		s.status, s.dirty = Baking, true
		if bake := s.plan.Spec.Stages[s.stage].Bake; bake > 0 && !s.promoted {
			s.tell(TellStage, -1, "baking for %s", bake)
		}
	}
}

// announce tells that the present stage is at work.
func (s *State) announce() {
	from, end := s.plan.Stage(s.stage)
	if from == end {
		s.tell(TellStage, -1, "stage %q: no node is left for it", s.plan.Spec.Stages[s.stage].Name)
		return
	}
	which := fmt.Sprintf("nodes %d to %d", from+1, end)
	if end == from+1 {
		which = fmt.Sprintf("node %d", end)
	}
	have := ""
	if n := s.plan.UnchangedIn(s.stage); n > 0 {
		have = fmt.Sprintf(", of which %d need nothing: they have this already", n)
		if n == 1 {
			have = ", of which 1 needs nothing: it has this already"
		}
	}
	s.tell(TellStage, -1, "stage %q: %s of %d%s", s.plan.Spec.Stages[s.stage].Name, which, len(s.nodes), have)
}

// assign fills the stage's window: first those that are back, then the next.
//
// Invariant: after it, the nodes in flight are at most the stage's
// MaxParallel, unless more were before it.
func (s *State) assign() {
	room := len(s.nodes)
	if m := s.plan.Spec.Stages[s.stage].MaxParallel; m > 0 {
		room = m - s.inFlight
	}
	room -= s.giveAgain(room)
	if s.holding() {
		return
	}
	var batch []int
	for len(batch) < room && len(s.readies) > 0 {
		i := s.readies[0]
		if s.readies = s.readies[1:]; s.nodes[i].ready {
			s.unready(i)
			batch = s.turn(i, batch)
		}
	}
	_, end := s.plan.Stage(s.stage)
	if n := min(room, end-s.next); n > 0 {
		batch = slices.Grow(batch, n)
	}
	for ; len(batch) < room && s.next < end; s.next++ {
		batch = s.turn(s.next, batch)
	}
	if len(batch) == 0 {
		return
	}
	s.flights = slices.Grow(s.flights, len(batch))
	for _, i := range batch {
		s.nodes[i].order, s.nodes[i].tries = s.hold.next(), 1
		s.launch(i)
	}
	s.order(Assign{Order: s.hold.next(), Nodes: batch})
}

// next is the order of the decision that is being made.
func (o Order) next() Order { o.Seq++; return o }

// order emits an Assign or a Restore under the next Seq.
func (s *State) order(e Effect) {
	s.hold = s.hold.next()
	s.unconfirmed++
	s.effects = append(s.effects, e)
}

// turn is a node's turn: it joins the batch, or is put off, or is lost.
func (s *State) turn(i int, batch []int) []int {
	n := &s.nodes[i]
	if n.class != ClassPending || !n.order.IsZero() {
		return batch
	}
	s.unready(i)
	if _, down := s.down[i]; !down {
		return append(batch, i)
	}
	if s.gone(i) {
		s.unreachable(i, "its agent is down")
	} else if !n.deferred {
		n.deferred = true
		s.nDeferred++
	}
	return batch
}

// bake waits for the end of the stage's bake, asks its gates, and goes on to
// the next stage. It returns true when that was the last.
func (s *State) bake() (ended bool) {
	if why, then := s.overBudget(); why != "" {
		s.react(then, CauseFailure, why)
		return false
	}
	if !s.promoted {
		// Before nodes that are back get their order: what pauses here must not
		// come behind an order in the same Step.
		pass := s.gatesPass(s.baking() >= s.plan.Spec.Stages[s.stage].Bake)
		if !pass && s.status == Baking && s.open {
			s.assign()
		}
		if !pass {
			return false
		}
		if st := &s.plan.Spec.Stages[s.stage]; st.Promote == PromoteManual {
			s.pauseFor(CausePromotion, fmt.Sprintf("stage %q is done and waits to be promoted: `aimlock rollout %s`", st.Name, PromoteWords(st.Name)))
			return false
		}
	}
	if s.open {
		s.assign()
	}
	if s.stage+1 < len(s.plan.Ends) {
		s.stage++
		s.closeGates()
		s.bakingSince, s.promoted, s.dirty = time.Time{}, false, true
		s.baked, s.bakeFrom = 0, time.Time{}
		s.status = Running
		s.announce()
		return false
	}
	if !s.open && s.nWaiting > 0 {
		// Another attempt would be outside of the window.
		s.giveUp()
		return s.bake()
	}
	if s.inFlight > 0 || s.nDeferred > 0 || s.nWaiting > 0 || s.unconfirmed > 0 || s.leaveOrders() {
		return false
	}
	if s.counts[ClassApplied] == 0 && s.counts[ClassSkipped] < len(s.nodes) {
		s.setStatus(Failed, s.nobody())
	} else {
		s.reason = "" // of a pause that is over
		s.setStatus(Succeeded, "")
	}
	return true
}

// nobody says why a rollout has failed that has no node left to try.
func (s *State) nobody() string {
	why := "no node has applied it, and none is left to try"
	if n := s.counts[ClassUnreachable]; n > 0 {
		why += fmt.Sprintf(": %d of %d unreachable", n, len(s.nodes))
	}
	return why
}

// leaveOrders gives those nodes their order that could not be reached at their
// turn and are not back, so that they come to the right revision whenever they
// return. Nothing waits for them.
func (s *State) leaveOrders() bool {
	if s.counts[ClassUnreachable] == 0 || s.counts[ClassApplied] == 0 {
		return false
	}
	var batch []int
	for i := range s.nodes {
		if n := &s.nodes[i]; n.class == ClassUnreachable && n.order.IsZero() {
			n.order, n.tries = s.hold.next(), 1
			batch = append(batch, i)
		}
	}
	if len(batch) > 0 {
		s.order(Assign{Order: s.hold.next(), Nodes: batch})
	}
	return len(batch) > 0
}

// beginRollback turns round: from here on every node that was given an order
// gets one to go back, the nodes in flight first.
func (s *State) beginRollback(why string) {
	s.pause = nil
	s.setStatus(RollingBack, why)
	s.standDown()
	s.toRestore = s.AppendFlying(s.toRestore[:0])
	for i := range s.nodes {
		if n := &s.nodes[i]; !n.order.IsZero() && !n.restore && !n.flying {
			s.toRestore = append(s.toRestore, i)
		}
	}
	for _, i := range s.toRestore {
		s.land(i)
	}
}

// standDown forgets who would be next.
func (s *State) standDown() {
	s.giveUp()
	if s.nDeferred == 0 && s.nReady == 0 {
		return
	}
	for i := range s.nodes {
		s.undefer(i)
		s.unready(i)
	}
}

// rollback sends the next restores and reports whether it is through. Nodes
// that cannot be reached get their order too, and nothing waits for them.
func (s *State) rollback() (ended bool) {
	var batch []int
	room := RestoreParallel - s.inFlight
	for len(s.toRestore) > 0 {
		i := s.toRestore[0]
		n := &s.nodes[i]
		lost := n.class == ClassUnreachable || s.gone(i)
		if !lost && room == 0 {
			break
		}
		s.toRestore = s.toRestore[1:]
		n.order, n.restore, n.got = s.hold.next(), true, 0
		batch = append(batch, i)
		if lost {
			s.unreachable(i, "its agent is down: it goes back when it returns")
		} else {
			s.launch(i)
			room--
		}
	}
	if len(batch) > 0 {
		s.order(Restore{Order: s.hold.next(), Nodes: batch})
	}
	if s.inFlight > 0 || s.unconfirmed > 0 {
		return false
	}
	s.rolledBack()
	return true
}

// finish ends the rollout: no node stays pending.
func (s *State) finish(rest Class) bool {
	s.standDown()
	for i := range s.nodes {
		s.land(i)
		if s.nodes[i].class == ClassPending {
			s.setClass(i, rest)
		}
	}
	s.finishedAt, s.dirty = s.now, true
	return true
}

func (s *State) expireGraces() {
	for len(s.graces) > 0 {
		g := s.graces[0]
		if s.now.UnixNano()-g.when < int64(Grace) {
			return
		}
		s.graces = s.graces[1:]
		if t, down := s.down[g.node]; down && t == g.when {
			if n := &s.nodes[g.node]; n.flying || n.deferred {
				s.unreachable(g.node, "its agent is down")
			}
		}
	}
}

func (s *State) deadline() time.Duration {
	if d := s.plan.Spec.NodeDeadline; d > 0 {
		return d
	}
	return DefaultNodeDeadline
}

func (s *State) expireDeadlines() {
	limit := s.deadline()
	for len(s.flights) > 0 {
		f := s.flights[0]
		n := &s.nodes[f.node]
		if n.flying && n.since == f.when {
			if s.now.UnixNano()-f.when < int64(limit) {
				break
			}
			s.unreachable(f.node, fmt.Sprintf("it did not answer within %s", limit))
		}
		s.flights = s.flights[1:]
	}
	// Stale entries behind the first one are dropped before they outnumber
	// the rest.
	if len(s.flights) > 2*s.inFlight+1024 {
		s.flights = slices.DeleteFunc(s.flights, func(f at) bool {
			n := &s.nodes[f.node]
			return !n.flying || n.since != f.when
		})
	}
}

// NextWake returns when Step wants a Tick if nothing else happens before, and
// the zero time if it wants none.
func (s *State) NextWake() time.Time {
	var wake int64
	earlier := func(t int64) {
		if wake == 0 || t < wake {
			wake = t
		}
	}
	for _, f := range s.flights {
		if n := &s.nodes[f.node]; n.flying && n.since == f.when {
			earlier(f.when + int64(s.deadline()))
			break
		}
	}
	for _, g := range s.graces {
		if t, down := s.down[g.node]; down && t == g.when && !s.gone(g.node) {
			earlier(g.when + int64(Grace))
			break
		}
	}
	if t := s.nextRetry(); t > 0 {
		earlier(t)
	}
	if t := s.runsOut(); t > 0 {
		earlier(t)
	}
	s.gatesWake(earlier)
	if wake == 0 || s.Finished() {
		return time.Time{}
	}
	return time.Unix(0, wake).UTC()
}

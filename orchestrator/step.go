package orchestrator

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Step takes what happened and the time, and returns the next state and what
// must be done for it to be true. It decides from its arguments alone: the
// same state, event and time give the same answer.
//
// The state passed in is used up: go on with the one returned. now must
// not go back; where it does, the time of the last Step stands.
func Step(s *State, ev Event, now time.Time) (*State, []Effect) {
	if now.After(s.now) {
		s.now = now
	}
	s.dirty, s.effects = false, nil
	if s.Finished() {
		return s, nil
	}
	s.accrue()
	s.apply(ev)
	finished := s.advance()

	var out []Effect
	if s.dirty {
		out = append(out, Persist{Header: s.Header()})
	}
	out = append(out, s.effects...)
	if finished {
		out = append(out, Finish{Status: s.status})
	}
	s.effects = nil
	return s, out
}

// apply takes the event into the state. It decides nothing that advance can.
func (s *State) apply(ev Event) {
	switch ev := ev.(type) {
	case Acquired:
		s.acquired(ev.Order)
	case WindowChanged:
		if s.plan.Spec.Window != nil {
			s.open = ev.Open
		}
	case Reports:
		for _, r := range ev {
			s.report(r)
		}
	case Health:
		for _, i := range ev.Up {
			s.agentUp(i)
		}
		for _, i := range ev.Down {
			s.agentDown(i)
		}
	case Assigned:
		s.confirmed(ev)
	case GateAnswered:
		s.measured(ev)
	case OperatorCommand:
		if s.command == nil || ev.N > s.command.N {
			s.obey(ev)
		}
	case Supersede:
		if s.superseded = ev.By; !s.status.Terminal() {
			s.makeRoom(ev.By, ev.Begun)
		}
	case Tick:
	}
}

// makeRoom ends the rollout in favour of another one.
func (s *State) makeRoom(by, begun string) {
	s.superseded = by
	s.setStatus(Superseded, TookPlace(by, begun))
}

// TookPlace says which rollout took another one's place, and who began it, if that is
// known.
func TookPlace(id, begun string) string {
	words := "rollout " + id + " took its place"
	if begun != "" {
		words += ", begun by " + begun
	}
	return words
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func (s *State) acquired(o Order) {
	s.hold, s.held, s.dirty = o, true, true
	if s.startedAt.IsZero() {
		s.startedAt = s.now
	}
	if !s.bakingSince.IsZero() {
		// From here on this holder's clock counts.
		s.baked = s.baking()
		s.bakeFrom = s.now
	}
	// What was in flight under the last hold gets its whole deadline again:
	// nobody watched in between.
	s.flights = s.flights[:0]
	for i := range s.nodes {
		if s.nodes[i].flying {
			s.launch(i)
		}
	}
	s.awaitAnew()
}

func (s *State) confirmed(ev Assigned) {
	if s.unconfirmed > 0 {
		s.unconfirmed--
	}
	for _, i := range ev.Nodes {
		n := &s.nodes[i]
		if !n.confirmed {
			n.confirmed = true
			s.nConfirmed++
		}
		if n.flying && n.order == ev.Order && n.since < s.now.UnixNano() {
			s.launch(i)
		}
	}
}

// report takes one answer. The first answer of a config to an order counts;
// everything else is ignored.
func (s *State) report(r Report) {
	if r.Node < 0 || r.Node >= len(s.nodes) || r.Config < 0 || r.Config >= len(s.plan.Spec.Configs) {
		return
	}
	n, bit := &s.nodes[r.Node], uint64(1)<<r.Config
	if n.order.IsZero() || n.order != r.Order || n.got&bit != 0 {
		return
	}
	all := uint64(1)<<len(s.plan.Spec.Configs) - 1
	bad := r.Result == ResultFailed || r.Result == ResultRefused
	switch {
	case bad && n.restore:
		n.got = all
		s.land(r.Node)
		s.restoreFailed++
		s.stuck = append(s.stuck, r.Node)
		s.setClass(r.Node, ClassFailed)
		s.dirty = true
		s.problem(r.Node, "could not go back"+because(explain(r)))
	case bad:
		n.got = all
		s.land(r.Node)
		if s.mayRetry(n, r.Result) {
			s.await(r.Node, explain(r))
		} else {
			s.failed(r.Node, explain(r))
		}
	case n.restore || r.Result == ResultApplied:
		if n.got |= bit; n.got != all {
			return
		}
		s.land(r.Node)
		switch {
		case !n.restore:
			s.setClass(r.Node, ClassApplied)
		case n.class != ClassFailed:
			// A failed node stays failed when it is back: it is what people
			// look for.
			s.setClass(r.Node, ClassRolledBack)
		}
	}
}

func explain(r Report) string {
	if r.Result == ResultRefused {
		return "it refused the order " + r.Order.String() + because(r.Why) +
			"; it has accepted a newer one: was Consul restored from a snapshot? then run `aimlock recover`"
	}
	if r.Why == "" {
		return "failed"
	}
	return r.Why
}

func (s *State) agentUp(i int) {
	if i < 0 || i >= len(s.nodes) {
		return
	}
	delete(s.down, i)
	n := &s.nodes[i]
	if s.status.Terminal() || s.status == RollingBack || !n.order.IsZero() {
		return
	}
	if n.deferred || n.class == ClassUnreachable {
		s.undefer(i)
		s.setClass(i, ClassPending)
		if !n.ready {
			n.ready = true
			s.nReady++
			s.readies = append(s.readies, i)
		}
	}
}

func (s *State) agentDown(i int) {
	if i < 0 || i >= len(s.nodes) {
		return
	}
	if _, known := s.down[i]; !known {
		s.down[i] = s.now.UnixNano()
		s.graces = append(s.graces, at{i, s.now.UnixNano()})
	}
}

// gone tells whether the node's agent has been down for longer than Grace.
func (s *State) gone(i int) bool {
	t, down := s.down[i]
	return down && s.now.UnixNano()-t >= int64(Grace)
}

// unreachable ends a node's turn without an answer. A node that failed stays
// failed.
func (s *State) unreachable(i int, why string) {
	s.land(i)
	s.undefer(i)
	s.unready(i)
	if c := s.nodes[i].class; c != ClassFailed && c != ClassUnreachable {
		s.setClass(i, ClassUnreachable)
		s.problem(i, why)
	}
}

// problemsKept bounds the header.
const problemsKept = 20

func (s *State) problem(i int, why string) {
	const most, told = 300, 5000
	whole := clip(why, told)
	why = Ends(why, most)
	if len(s.problems) == problemsKept {
		s.problems = slices.Delete(s.problems, 0, 1)
	}
	s.problems = append(s.problems, Problem{Node: s.plan.Nodes[i], Class: s.nodes[i].class.String(), Why: why, At: s.now})
	s.dirty = true
	s.tell(TellNode, i, "%s: %s", s.nodes[i].class, whole)
}

// Ends is at most n bytes of s, but for the mark between: its beginning, which says
// what failed, and its end, where an output says why. The last line is whole where it
// leaves a fifth to the beginning, and else has both its own ends: of a child rollout
// it begins with the id and the reason, and ends with the commands.
func Ends(s string, n int) string {
	const mark = " … "
	if len(s) <= n {
		return s
	}
	end := n - n*2/5
	last := len(s) - 1 - strings.LastIndexByte(s, '\n')
	switch most := n - n/5; {
	case last <= end || last == len(s):
	case last <= most:
		end = last
	case most > len(mark):
		return strings.ToValidUTF8(s[:n-most], "") + mark + Ends(s[len(s)-last:], most-len(mark))
	}
	return strings.ToValidUTF8(s[:n-end], "") + mark + strings.ToValidUTF8(s[len(s)-end:], "")
}

// clip is at most the first n bytes of s, and says so.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

func (s *State) setStatus(st Status, why string) {
	if s.status == st {
		return
	}
	s.status, s.dirty = st, true
	if st.Terminal() {
		s.pause = nil // why it was paused is not why it ended
	}
	if why != "" {
		s.reason = why
	}
	s.tell(TellStatus, -1, "%s%s", st, because(why))
}

// obey takes an operator's command and notes what became of it.
func (s *State) obey(c OperatorCommand) {
	s.dirty = true
	s.command = &CommandSeen{N: c.N, Verb: c.Verb, By: c.By, Accessor: c.Accessor, At: s.now, OK: true}
	defer func() { s.commands = appendSeen(s.commands, *s.command) }()
	by := "by " + c.By + because(c.Reason)
	no := func(format string, args ...any) {
		s.command.OK, s.command.Result = false, fmt.Sprintf(format, args...)
	}
	switch {
	case s.status.Terminal():
		no("the rollout is %s: it has ended", s.status)
		return
	case s.status == RollingBack && c.Verb != Rollback:
		no("the rollout is rolling back, and that is not stopped")
		return
	}
	s.command.Result = "done"
	switch c.Verb {
	case Pause:
		if s.status == Paused && s.pause.Cause != CausePromotion && s.pause.Cause != CauseGate {
			s.command.Result = "it is paused already"
			return
		}
		// A pause that promote would end becomes one that only resume does.
		s.pauseFor(CauseOperator, by)
	case Resume:
		if s.status != Paused {
			s.command.Result = fmt.Sprintf("nothing to do: the rollout is %s, not paused", s.status)
			return
		}
		if s.pause.Cause == CausePromotion {
			no("it waits for its promotion: promote lets it go on, rollback and abort end it")
			return
		}
		if !s.knows(c, no) {
			return
		}
		s.unpause("resumed " + by)
		s.command.Result += s.leftBehind() + s.uncanaried()
	case Abort:
		s.setStatus(Aborted, by)
	case MakeRoom:
		s.makeRoom(c.Rollout, c.By)
	case Rollback:
		if s.status == RollingBack {
			s.command.Result = "it is rolling back already"
			return
		}
		s.beginRollback(by)
	case Promote:
		if c.Stage != "" && !s.promotes(c.Stage, no) {
			return
		}
		if s.status == Paused && s.pause.Cause == CauseFailure {
			no("it is paused for failures, which promote does not overrule: resume does")
			return
		}
		if s.status == Paused && (s.pause.Cause == CauseGate || s.pause.Cause == CauseDeadline) && !s.knows(c, no) {
			return
		}
		s.promoted = true
		s.overruleGates()
		s.tell(TellStage, -1, "bake and gates of this stage are taken as passed %s", by)
		switch {
		case s.status != Paused:
		case s.pause.Cause == CauseOperator:
			// Somebody wants it to stand still, and did not say that it may go on.
			s.command.Result = "done, and it stays paused (" + s.pause.Why + "): resume lets it go on"
		default:
			s.unpause("promoted " + by)
		}
	case Skip:
		if c.Stage != "" {
			s.skipStage(c.Stage, no)
		}
		s.skip(c.Nodes, no)
		if s.command.OK {
			s.command.Result += s.uncanaried()
		}
	default:
		no("%q is no command that this version knows", c.Verb)
	}
}

// knows reports whether the operator knew of the present pause. Of two operators
// who resume the same pause the second must not end the next one unseen.
func (s *State) knows(c OperatorCommand, no func(string, ...any)) bool {
	switch {
	case c.Pause == nil || *c.Pause == s.pauses:
		return true
	case *c.Pause < s.pauses:
		no("it was paused anew since: %s; give the order again if it stands after that: this is pause %d", s.pause.Why, s.pauses)
	default:
		no("it was not paused %d times: this is pause %d", *c.Pause, s.pauses)
	}
	return false
}

// promotes reports whether stage is the present one. Of two operators who
// promote the same stage the second must not promote the next one.
func (s *State) promotes(stage string, no func(string, ...any)) bool {
	stages := s.plan.Spec.Stages
	at := slices.IndexFunc(stages, func(st Stage) bool { return st.Name == stage })
	switch now := stages[s.stage].Name; {
	case at < 0:
		no("there is no stage %q", stage)
	case at > s.stage:
		no("stage %q is not the present one, which is %q", stage, now)
	case at < s.stage:
		s.command.Result = fmt.Sprintf("stage %q is over already; the present one is %q", stage, now)
	default:
		return true
	}
	return false
}

// skip takes nodes out that have no order yet: all of those named or none.
func (s *State) skip(names []string, no func(string, ...any)) {
	index := map[string]int{}
	for _, n := range names {
		index[n] = -1
	}
	for i, n := range s.plan.Nodes {
		if _, asked := index[n]; asked {
			index[n] = i
		}
	}
	for _, n := range names {
		switch i := index[n]; {
		case i < 0:
			no("node %q is not in this rollout", n)
			return
		case !s.nodes[i].order.IsZero():
			no("node %q has its order already, which skip does not take back: leave it out%s", n, s.without(i))
			return
		case s.nodes[i].class == ClassApplied:
			no("node %q has this revision already", n)
			return
		}
	}
	for _, i := range index {
		s.undefer(i)
		s.unready(i)
		s.setClass(i, ClassSkipped)
	}
}

// without says how the rollout goes on without node i, which has its order.
func (s *State) without(i int) string {
	switch n := &s.nodes[i]; {
	case n.flying:
		return fmt.Sprintf("; its answer is waited for no longer than %s", s.deadline())
	case s.status == Paused && n.class != ClassApplied:
		return fmt.Sprintf("; `aimlock rollout %s` goes on without it", s.pause.Cause.Way())
	}
	return ""
}

// leftBehind tells of the nodes without which a rollout goes on that is resumed.
func (s *State) leftBehind() string {
	switch n := s.counts[ClassFailed]; n {
	case 0:
		return ""
	case 1:
		return "; it goes on without 1 failed node, which is not tried again"
	default:
		return fmt.Sprintf("; it goes on without %d failed nodes, which are not tried again", n)
	}
}

// uncanaried tells of a stage whose nodes are the first to get the content although
// there are nodes before it: none of those has it, or is still to get it.
func (s *State) uncanaried() string {
	if s.counts[ClassApplied] > 0 {
		return ""
	}
	before := 0
	for i := range s.stages {
		if s.stages[i][ClassPending] > 0 {
			if before == 0 {
				return ""
			}
			return fmt.Sprintf("; no canary is left: the nodes of stage %q are the first to get it", s.plan.Spec.Stages[i].Name)
		}
		from, end := s.plan.Stage(i)
		before += end - from
	}
	return ""
}

// skipStage takes all nodes of a stage out that have no order yet. A stage all
// of whose nodes are skipped has nothing to watch: it neither bakes nor asks.
func (s *State) skipStage(name string, no func(string, ...any)) {
	st := slices.IndexFunc(s.plan.Spec.Stages, func(st Stage) bool { return st.Name == name })
	if st < 0 {
		no("there is no stage %q in this rollout", name)
		return
	}
	n := 0
	from, end := s.plan.Stage(st)
	for i := from; i < end; i++ {
		if c := s.nodes[i].class; s.nodes[i].order.IsZero() && c != ClassSkipped && c != ClassApplied {
			s.undefer(i)
			s.unready(i)
			s.setClass(i, ClassSkipped)
			n++
		}
	}
	if n == 0 {
		no("no node of stage %q is without an order", name)
		return
	}
	s.command.Result = "skipped: " + countNodes(n)
}

// skipped reports whether all nodes of the present stage are.
func (s *State) skipped() bool {
	from, end := s.plan.Stage(s.stage)
	for i := from; i < end; i++ {
		if s.nodes[i].class != ClassSkipped {
			return false
		}
	}
	return true
}

func (s *State) pauseFor(cause Cause, why string) {
	s.pause = &PauseInfo{Cause: cause, Why: why, At: s.now}
	s.pauses++
	if s.status == Paused {
		// It was paused for something else, which matters less now.
		s.reason, s.dirty = why, true
		s.tell(TellStatus, -1, "%s%s", Paused, because(why))
		return
	}
	s.setStatus(Paused, why)
}

// unpause goes on. What an operator has looked at is forgiven: the failures
// until now, where they were the cause, so that the budget starts anew; and the
// rollout has its whole deadline again.
func (s *State) unpause(why string) {
	switch s.pause.Cause {
	case CauseFailure:
		s.budget.ForgivenFailed = s.budget.Failed
		s.budget.ForgivenUnreachable = s.counts[ClassUnreachable]
		for i := range s.perStage {
			s.perStage[i].forgive()
		}
	case CauseGate, CauseOperator:
		undecided := !slices.ContainsFunc(s.gates, func(g *gate) bool { return g.State == GateUnknown || g.State == GateFailed })
		if s.promoted || s.pause.Cause == CauseOperator && undecided {
			break // what was overruled stays to be seen, and what was measured counts
		}
		s.gates = nil
	}
	s.pause, s.elapsed = nil, 0
	if s.bakingSince.IsZero() {
		s.setStatus(Running, why)
	} else {
		s.setStatus(Baking, why)
	}
}

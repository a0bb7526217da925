package orchestrator

import (
	"fmt"
	"slices"
	"time"
)

// stageUse is the use of one stage's failure budget. What is not forgiven is
// made anew from the nodes' classes, so no crash loses it.
type stageUse struct {
	failed, unreachable                 int
	forgivenFailed, forgivenUnreachable int
	// doubt is the stage's part of State.doubt.
	doubt int
}

func (u *stageUse) count(c Class, n int) {
	switch c {
	case ClassFailed:
		u.failed += n
	case ClassUnreachable:
		u.unreachable += n
	}
}

func (u *stageUse) forgive() {
	u.forgivenFailed, u.forgivenUnreachable = u.failed, u.unreachable
}

// forgiven is what is to be persisted of the stages' budgets.
func (s *State) forgiven() []StageForgiven {
	if !slices.ContainsFunc(s.perStage, func(u stageUse) bool { return u.forgivenFailed+u.forgivenUnreachable > 0 }) {
		return nil
	}
	out := make([]StageForgiven, len(s.perStage))
	for i, u := range s.perStage {
		out[i] = StageForgiven{u.forgivenFailed, u.forgivenUnreachable}
	}
	return out
}

// severity orders what can be done about failures.
func severity(then string) int {
	return slices.Index([]string{ThenPause, ThenAbort, ThenRollback}, then)
}

// overBudget says why a failure budget is exceeded and what is to be done
// about it, or nothing. Of several the gravest counts. A stage's budget counts
// its nodes whenever they fail, also while a later stage is at work.
func (s *State) overBudget() (why, then string) {
	worse := func(w, t string) {
		if why == "" || severity(t) > severity(then) {
			why, then = w, t
		}
	}
	f := &s.plan.Spec.Failure
	if n := s.budget.Failed - s.budget.ForgivenFailed; n > f.MaxFailed {
		worse(fmt.Sprintf("%d failed, and max_failed is %d", n, f.MaxFailed), f.Then)
	}
	if n := s.counts[ClassUnreachable] - s.budget.ForgivenUnreachable; n*100 > f.MaxUnreachablePercent*len(s.nodes) {
		worse(fmt.Sprintf("%d of %d unreachable, and max_unreachable_percent is %d", n, len(s.nodes), f.MaxUnreachablePercent), f.Then)
	}
	for i := range s.stage + 1 {
		st, u := &s.plan.Spec.Stages[i], &s.perStage[i]
		if st.Failure == nil {
			continue
		}
		if most := st.Failure.MaxFailed; most != nil && u.failed-u.forgivenFailed > *most {
			worse(fmt.Sprintf("%d of stage %q failed, and its max_failed is %d", u.failed-u.forgivenFailed, st.Name, *most), st.Failure.Then)
		}
		from, end := s.plan.Stage(i)
		if most := st.Failure.MaxUnreachablePercent; most != nil {
			if n := u.unreachable - u.forgivenUnreachable; n*100 > *most*(end-from) {
				worse(fmt.Sprintf("%d of %d of stage %q unreachable, and its max_unreachable_percent is %d", n, end-from, st.Name, *most), st.Failure.Then)
			}
		}
	}
	return why, then
}

// unshown says why the stage that has just had its turn proves nothing of the
// revision, or nothing: nobody has applied it, because nodes could not be reached,
// and others would be given it next. What is not known pauses: the budget of
// unreachable nodes says how many may be away, and not that one of them has tried
// it. A stage whose author tolerates that all of it is away is believed, and so is
// an operator who resumes. Nodes that failed were tried: max_failed decides.
func (s *State) unshown() string {
	st, c, u := &s.plan.Spec.Stages[s.stage], &s.stages[s.stage], &s.perStage[s.stage]
	if c[ClassApplied] > 0 || u.unreachable <= u.forgivenUnreachable {
		return ""
	}
	if f := st.Failure; f != nil && f.MaxUnreachablePercent != nil && *f.MaxUnreachablePercent >= 100 {
		return ""
	}
	next := 0
	for i := s.stage + 1; i < len(s.stages); i++ {
		next += s.stages[i][ClassPending]
	}
	if next == 0 {
		return ""
	}
	from, end := s.plan.Stage(s.stage)
	why := fmt.Sprintf("no node of stage %q has applied it, so nothing shows that it is good: %d of %d unreachable", st.Name, u.unreachable, end-from)
	if u.failed > 0 {
		why += fmt.Sprintf(", %d failed", u.failed)
	}
	return why
}

// holding reports whether no further node is put at risk for now: the nodes
// that failed and are tried again would exceed a budget if they failed for
// good. So retries never make more failures than the budget and what was in
// flight when it was reached.
func (s *State) holding() bool {
	if s.doubt == 0 {
		return false
	}
	if s.budget.Failed-s.budget.ForgivenFailed+s.doubt > s.plan.Spec.Failure.MaxFailed {
		return true
	}
	for i := range s.stage + 1 {
		f, u := s.plan.Spec.Stages[i].Failure, &s.perStage[i]
		if f != nil && f.MaxFailed != nil && u.doubt > 0 && u.failed-u.forgivenFailed+u.doubt > *f.MaxFailed {
			return true
		}
	}
	return false
}

// then does what the present stage's failure block says, or else the spec's.
func (s *State) then(cause Cause, why string) {
	then := s.plan.Spec.Failure.Then
	if f := s.plan.Spec.Stages[s.stage].Failure; f != nil {
		then = f.Then
	}
	s.react(then, cause, why)
}

func (s *State) react(then string, cause Cause, why string) {
	switch then {
	case ThenRollback:
		s.beginRollback(why)
	case ThenAbort:
		s.pause = nil
		s.setStatus(Aborted, why)
	default:
		s.pauseFor(cause, why)
	}
}

// ticking reports whether the clock of the rollout's deadline runs: whenever
// it should come on, whether or not it does. A closed window and an operator
// who pauses it stop the clock; a stage that waits to be promoted, a gate that
// says nothing and an orchestrator that is gone do not.
func (s *State) ticking() bool {
	return s.plan.Spec.Deadline > 0 && ticks(s.status, s.pause)
}

// Ticking reports whether the clock of a deadline runs for the rollout of this
// header, if it has one.
func (h *Header) Ticking() bool { return h.FinishedAt == nil && ticks(h.State, h.Paused) }

func ticks(st Status, p *PauseInfo) bool {
	switch st {
	case Running, Baking:
		return true
	case Paused:
		return p != nil && p.Cause != CauseOperator && p.Cause != CauseDeadline
	}
	return false
}

// accrue adds the time since the last Step to what is used of the deadline.
// Only time under a hold counts here, by the clock of the one who holds: what a
// clock of another machine said never does. What the runner knows of the time
// between two holds it adds to the header.
func (s *State) accrue() {
	if s.held && s.ticking() && s.now.After(s.clockAt) {
		s.elapsed += s.now.Sub(s.clockAt)
	}
	s.clockAt = s.now
}

// overdue does what the failure block says once the deadline has passed.
func (s *State) overdue() {
	limit := s.plan.Spec.Deadline
	if !s.ticking() || s.elapsed < limit || s.stopped() {
		return
	}
	s.react(s.plan.Spec.Failure.Then, CauseDeadline, fmt.Sprintf("it is not done within its deadline of %s", limit))
}

// stopped: a pause is what the deadline asks for, and a failure or a gate has
// brought it already. One that waits to be promoted is stopped waiting for.
func (s *State) stopped() bool {
	return s.status == Paused && s.pause.Cause != CausePromotion && s.plan.Spec.Failure.Then == ThenPause
}

// runsOut is when the deadline passes, in Unix nanoseconds; 0: not by itself.
func (s *State) runsOut() int64 {
	if !s.held || !s.ticking() || s.stopped() {
		return 0
	}
	return s.clockAt.Add(max(s.plan.Spec.Deadline-s.elapsed, time.Nanosecond)).UnixNano()
}

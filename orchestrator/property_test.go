package orchestrator

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func drawSpec(t *rapid.T) Spec {
	var stages []Stage
	percent := 0
	for i := range rapid.IntRange(1, 4).Draw(t, "stages") {
		st := Stage{
			Name:        fmt.Sprintf("s%d", i),
			MaxParallel: rapid.IntRange(0, 5).Draw(t, "max_parallel"),
			Bake:        time.Duration(rapid.IntRange(0, 2).Draw(t, "bake")) * time.Minute,
		}
		switch rapid.IntRange(0, 5).Draw(t, "by") {
		case 0, 1:
			st.Nodes = rapid.IntRange(1, 4).Draw(t, "nodes")
		case 2:
			st.Select = rapid.SampledFrom([]string{"a", "b", "none"}).Draw(t, "select")
		default:
			percent = rapid.IntRange(max(percent, 1), 100).Draw(t, "percent")
			st.Percent = percent
		}
		if rapid.IntRange(0, 3).Draw(t, "manual") == 0 {
			st.Promote = PromoteManual
		}
		if rapid.IntRange(0, 3).Draw(t, "own budget") == 0 {
			st.Failure = &StageFailure{Then: rapid.SampledFrom([]string{ThenPause, ThenRollback, ThenAbort}).Draw(t, "stage then")}
			if n := rapid.IntRange(-1, 2).Draw(t, "stage max_failed"); n >= 0 {
				st.Failure.MaxFailed = &n
			}
			if n := rapid.SampledFrom([]int{-1, 0, 50, 100}).Draw(t, "stage max_unreachable"); n >= 0 {
				st.Failure.MaxUnreachablePercent = &n
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "gated") == 0 {
			st.Gate = rapid.SampledFrom([][]string{{"g"}, {"g", "h"}, {"h"}}).Draw(t, "gates")
		}
		stages = append(stages, st)
	}
	spec := testSpec(stages...)
	for _, name := range []string{"g", "h"} {
		limit := func(what string, most int) int { return rapid.IntRange(0, most).Draw(t, what) }
		spec.Gates = append(spec.Gates, Gate{
			Name: name, Kind: GateConsulChecks,
			SuccessLimit: limit("success_limit", 3), FailureLimit: limit("failure_limit", 2),
			UnknownLimit: limit("unknown_limit", 2), ConsecutiveErrorLimit: limit("consecutive_error_limit", 3) - 1,
			During: rapid.SampledFrom([]string{"", DuringBake}).Draw(t, "during"),
		})
	}
	spec.Failure = Failure{
		MaxFailed:             rapid.IntRange(0, 3).Draw(t, "max_failed"),
		MaxUnreachablePercent: rapid.SampledFrom([]int{0, 20, 100}).Draw(t, "max_unreachable"),
		Then:                  rapid.SampledFrom([]string{ThenPause, ThenRollback, ThenAbort}).Draw(t, "then"),
	}
	if n := rapid.IntRange(0, 3).Draw(t, "attempts"); n > 0 {
		spec.Retry = &Retry{Attempts: n, Delay: 10 * time.Second, MaxDelay: 30 * time.Second}
	}
	if rapid.IntRange(0, 3).Draw(t, "limited") == 0 {
		spec.Deadline = time.Duration(rapid.IntRange(1, 20).Draw(t, "deadline")) * time.Minute
	}
	if rapid.Bool().Draw(t, "window") {
		spec.Window = &Window{}
	}
	return spec
}

// model is what the properties rest on, counted apart from the core.
type model struct {
	*world
	failed, forgiven map[int]bool // nodes whose last attempt failed
	// atRisk is how many nodes had an order without an answer when a node was
	// given its first one last.
	atRisk     int
	promoted   map[int]bool // stages that an operator promoted
	resumed    map[int]bool // stages in which an operator resumed after failures
	measures   map[measure]*tally
	stageAsked map[*State]map[int]int // of a process, ask -> stage
	ended      Status                 // terminal or rolling back: no way out
	mustStay   uint64                 // the pause that a resume which did not know of it must not end
	open       bool
}

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(checks)
	}
	os.Exit(m.Run())
}

func newModel(t *rapid.T, tb testing.TB) *model {
	spec := drawSpec(t)
	plan, err := NewPlan("r-1", spec, fleet(rapid.IntRange(1, 25).Draw(t, "fleet"), "a", "b", "c"), t0, Selecting(inZone(&spec)))
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 2).Draw(t, "unchanged") == 0 {
		plan.SetUnchanged(slices.Collect(func(yield func(int) bool) {
			for i := range plan.Nodes {
				if rapid.IntRange(0, 3).Draw(t, "has it") > 0 && !yield(i) {
					return
				}
			}
		}))
	}
	m := &model{
		world: newWorld(tb, plan), failed: map[int]bool{}, forgiven: map[int]bool{},
		promoted: map[int]bool{}, resumed: map[int]bool{}, measures: map[measure]*tally{}, stageAsked: map[*State]map[int]int{}, open: spec.Window == nil,
	}
	m.check = func(ev Event, effects []Effect) { m.verify(t, effects) }
	return m
}

func (m *model) verify(t *rapid.T, effects []Effect) {
	s := m.s
	// Every node is in exactly one class, and the counts say so.
	var counts Counts
	flying := 0
	for i := range m.plan.Nodes {
		counts[s.Class(i)]++
		if s.Flying(i) {
			flying++
		}
	}
	if counts != s.Counts() || counts.Total() != len(m.plan.Nodes) {
		t.Fatalf("counts %v, and the nodes say %v", s.Counts(), counts)
	}
	list := s.AppendFlying(nil)
	slices.Sort(list)
	if flying != s.InFlight() || len(slices.Compact(list)) != flying {
		t.Fatalf("in flight %d, listed %v, and the nodes say %d", s.InFlight(), list, flying)
	}
	m.verifyBooks(t)
	for _, i := range m.header.Failed {
		if g := m.given[i]; !g.Restore && m.reports[i].Order == g.Order && m.reports[i].Result == ResultFailed {
			m.failed[i] = true // also where it was given up with attempts left
		}
	}
	// Abort and rollback are terminal, once they are durable.
	if st := m.header.State; st.Terminal() || st == RollingBack {
		m.ended = st
	}
	if m.ended != "" && s.Status() != m.ended && !(m.ended == RollingBack && (s.Status() == RolledBack || s.Status() == Failed)) {
		t.Fatalf("%s after %s", s.Status(), m.ended)
	}
	if m.mustStay > 0 && s.pause == nil && s.Status() != RollingBack && !s.Status().Terminal() {
		t.Fatalf("%s: an operator who did not know of pause %d has ended it", s.Status(), m.mustStay)
	}
	m.mustStay = 0
	persisted := m.header
	for i, e := range effects {
		switch e := e.(type) {
		case Persist:
			if i != 0 {
				t.Fatalf("persist is effect %d", i)
			}
			persisted = e.Header
		case Assign:
			m.verifyAssign(t, e, persisted)
		case Restore:
			if persisted.State != RollingBack {
				t.Fatalf("restore while %s is persisted", persisted.State)
			}
		case AskGate:
			m.verifyAsk(t, e)
		case Finish:
			if i != len(effects)-1 || persisted.FinishedAt == nil || persisted.State != e.Status {
				t.Fatal("finish before its header")
			}
			if s.Counts()[ClassPending] != 0 || flying != 0 {
				t.Fatalf("finished with %v and %d in flight", s.Counts(), flying)
			}
			for i := range m.plan.Nodes {
				_, given := m.given[i]
				switch c := s.Class(i); {
				case c == ClassSuperseded && e.Status != Superseded:
					t.Fatalf("node %d ended as superseded in a rollout that is %s", i, e.Status)
				case given && c == ClassSkipped:
					t.Fatalf("node %d has an order and ended as skipped", i)
				case !given && c == ClassUnreachable && e.Status == Succeeded:
					t.Fatalf("node %d was left without an order", i)
				}
			}
		}
	}
}

func (m *model) verifyAssign(t *rapid.T, e Assign, persisted Header) {
	stage := m.s.Stage()
	lost := 0
	for _, i := range e.Nodes {
		if m.plan.StageOf(i) > stage || m.plan.StageOf(i) < 0 {
			t.Fatalf("node %d of stage %d assigned in stage %d", i, m.plan.StageOf(i), stage)
		}
		if slices.Contains(m.plan.Unchanged, i) {
			t.Fatalf("node %d is given an order for what it has", i)
		}
		if !m.s.Flying(i) {
			lost++
		}
		old, twice := m.given[i]
		switch {
		case !twice && e.Attempt == 0:
		case twice && e.Attempt == max(old.Attempt, 1)+1 && e.Attempt <= m.plan.Spec.Retry.Attempts &&
			m.reports[i].Order == old.Order && m.reports[i].Result == ResultFailed:
		default:
			t.Fatalf("node %d assigned twice: attempt %d after %+v", i, e.Attempt, old)
		}
	}
	// Never past a gate that did not pass, and that is durable first.
	for st := range stage {
		from, end := m.plan.Stage(st)
		if from < end && !m.promoted[st] && !m.skipped(st) {
			m.verifyGates(t, st, persisted)
		}
	}
	for st := range stage {
		if from, end := m.plan.Stage(st); m.plan.Spec.Stages[st].Promote == PromoteManual && from < end && !m.promoted[st] && !m.skipped(st) {
			t.Fatalf("assigned in stage %d, and stage %d was not promoted", stage, st)
		}
	}
	for st := range stage {
		f, c := m.plan.Spec.Stages[st].Failure, m.s.stages[st]
		tolerated := f != nil && f.MaxUnreachablePercent != nil && *f.MaxUnreachablePercent == 100
		if c[ClassUnreachable] > 0 && c[ClassApplied] == 0 && !tolerated && !m.resumed[st] && lost == 0 {
			t.Fatalf("assigned in stage %d, and nobody has shown anything in stage %d: %v", stage, st, c)
		}
	}
	if d := m.plan.Spec.Deadline; d > 0 && m.s.elapsed >= d && m.s.Status() != Waiting {
		t.Fatalf("assigned after %s, and the deadline is %s", m.s.elapsed, d)
	}
	if persisted.StageIndex != stage || persisted.State.Terminal() || persisted.State == Paused || persisted.State == RollingBack {
		t.Fatalf("assigned in stage %d while %s in stage %d is persisted", stage, persisted.State, persisted.StageIndex)
	}
	if mp := m.plan.Spec.Stages[stage].MaxParallel; lost == 0 && mp > 0 && m.s.InFlight() > mp {
		t.Fatalf("%d in flight, max_parallel is %d", m.s.InFlight(), mp)
	}
	if !m.open && lost == 0 {
		t.Fatal("assigned outside of the window")
	}
	m.verifyBudget(t, e, persisted)
}

// verifyBudget: never more failures than the budget and what was in flight
// when it was used up. What is in flight may still fail, but nothing is added;
// and nodes that are tried again count as failed before any new one is put at
// risk.
func (m *model) verifyBudget(t *rapid.T, e Assign, persisted Header) {
	over, doubt := m.over(-1), m.doubt(-1)
	if over > m.plan.Spec.Failure.MaxFailed {
		t.Fatalf("assigned after %d failures, the budget is %d", over, m.plan.Spec.Failure.MaxFailed)
	}
	if n := persisted.Budget.Failed; n < len(m.failed) {
		t.Fatalf("assigned while %d failures of %d are persisted", n, len(m.failed))
	}
	for st := range m.s.Stage() + 1 {
		if f := m.plan.Spec.Stages[st].Failure; f != nil && f.MaxFailed != nil && m.over(st) > *f.MaxFailed {
			t.Fatalf("assigned after %d failures in stage %d, its budget is %d", m.over(st), st, *f.MaxFailed)
		}
	}
	if e.Attempt > 0 {
		return
	}
	if doubt > 0 && over+doubt > m.plan.Spec.Failure.MaxFailed {
		t.Fatalf("new nodes assigned with %d failures and %d in doubt, the budget is %d", over, doubt, m.plan.Spec.Failure.MaxFailed)
	}
	for st := range m.s.Stage() + 1 {
		if f := m.plan.Spec.Stages[st].Failure; f != nil && f.MaxFailed != nil && m.doubt(st) > 0 && m.over(st)+m.doubt(st) > *f.MaxFailed {
			t.Fatalf("new nodes assigned with %d failures and %d in doubt in stage %d, its budget is %d", m.over(st), m.doubt(st), st, *f.MaxFailed)
		}
	}
	m.atRisk = len(m.unanswered()) + len(e.Nodes)
}

// skipped: all nodes of a stage are, so there was nothing to watch.
func (m *model) skipped(stage int) bool {
	for from, end := m.plan.Stage(stage); from < end; from++ {
		if m.s.Class(from) != ClassSkipped {
			return false
		}
	}
	return true
}

// over is how many nodes of a stage, or of all for -1, have failed and are not
// forgiven.
func (m *model) over(stage int) (n int) {
	for i := range m.failed {
		if !m.forgiven[i] && (stage < 0 || m.plan.StageOf(i) == stage) {
			n++
		}
	}
	return n
}

// doubt is how many nodes have failed and are tried again.
func (m *model) doubt(stage int) (n int) {
	for i := range m.plan.Nodes {
		g, given := m.given[i]
		if !given || g.Restore || m.failed[i] || m.s.Class(i) == ClassFailed || stage >= 0 && m.plan.StageOf(i) != stage {
			continue
		}
		answered := m.reports[i].Order == g.Order
		if answered && m.reports[i].Result == ResultFailed || !answered && g.Attempt > 1 && m.s.Flying(i) {
			n++
		}
	}
	return n
}

// forgive is what a resume does.
func (m *model) forgive() {
	for i := range m.failed {
		m.forgiven[i] = true
	}
	m.resumed[m.s.Stage()] = true
}

// verifyBooks holds what the state counts against the nodes.
func (m *model) verifyBooks(t *rapid.T) {
	s := m.s
	use := make([]stageUse, len(s.perStage))
	waiting, doubt := 0, 0
	for i := range s.nodes {
		n := &s.nodes[i]
		d := 0
		if n.waiting || n.flying && n.again() {
			d = 1
		}
		if n.waiting {
			waiting++
			if n.flying || n.class != ClassPending || n.order.IsZero() {
				t.Fatalf("node %d waits for another attempt as %+v", i, *n)
			}
		}
		doubt += d
		if st := m.plan.StageOf(i); st >= 0 {
			use[st].count(n.class, 1)
			use[st].doubt += d
		}
	}
	if waiting != s.nWaiting || doubt != s.doubt {
		t.Fatalf("%d waiting and %d in doubt, and the nodes say %d and %d", s.nWaiting, s.doubt, waiting, doubt)
	}
	for i, u := range use {
		p := s.perStage[i]
		if u.forgivenFailed, u.forgivenUnreachable = p.forgivenFailed, p.forgivenUnreachable; u != p {
			t.Fatalf("stage %d counts %+v, and its nodes say %+v", i, p, u)
		}
	}
}

// act does one thing at random, and returns the event, or nil.
func (m *model) act(t *rapid.T) Event {
	pick := func(list []int, what string) int { return list[rapid.IntRange(0, len(list)-1).Draw(t, what)] }
	switch rapid.IntRange(0, 11).Draw(t, "act") {
	default: // answers
		open := m.unanswered()
		if len(open) == 0 {
			return Tick{}
		}
		var rs Reports
		for range rapid.IntRange(1, len(open)).Draw(t, "answers") {
			i := pick(open, "who")
			ok := rapid.IntRange(0, 5).Draw(t, "ok") > 0
			r, fresh := m.answer(i, ok, "")
			if !fresh {
				r = m.reports[i]
			} else if g := m.given[i]; !ok && !g.Restore && (m.plan.Spec.Retry == nil || max(g.Attempt, 1) >= m.plan.Spec.Retry.Attempts) {
				m.failed[i] = true
			}
			rs = append(rs, r)
		}
		return rs
	case 6:
		m.now = m.now.Add(time.Duration(rapid.IntRange(0, 150).Draw(t, "seconds")) * time.Second)
		return Tick{}
	case 7:
		i := []int{rapid.IntRange(0, len(m.plan.Nodes)-1).Draw(t, "node")}
		if rapid.Bool().Draw(t, "up") {
			return Health{Up: i}
		}
		return Health{Down: i}
	case 8:
		if m.plan.Spec.Window == nil {
			return Tick{}
		}
		m.open = rapid.Bool().Draw(t, "open")
		return WindowChanged{m.open}
	case 9:
		if len(m.asks) == 0 {
			return Tick{}
		}
		ask := m.asks[len(m.asks)-1]
		m.asks = m.asks[:len(m.asks)-1]
		return m.gateAnswer(t, ask, rapid.SampledFrom([]Answer{Pass, Pass, Pass, Pass, Fail, Unknown, Pending, "error", "nonsense"}).Draw(t, "answer"))
	case 10:
		verb := rapid.SampledFrom([]Verb{Pause, Pause, Resume, Resume, Resume, Promote, Skip, Abort, Rollback, MakeRoom}).Draw(t, "verb")
		n := uint64(1)
		if m.header.Command != nil {
			n = m.header.Command.N + 1
		}
		c := OperatorCommand{N: n, Verb: verb, By: "test"}
		if verb == Skip && rapid.Bool().Draw(t, "whole stage") {
			c.Stage = m.plan.Spec.Stages[rapid.IntRange(0, len(m.plan.Spec.Stages)-1).Draw(t, "stage")].Name
		} else if verb == Skip {
			c.Nodes = []string{m.plan.Nodes[rapid.IntRange(0, len(m.plan.Nodes)-1).Draw(t, "node")]}
		}
		p, bound := m.s.pause, rapid.IntRange(0, 2).Draw(t, "knows of pauses")
		if bound > 0 { // the newest one, or only those before it
			seen := m.s.pauses - uint64(min(bound-1, int(m.s.pauses)))
			c.Pause = &seen
		}
		unseen := p != nil && c.Pause != nil && *c.Pause != m.s.pauses
		if unseen && verb == Resume {
			p = nil // it ends nothing
			m.mustStay = m.s.pauses
		}
		if p != nil && p.Cause == CauseFailure && verb == Resume {
			m.forgive()
		}
		overrules := p == nil || p.Cause != CauseFailure && (!unseen || p.Cause == CausePromotion || p.Cause == CauseOperator)
		if verb == Promote && !m.s.Status().Terminal() && m.s.Status() != RollingBack && overrules {
			m.promoted[m.s.Stage()] = true
		}
		if p != nil && p.Cause == CauseGate && verb == Resume {
			m.measureAnew()
		}
		return c
	}
}

// TestProperties drives rollouts by random events, kills the process between
// any two effects, and checks at every step what must never happen; then the
// world turns friendly, and the rollout must end.
func TestProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, t)
		m.start()
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			if m.finished {
				break
			}
			if rapid.IntRange(0, 7).Draw(rt, "crash") == 0 {
				m.restart(rt)
				continue
			}
			ev := m.act(rt)
			n := -1
			if rapid.IntRange(0, 7).Draw(rt, "die") == 0 {
				n = rapid.IntRange(0, 3).Draw(rt, "after")
				m.torn = rapid.IntRange(0, 5).Draw(rt, "torn")
			}
			if m.step(ev, n); m.s == nil {
				m.restart(rt)
			}
		}
		m.calm(rt)
		if n := m.over(-1); n > m.plan.Spec.Failure.MaxFailed+m.atRisk {
			rt.Fatalf("%d failed, the budget is %d, and %d were at risk", n, m.plan.Spec.Failure.MaxFailed, m.atRisk)
		}
	})
}

// restart replaces the process, and holds what it recovers against what was.
func (m *model) restart(t *rapid.T) {
	old := m.s
	m.start()
	m.resync()
	if old == nil {
		return
	}
	for i := range m.plan.Nodes {
		a, b := old.Class(i), m.s.Class(i)
		// A rollback forgets what it comes from, and an answer that the old
		// process had not read is known to the new one.
		late := m.given[i].Order == m.reports[i].Order
		if a != b && !late && m.ended == "" {
			t.Fatalf("node %d was %s and is recovered as %s", i, a, b)
		}
	}
}

// resync tells a new process what it can see: the window.
func (m *model) resync() {
	if m.plan.Spec.Window != nil && m.open {
		m.step(WindowChanged{true}, -1)
	}
}

// calm makes everything work, and the rollout must come to its end.
func (m *model) calm(t *rapid.T) {
	m.open = true
	for i := 0; !m.finished; i++ {
		if i > 400 {
			t.Fatalf("no end in sight: %s (%s) in stage %d, %v, in flight %d", m.s.Status(), m.s.reason, m.s.Stage(), m.s.Counts(), m.s.InFlight())
		}
		m.step(WindowChanged{true}, -1)
		var rs Reports
		for _, n := range m.unanswered() {
			if r, ok := m.answer(n, true, ""); ok {
				rs = append(rs, r)
			}
		}
		m.step(rs, -1)
		asks := m.asks
		m.asks = nil
		for _, a := range asks {
			m.step(m.gateAnswer(t, a, Pass), -1)
		}
		if m.s.Status() == Paused && !m.finished {
			verb := m.s.pause.Cause.Way()
			switch m.s.pause.Cause {
			case CauseFailure:
				m.forgive()
			case CausePromotion, CauseDeadline:
				// Where the deadline passes while it waits to be promoted,
				// promote does for both.
				verb = Promote
				m.promoted[m.s.Stage()] = true
			}
			if m.s.pause.Cause == CauseGate {
				m.measureAnew()
			}
			n := uint64(1)
			if m.header.Command != nil {
				n = m.header.Command.N + 1
			}
			m.step(OperatorCommand{N: n, Verb: verb, By: "calm"}, -1)
		}
		if wake := m.s.NextWake(); wake.After(m.now) {
			m.now = wake
		}
		m.step(Tick{}, -1)
	}
	// Another rollout of its config gives those nodes their next order.
	elsewhere := m.s.Status() == Superseded
	if len(m.unanswered()) > 0 && m.s.Status() != Aborted && m.s.Status() != RolledBack && !elsewhere {
		for _, i := range m.unanswered() {
			if c := m.s.Class(i); c != ClassUnreachable && c != ClassFailed {
				t.Fatalf("node %d has no answer and ended as %s", i, c)
			}
		}
	}
}

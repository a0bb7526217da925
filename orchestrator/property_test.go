package orchestrator

import (
	"encoding/json"
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
		if rapid.Bool().Draw(t, "by nodes") {
			st.Nodes = rapid.IntRange(1, 4).Draw(t, "nodes")
		} else {
			percent = rapid.IntRange(max(percent, 1), 100).Draw(t, "percent")
			st.Percent = percent
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
			UnknownLimit: limit("unknown_limit", 2), ConsecutiveErrorLimit: limit("consecutive_error_limit", 2),
			During: rapid.SampledFrom([]string{"", DuringBake}).Draw(t, "during"),
		})
	}
	spec.Failure = Failure{
		MaxFailed:             rapid.IntRange(0, 3).Draw(t, "max_failed"),
		MaxUnreachablePercent: rapid.SampledFrom([]int{0, 20, 100}).Draw(t, "max_unreachable"),
		Then:                  rapid.SampledFrom([]string{ThenPause, ThenRollback, ThenAbort}).Draw(t, "then"),
	}
	if rapid.Bool().Draw(t, "window") {
		spec.Window = &Window{}
	}
	return spec
}

// model is what the properties rest on, counted apart from the core.
type model struct {
	*world
	failed, forgiven map[int]bool // nodes that failed to apply
	promoted         map[int]bool // stages that an operator promoted
	measures         map[measure]*tally
	stageAsked       map[*State]map[int]int // of a process, ask -> stage
	ended            Status                 // terminal or rolling back: no way out
	open             bool
}

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("3000") // a check takes a tenth of a millisecond
	}
	os.Exit(m.Run())
}

func newModel(t *rapid.T, tb testing.TB) *model {
	spec := drawSpec(t)
	plan, err := NewPlan("r-1", spec, fleet(rapid.IntRange(1, 25).Draw(t, "fleet")), t0)
	if err != nil {
		t.Fatal(err)
	}
	m := &model{
		world: newWorld(tb, plan), failed: map[int]bool{}, forgiven: map[int]bool{},
		promoted: map[int]bool{}, measures: map[measure]*tally{}, stageAsked: map[*State]map[int]int{}, open: spec.Window == nil,
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
	// Abort and rollback are terminal, once they are durable.
	if st := m.header.State; st.Terminal() || st == RollingBack {
		m.ended = st
	}
	if m.ended != "" && s.Status() != m.ended && !(m.ended == RollingBack && (s.Status() == RolledBack || s.Status() == Failed)) {
		t.Fatalf("%s after %s", s.Status(), m.ended)
	}
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
		if !m.s.Flying(i) {
			lost++
		}
		if _, twice := m.given[i]; twice {
			t.Fatalf("node %d assigned twice", i)
		}
	}
	// Never past a gate that did not pass, and that is durable first.
	for st := range stage {
		from, end := m.plan.Stage(st)
		if from < end && !m.promoted[st] {
			m.verifyGates(t, st, persisted)
		}
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
	// Never more failures than the budget: what was in flight when it was
	// used up may still fail, but nothing is added.
	over := 0
	for i := range m.failed {
		if !m.forgiven[i] {
			over++
		}
	}
	if over > m.plan.Spec.Failure.MaxFailed {
		t.Fatalf("assigned after %d failures, the budget is %d", over, m.plan.Spec.Failure.MaxFailed)
	}
	if persisted.Budget.Failed != len(m.failed) {
		t.Fatalf("assigned while %d failures of %d are persisted", persisted.Budget.Failed, len(m.failed))
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
			} else if !ok && !m.given[i].Restore {
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
		verb := rapid.SampledFrom([]Verb{Pause, Pause, Resume, Resume, Resume, Promote, Skip, Abort, Rollback}).Draw(t, "verb")
		n := uint64(1)
		if m.header.Command != nil {
			n = m.header.Command.N + 1
		}
		c := OperatorCommand{N: n, Verb: verb, By: "test"}
		if verb == Skip {
			c.Nodes = []string{m.plan.Nodes[rapid.IntRange(0, len(m.plan.Nodes)-1).Draw(t, "node")]}
		}
		p := m.s.pause
		if p != nil && p.Cause == CauseFailure && verb == Resume {
			for i := range m.failed {
				m.forgiven[i] = true
			}
		}
		if verb == Promote && !m.s.Status().Terminal() && m.s.Status() != RollingBack && !(p != nil && p.Cause == CauseFailure) {
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
			}
			if m.step(ev, n); m.s == nil {
				m.restart(rt)
			}
		}
		m.calm(rt)
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
			t.Fatalf("no end in sight: %s in stage %d, %v, in flight %d", m.s.Status(), m.s.Stage(), m.s.Counts(), m.s.InFlight())
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
			if m.s.pause.Cause == CauseFailure {
				for i := range m.failed {
					m.forgiven[i] = true
				}
			}
			if m.s.pause.Cause == CauseGate {
				m.measureAnew()
			}
			n := uint64(1)
			if m.header.Command != nil {
				n = m.header.Command.N + 1
			}
			m.step(OperatorCommand{N: n, Verb: Resume, By: "calm"}, -1)
		}
		if wake := m.s.NextWake(); wake.After(m.now) {
			m.now = wake
		}
		m.step(Tick{}, -1)
	}
	if len(m.unanswered()) > 0 && m.s.Status() != Aborted && m.s.Status() != RolledBack {
		for _, i := range m.unanswered() {
			if c := m.s.Class(i); c != ClassUnreachable && c != ClassFailed {
				t.Fatalf("node %d has no answer and ended as %s", i, c)
			}
		}
	}
}

// TestReplay: the same events at the same times give the same effects and the
// same header, byte for byte.
func TestReplay(t *testing.T) {
	type input struct {
		ev  Event
		now time.Time
	}
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, t)
		var log []input
		var first []string
		verify := m.check
		m.check = func(ev Event, effects []Effect) {
			verify(ev, effects)
			log = append(log, input{ev, m.now})
			first = append(first, render(effects))
		}
		m.start()
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			if m.finished {
				break
			}
			m.step(m.act(rt), -1)
		}
		s := NewState(m.plan)
		for i, in := range log {
			var effects []Effect
			s, effects = Step(s, in.ev, in.now)
			if got := render(effects); got != first[i] {
				rt.Fatalf("step %d: first\n%s\nthen\n%s", i, first[i], got)
			}
		}
	})
}

func render(effects []Effect) string {
	var out string
	for _, e := range effects {
		b, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		out += fmt.Sprintf("%T %s\n", e, b)
	}
	return out
}

func TestIndexSet(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := rapid.MapOf(rapid.IntRange(0, 3000), rapid.Just(true)).Draw(rt, "set")
		var want IndexSet
		for i := range 3001 {
			if m[i] {
				want = append(want, i)
			}
		}
		b, err := json.Marshal(want)
		if err != nil {
			rt.Fatal(err)
		}
		var got IndexSet
		if err := json.Unmarshal(b, &got); err != nil || !slices.Equal(got, want) {
			rt.Fatalf("%s became %v (%v)", b, got, err)
		}
	})
	var half IndexSet
	for i := 0; i < 10000; i += 2 {
		half = append(half, i)
	}
	b, err := json.Marshal(half)
	if err != nil || len(b) > 1700 {
		t.Errorf("every other of 10,000 nodes takes %d bytes (%v)", len(b), err)
	}
	for _, bad := range []string{`"1,0"`, `"5-3"`, `"x"`, `"-1"`, `"0-99999999"`, `"bitmap:@"`, `3`} {
		var s IndexSet
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s was taken as %v", bad, s)
		}
	}
}

package orchestrator

import "pgregory.net/rapid"

// measure names what is measured: a gate in a stage.
type measure struct {
	stage int
	gate  string
}

// tally is what the outside told the processes about one measure since it was
// last begun anew, counted apart from the core. A process may die before it has
// kept an answer, so that it knows of fewer, and never of more.
type tally struct{ pass, fail, unknown, errors int }

func (m *model) tally(stage int, gate string) *tally {
	k := measure{stage, gate}
	if m.measures[k] == nil {
		m.measures[k] = &tally{}
	}
	return m.measures[k]
}

// measureAnew: an operator has looked at the gates of the present stage.
func (m *model) measureAnew() {
	for k := range m.measures {
		if k.stage == m.s.Stage() {
			delete(m.measures, k)
		}
	}
}

func (m *model) verifyAsk(t *rapid.T, e AskGate) {
	s := m.s
	if m.stageAsked[s] == nil {
		m.stageAsked[s] = map[int]int{}
	}
	if _, twice := m.stageAsked[s][e.Ask]; twice {
		t.Fatalf("question %d is put twice", e.Ask)
	}
	m.stageAsked[s][e.Ask] = s.Stage()
	if s.Status() != Baking || e.Stage != m.plan.Spec.Stages[s.Stage()].Name {
		t.Fatalf("gate %s of stage %s is asked while %s in stage %d", e.Gate.Name, e.Stage, s.Status(), s.Stage())
	}
	if e.Gate.During != DuringBake && m.now.Before(s.Baked()) {
		t.Fatalf("gate %s is asked before the bake is over", e.Gate.Name)
	}
	for _, a := range m.asks {
		if a.Gate.Name == e.Gate.Name && m.stageAsked[s][a.Ask] == s.Stage() && !m.measuredAnew(a) {
			t.Fatalf("gate %s is asked twice at a time", e.Gate.Name)
		}
	}
}

// measuredAnew reports whether nobody waits for the answer any more.
func (m *model) measuredAnew(a AskGate) bool {
	for _, g := range m.s.gates {
		if g.ask == a.Ask {
			return false
		}
	}
	return true
}

// gateAnswer answers a question, and counts what counts.
func (m *model) gateAnswer(_ *rapid.T, ask AskGate, a Answer) GateAnswered {
	ev := GateAnswered{Ask: ask.Ask, Gate: ask.Gate.Name, Answer: a}
	if a == "error" {
		ev.Answer, ev.Error = Unknown, true
	}
	if st := m.stageAsked[m.s][ask.Ask]; st != m.s.Stage() || m.measuredAnew(ask) {
		return ev
	}
	n := m.tally(m.s.Stage(), ask.Gate.Name)
	switch a {
	case Pass:
		n.pass, n.errors = n.pass+1, 0
	case Fail:
		n.fail, n.errors = n.fail+1, 0
	case Pending:
		n.errors = 0
	case "error":
		n.errors++
	default:
		n.unknown, n.errors = n.unknown+1, 0
	}
	return ev
}

// verifyGates: a stage is behind the rollout only if every gate of it has had
// all its passes, and neither fails nor unknown answers beyond its limits.
func (m *model) verifyGates(t *rapid.T, stage int, persisted Header) {
	st := m.plan.Spec.Stages[stage]
	for _, name := range st.Gate {
		var g Gate
		for _, c := range m.plan.Spec.Gates {
			if c.Name == name {
				g = c
			}
		}
		if n := m.tally(stage, name); n.pass < max(g.SuccessLimit, 1) {
			t.Fatalf("assigned past gate %s of stage %d with %+v, it needs %d passes", name, stage, *n, max(g.SuccessLimit, 1))
		}
		found := false
		for _, h := range persisted.Gates {
			if h.Stage != st.Name || h.Name != name {
				continue
			}
			found = true
			if h.State != GatePassed || h.Failed > g.FailureLimit || h.Unknown > g.UnknownLimit || h.Errors > g.tolerates() {
				t.Fatalf("assigned past gate %s of stage %d: %+v", name, stage, h)
			}
		}
		if !found {
			t.Fatalf("gate %s of stage %d is not in the header", name, stage)
		}
	}
}

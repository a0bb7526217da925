package orchestrator

import (
	"testing"

	"pgregory.net/rapid"
)

// TestTwoRunners: the lock changes hands while the old holder does not know,
// and both go on. Consul refuses every write of the old one, so the first
// durable effect ends it; and nothing of a Step may be done, nor anybody be
// told that the rollout has finished, before its durable effects are.
func TestTwoRunners(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, t)
		m.start()
		var stale []*State
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			if m.finished {
				break
			}
			switch rapid.IntRange(0, 9).Draw(rt, "who") {
			case 0: // another takes the lock, and the old one lives on
				stale = append(stale, m.s)
				m.start()
				m.resync()
			case 1, 2, 3:
				if len(stale) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(stale)-1).Draw(rt, "stale")
				if refused(rt, m, &stale[i]) {
					stale = append(stale[:i], stale[i+1:]...)
				}
			default:
				m.step(m.act(rt), -1)
			}
			if m.header.Token != m.token {
				rt.Fatalf("the header is of token %d, and %d holds", m.header.Token, m.token)
			}
		}
		m.calm(rt)
	})
}

// refused feeds an event to a runner that has lost the lock. Its writes are
// refused: it returns true when it has met one, and is dead.
func refused(t *rapid.T, m *model, s **State) bool {
	var ev Event = Tick{}
	switch rapid.IntRange(0, 3).Draw(t, "learns") {
	case 0:
		var rs Reports
		for _, r := range m.reports {
			rs = append(rs, r)
		}
		ev = rs
	case 1:
		ev = WindowChanged{Open: true}
	case 2:
		ev = OperatorCommand{N: 1000, Verb: rapid.SampledFrom(Verbs).Draw(t, "verb"), By: "stale"}
	}
	before := (*s).status
	var effects []Effect
	*s, effects = Step(*s, ev, m.now)
	for _, e := range effects {
		switch e.(type) {
		case Persist, Assign, Restore:
			return true // and what stands behind it is not done
		case Finish:
			t.Fatal("a runner that lost the lock has finished the rollout")
		}
	}
	if st := (*s).status; st != before {
		t.Fatalf("it became %s, after %s, without writing so", st, before)
	}
	return false
}

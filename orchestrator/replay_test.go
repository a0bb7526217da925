package orchestrator

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestReplay: the same events at the same times give the same effects and the
// same header, byte for byte.
func TestReplay(t *testing.T) {
	t.Parallel()
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

package orchestrator

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestNoRemoteClockEndsABake: holders come and go, each with a clock of its own
// that is days off. A bake never ends before its time was watched, as the holds
// counted it, and always once it was.
func TestNoRemoteClockEndsABake(t *testing.T) {
	t.Parallel()
	const bake = 10 * time.Minute
	plan, err := NewPlan("r", Spec{
		Name: "r", Hash: "h", Configs: []Config{{Name: "c"}},
		Stages: []Stage{{Name: "one", Nodes: 1, Bake: bake}, {Name: "rest", Percent: 100}},
	}, []Node{{Name: "a"}, {Name: "b"}}, time.Unix(1_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, plan)
		w.start()
		if r, ok := w.answer(0, true, ""); ok {
			w.step(Reports{r}, -1)
		}
		if w.s.Status() != Baking {
			rt.Fatalf("it is %s", w.s.Status())
		}
		var watched, counted time.Duration // in all, and as the next holder knows
		for w.s.Stage() == 0 {
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0: // the holder dies, and the next one's clock is anywhere
				w.now = w.now.Add(time.Duration(rapid.Int64Range(-72, 72).Draw(rt, "hours off")) * time.Hour)
				w.start()
				watched = counted
			case 1: // it writes its header, as the runner does now and then
				w.header = w.s.Header()
				counted = watched
			default:
				d := time.Duration(rapid.Int64Range(1, 200).Draw(rt, "seconds")) * time.Second
				w.now = w.now.Add(d)
				watched += d
				w.step(Tick{}, -1)
			}
			if past := w.s.Stage() == 1; past != (watched >= bake) {
				rt.Fatalf("%s were counted, and the next stage has begun: %v", watched, past)
			}
		}
	})
}

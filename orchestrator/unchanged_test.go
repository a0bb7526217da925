package orchestrator

import (
	"testing"
	"time"
)

// TestUnchangedNodes: they are done from the beginning, get no order, and are
// neither skipped nor taken back. A rollout of what all have is not watched.
func TestUnchangedNodes(t *testing.T) {
	stages := []Stage{{Name: "a", Nodes: 2, Bake: time.Hour}, {Name: "rest", Percent: 100, Bake: time.Hour}}
	start := func(unchanged ...int) *world {
		spec := testSpec(stages...)
		spec.Failure.Then = ThenRollback
		plan, err := NewPlan("r-1", spec, fleet(5), t0)
		if err != nil {
			t.Fatal(err)
		}
		plan.SetUnchanged(unchanged)
		w := newWorld(t, plan)
		w.start()
		return w
	}
	w := start(0, 1, 2, 3, 4)
	if w.wants(t, Succeeded, ""); len(w.given) != 0 || w.s.Counts() != (Counts{ClassApplied: 5}) {
		t.Errorf("all unchanged: %d orders, %v", len(w.given), w.s.Counts())
	}

	// The stage of unchanged nodes alone is watched where others are to come.
	w = start(0, 1, 4)
	if w.s.Status() != Baking || len(w.given) != 0 {
		t.Fatalf("%s with %d orders", w.s.Status(), len(w.given))
	}
	w.start()
	w.now = w.now.Add(time.Hour)
	w.step(Tick{}, -1)
	if len(w.given) != 2 || w.header.Stages[1].Done != 1 {
		t.Fatalf("%d orders, %+v", len(w.given), w.header.Stages)
	}
	w.step(OperatorCommand{N: 1, Verb: Skip, Nodes: []string{"n5"}, By: "sam"}, -1)
	if w.s.command.OK {
		t.Errorf("a node that has it was skipped: %+v", w.s.command)
	}
	r, _ := w.answer(2, false, "bad")
	w.step(Reports{r}, -1)
	w.wants(t, RollingBack, "1 failed")
	w.answerAll()
	w.wants(t, RolledBack, "1 failed")
	if got := w.s.Counts(); got != (Counts{ClassRolledBack: 4, ClassFailed: 1}) || len(w.given) != 2 {
		t.Errorf("%v, %d orders", got, len(w.given))
	}
}

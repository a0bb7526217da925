package orchestrator

import (
	"testing"
	"time"
)

// An estimate sums nodes, bakes and gates of the stages that have nodes, and
// of a rollout at work only what is left.
func TestEstimate(t *testing.T) {
	t.Parallel()
	var a Answers
	for range 100 {
		a.Add(time.Second)
	}
	spec := Spec{
		Configs: []Config{{Name: "c"}},
		Stages: []Stage{
			{Name: "one", Nodes: 1, Bake: time.Minute, Gate: []string{"g"}},
			{Name: "none", Percent: 1, Bake: time.Hour, Gate: []string{"g"}},
			{Name: "rest", Percent: 100, MaxParallel: 9, Promote: "manual"},
		},
		Gates: []Gate{{Name: "g", SuccessLimit: 4, Interval: 10 * time.Second}},
	}
	var fleet []Node
	for i := range 100 {
		fleet = append(fleet, Node{Name: string(rune('a'+i/26)) + string(rune('a'+i%26))})
	}
	p, err := NewPlan("x", spec, fleet, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	want := Estimate{Known: true, Nodes: 12 * time.Second, Bakes: time.Minute, Gates: 1, Asking: 30 * time.Second, Manual: 1}
	if got := EstimateNew(p, &a); got != want {
		t.Errorf("of the plan: %+v, want %+v", got, want)
	}
	if got := EstimateNew(p, nil); got.Known || got.Total() != 90*time.Second {
		t.Errorf("of the plan, with nothing measured: %+v", got)
	}
	now := time.Unix(1000, 0)
	baking := now.Add(-20 * time.Second)
	h := &Header{BakingSince: &baking, Stages: []HeaderStage{{Name: "one", End: 1, Done: 1}, {Name: "none", From: 1, End: 1}, {Name: "rest", From: 1, End: 100}}}
	want.Nodes, want.Bakes = 11*time.Second, 40*time.Second
	if got := EstimateRest(h, &spec, &a, now); got != want {
		t.Errorf("of the rest: %+v, want %+v", got, want)
	}
	h.StageIndex, h.BakingSince = 2, nil
	h.Stages[2].Done = 90
	want = Estimate{Known: true, Nodes: time.Second, Manual: 1}
	if got := EstimateRest(h, &spec, &a, now); got != want {
		t.Errorf("of the last stage: %+v, want %+v", got, want)
	}
	h.FinishedAt = &now
	if got := EstimateRest(h, &spec, &a, now); got.Total() != 0 {
		t.Errorf("of nothing: %+v", got)
	}
}

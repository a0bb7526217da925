package orchestrator

import "testing"

// BenchmarkCountRollout plans and steps a rollout to 10,000 nodes. Its counts are held
// to a baseline: make bench-check.
func BenchmarkCountRollout(b *testing.B) {
	nodes := fleet(10_000, "a", "b", "c")
	spec := testSpec(Stage{Name: "one", Nodes: 1}, Stage{Name: "rest", Percent: 100, MaxParallel: 5000})
	spec.Spread = "zone"
	b.ReportAllocs()
	for b.Loop() {
		plan, err := NewPlan("r", spec, nodes, t0)
		if err != nil {
			b.Fatal(err)
		}
		drive(b, NewState(plan))
	}
}

package orchestrator

import (
	"encoding/json"
	"fmt"
	"testing"
)

// BenchmarkRollout plans and steps whole rollouts: every node is assigned in a
// sliding window of 5,000, answers once, in batches of 500, and is counted.
func BenchmarkRollout(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		nodes := fleet(n, "a", "b", "c")
		spec := testSpec(Stage{Name: "one", Nodes: 1}, Stage{Name: "tenth", Percent: 10, MaxParallel: 5000}, Stage{Name: "rest", Percent: 100, MaxParallel: 5000})
		spec.Spread = "zone"
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				plan, err := NewPlan("r", spec, nodes, t0)
				if err != nil {
					b.Fatal(err)
				}
				drive(b, NewState(plan))
			}
		})
	}
}

// drive is the shortest possible runner: it answers everything.
func drive(b *testing.B, s *State) {
	var queue []Report
	s, effects := Step(s, Acquired{Order{1, 1, 0}}, t0)
	for !s.Finished() {
		for _, e := range effects {
			if a, ok := e.(Assign); ok {
				for _, i := range a.Nodes {
					queue = append(queue, Report{Node: i, Order: a.Order, Result: ResultApplied})
				}
				s, _ = Step(s, Assigned{a.Order, a.Nodes}, t0)
			}
		}
		if len(queue) == 0 {
			b.Fatalf("stuck: %s %v", s.Status(), s.Counts())
		}
		k := min(500, len(queue))
		s, effects = Step(s, Reports(queue[:k]), t0)
		queue = queue[k:]
	}
	if s.Counts()[ClassApplied] != len(s.plan.Nodes) {
		b.Fatalf("%v", s.Counts())
	}
}

// TestHeaderStaysSmall: 10,000 nodes in the worst mixture of classes.
func TestHeaderStaysSmall(t *testing.T) {
	p, err := NewPlan("r", testSpec(Stage{Name: "all", Percent: 100}), fleet(10_000), t0)
	if err != nil {
		t.Fatal(err)
	}
	s := NewState(p)
	s.now = t0
	why := string(make([]byte, 1000))
	for i := range s.nodes {
		s.setClass(i, Class(i*7919%int(classes)))
		s.problem(i, why)
	}
	b, err := json.Marshal(s.Header())
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 64<<10 {
		t.Errorf("the header of 10,000 nodes has %d bytes", len(b))
	}
}

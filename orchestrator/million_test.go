package orchestrator

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

// BenchmarkMillion plans and steps a rollout of 1,000,000 nodes, listed in no
// order and spread over zones: a window of 5,000, answers in batches of 500, a
// header for every hundredth batch, as a runner writes it once a second.
//
//	plain       three stages by number
//	selected    a stage by select and one by order before them
//	retried     every thousandth node fails twice before it succeeds
//
// peak-MB is the most of the heap that was in use, the fleet included. Aim: 2 s
// and 1 GB.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	nodes := fleet(n, "a", "b", "c")
	rnd := rand.New(rand.NewPCG(1, 2))
	rnd.Shuffle(n, func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	three := []Stage{{Name: "one", Nodes: 1}, {Name: "tenth", Percent: 10, MaxParallel: 5000}, {Name: "rest", Percent: 100, MaxParallel: 5000}}
	plain := testSpec(three...)
	plain.Spread = "zone"
	selected := testSpec(append([]Stage{
		{Name: "first", Order: []string{nodes[0].Name, nodes[n-1].Name}},
		{Name: "b", Select: "b", Percent: 1, MaxParallel: 5000},
	}, three...)...)
	selected.Spread = "zone"
	retried := plain
	retried.Retry = &Retry{Attempts: 3, Delay: time.Second, MaxDelay: time.Second}
	retried.Failure.MaxFailed = n
	for _, c := range []struct {
		name string
		spec Spec
		bad  int
	}{{"plain", plain, 0}, {"selected", selected, 0}, {"retried", retried, 1000}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var peak uint64
			for b.Loop() {
				plan, err := NewPlan("r", c.spec, nodes, t0, Selecting(inZone(&c.spec)))
				if err != nil {
					b.Fatal(err)
				}
				peak = max(peak, answerMillion(b, NewState(plan), c.bad))
			}
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
		})
	}
}

// answerMillion drives a rollout to its end; every bad-th node fails until its
// last attempt. It returns the most of the heap that was in use.
func answerMillion(b *testing.B, s *State, bad int) (peak uint64) {
	type open struct {
		node    int
		order   Order
		attempt int
	}
	var queue []open
	now := t0
	s, effects := Step(s, Acquired{Order{1, 1, 0}}, now)
	for step := 0; !s.Finished(); step++ {
		for _, e := range effects {
			if a, ok := e.(Assign); ok {
				for _, i := range a.Nodes {
					queue = append(queue, open{i, a.Order, a.Attempt})
				}
				s, _ = Step(s, Assigned{a.Order, a.Nodes}, now)
			}
		}
		if step%100 == 0 {
			_ = s.Header()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		}
		if len(queue) == 0 {
			wake := s.NextWake()
			if s.Finished() || !wake.After(now) {
				b.Fatalf("stuck: %s %v", s.Status(), s.Counts())
			}
			now = wake
			s, effects = Step(s, Tick{}, now)
			continue
		}
		k := min(500, len(queue))
		rs := make(Reports, k)
		for j, o := range queue[:k] {
			rs[j] = Report{Node: o.node, Order: o.order, Result: ResultApplied}
			if bad > 0 && o.node%bad == 0 && o.attempt < 3 {
				rs[j].Result = ResultFailed
			}
		}
		// In place: what is measured is the core, and not this queue's garbage.
		queue = slices.Delete(queue, 0, k)
		now = now.Add(time.Millisecond)
		s, effects = Step(s, rs, now)
	}
	if s.Counts()[ClassApplied] != len(s.plan.Nodes) {
		b.Fatalf("%v", s.Counts())
	}
	return peak
}

package orchestrator_test

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// simulation is a Consul and a fleet for the pure core, in virtual time.
type simulation struct {
	// node is how long a node takes from its order to its answer.
	node func(name string) time.Duration
	// orders and answers are what the Consul takes in a second.
	orders, answers int
	// look is how often the orchestrator reads.
	look time.Duration
}

// aServer is what one busy server was measured to take, and some less, with
// nodes that take 2 to 6 seconds, one in a hundred half a minute.
func aServer() simulation {
	return simulation{
		orders: 10_000, answers: 2_000, look: 200 * time.Millisecond,
		node: func(name string) time.Duration {
			h := fnv.New32a()
			_, _ = h.Write([]byte(name))
			n := h.Sum32()
			if n%100 == 0 {
				return 30 * time.Second
			}
			return 2*time.Second + time.Duration(n>>8%4000)*time.Millisecond
		},
	}
}

type answer struct {
	at     time.Time
	report orchestrator.Report
}

// answers is a heap of them, the first on top.
type answers []answer

func (a answers) Len() int           { return len(a) }
func (a answers) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a answers) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *answers) Push(x any)        { *a = append(*a, x.(answer)) }
func (a *answers) Pop() any {
	old := *a
	last := old[len(old)-1]
	*a = old[:len(old)-1]
	return last
}

// run is how long a rollout takes.
func (sim simulation) run(t *testing.T, nodes int, stages ...orchestrator.Stage) time.Duration {
	t.Helper()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fleet := make([]orchestrator.Node, nodes)
	for i := range fleet {
		fleet[i].Name = fmt.Sprintf("n%07d", i)
	}
	plan, err := orchestrator.NewPlan("r", orchestrator.Spec{
		Name: "r", Configs: []orchestrator.Config{{Name: "c"}}, Stages: stages, NodeDeadline: 24 * time.Hour,
	}, fleet, start)
	if err != nil {
		t.Fatal(err)
	}
	s := orchestrator.NewState(plan)
	var queue answers
	now, free := start, start // free: when the Consul can take the next answer
	var do func(effects []orchestrator.Effect)
	step := func(ev orchestrator.Event) {
		var effects []orchestrator.Effect
		s, effects = orchestrator.Step(s, ev, now)
		do(effects)
	}
	do = func(effects []orchestrator.Effect) {
		for _, e := range effects {
			a, ok := e.(orchestrator.Assign)
			if !ok {
				continue
			}
			now = now.Add(time.Duration(len(a.Nodes)) * time.Second / time.Duration(sim.orders))
			for _, i := range a.Nodes {
				heap.Push(&queue, answer{now.Add(sim.node(plan.Nodes[i])), orchestrator.Report{Node: i, Order: a.Order, Result: orchestrator.ResultApplied}})
			}
			step(orchestrator.Assigned{Order: a.Order, Nodes: a.Nodes})
		}
	}
	step(orchestrator.Acquired{Order: orchestrator.Order{Epoch: 1, Token: 1}})
	for !s.Finished() {
		wake := s.NextWake()
		switch {
		case len(queue) > 0 && (wake.IsZero() || queue[0].at.Before(wake)):
			if queue[0].at.After(now) {
				now = queue[0].at
			}
			now = now.Add(sim.look)
			var reports orchestrator.Reports
			for len(queue) > 0 {
				at := queue[0].at
				if free.After(at) {
					at = free
				}
				if at.After(now) {
					break
				}
				free = at.Add(time.Second / time.Duration(sim.answers))
				reports = append(reports, heap.Pop(&queue).(answer).report)
			}
			step(reports)
		case wake.IsZero():
			t.Fatalf("%d nodes: stuck in %s with %v", nodes, s.Status(), s.Counts())
		default:
			now = wake
			step(orchestrator.Tick{})
		}
	}
	if s.Status() != orchestrator.Succeeded || s.Counts()[orchestrator.ClassApplied] != nodes {
		t.Fatalf("%d nodes: %s with %v", nodes, s.Status(), s.Counts())
	}
	return now.Sub(start)
}

// TestFigures holds docs/scale.md to the simulation: its tables of times are
// what this prints.
func TestFigures(t *testing.T) {
	t.Parallel()
	sim := aServer()
	var b strings.Builder
	fmt.Fprintln(&b, "| nodes | `max_parallel = 50` | 500 | 2,000 | none |\n|---|---|---|---|---|")
	for _, nodes := range []int{1000, 3000, 10_000, 30_000} {
		fmt.Fprintf(&b, "| %s |", thousands(nodes))
		for _, parallel := range []int{50, 500, 2000, 0} {
			took := sim.run(t, nodes, orchestrator.Stage{Name: "canary", Nodes: 1}, orchestrator.Stage{Name: "rest", Percent: 100, MaxParallel: parallel})
			fmt.Fprintf(&b, " %s |", short(took))
		}
		fmt.Fprintln(&b)
	}
	one := b.String()

	b.Reset()
	child := sim.run(t, 10_000, orchestrator.Stage{Name: "canary", Nodes: 1, Bake: 5 * time.Minute}, orchestrator.Stage{Name: "rest", Percent: 100, MaxParallel: 500})
	parent := simulation{orders: 1000, answers: 1000, look: 200 * time.Millisecond, node: func(string) time.Duration { return child }}
	fmt.Fprintln(&b, "| datacenters | nodes | one at a time | 2 | 5 | all |\n|---|---|---|---|---|---|")
	for _, dcs := range []int{1, 4, 10, 20} {
		fmt.Fprintf(&b, "| %d | %s |", dcs, thousands(dcs*10_000))
		for _, parallel := range []int{1, 2, 5, 0} {
			took := parent.run(t, dcs, orchestrator.Stage{Name: "first", Nodes: 1, Bake: time.Hour}, orchestrator.Stage{Name: "rest", Percent: 100, MaxParallel: parallel})
			fmt.Fprintf(&b, " %s |", short(took))
		}
		fmt.Fprintln(&b)
	}
	doc, err := os.ReadFile("../docs/scale.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{one, b.String()} {
		if !strings.Contains(string(doc), table) {
			t.Errorf("docs/scale.md does not have this table:\n%s", table)
		}
	}
	if text := fmt.Sprintf("One datacenter of 10,000 takes %s", short(child)); !strings.Contains(string(doc), text) {
		t.Errorf("docs/scale.md does not say: %s", text)
	}
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// short is a duration to three digits or so.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 100*time.Minute:
		return fmt.Sprintf("%.1f min", d.Minutes())
	}
	return fmt.Sprintf("%.1f h", d.Hours())
}

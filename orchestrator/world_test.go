package orchestrator

import (
	"fmt"
	"reflect"
	"testing"
	"time"
)

// world is what stands outside of the core: Consul's keys, the agents' answers
// and a clock. It does the effects of a Step as the runner does, and can die
// between any two of them.
type world struct {
	t     testing.TB
	plan  *Plan
	now   time.Time
	token uint64

	// Durable.
	chunks  [][]byte
	header  Header
	given   map[int]Given  // desired/, this rollout's entries
	reports map[int]Report // actual/

	// Of the present process.
	s        *State
	asks     []AskGate
	finished bool
	// torn is how many nodes of the order at whose writing the process dies are
	// written all the same.
	torn int

	// check looks at every Step, before its effects are done.
	check func(ev Event, effects []Effect)
}

func newWorld(t testing.TB, plan *Plan) *world {
	w := &world{
		t: t, plan: plan, now: plan.CreatedAt, token: 100,
		given: map[int]Given{}, reports: map[int]Report{},
	}
	w.header = NewHeader(plan.ID, plan.Spec, plan.CreatedAt)
	var err error
	if w.chunks, err = plan.Encode(1 << 12); err != nil {
		t.Fatal(err)
	}
	w.header.PlanChunks = len(w.chunks)
	again, err := DecodePlan(w.chunks)
	if err != nil {
		t.Fatal(err)
	}
	if chunks, err := again.Encode(1 << 12); err != nil || !reflect.DeepEqual(chunks, w.chunks) {
		t.Fatalf("the plan is read as another (%v):\n%s\n%s", err, chunks, w.chunks)
	}
	w.plan = again
	return w
}

// start is a process that takes the lock and recovers what it finds.
func (w *world) start() []Effect {
	var given []Given
	for _, g := range w.given {
		given = append(given, g)
	}
	var reports []Report
	for _, r := range w.reports {
		reports = append(reports, r)
	}
	s, err := Recover(w.plan, w.header, given, reports)
	if err != nil {
		w.t.Fatalf("recover: %v", err)
	}
	w.token += 10
	w.s, w.asks = s, nil
	w.finished = s.Finished()
	return w.step(Acquired{Order{Epoch: 1, Token: w.token}}, -1)
}

// step feeds an event and does the first n effects of what comes of it, and
// all for n < 0. With fewer than all the process is dead.
func (w *world) step(ev Event, n int) []Effect {
	var effects []Effect
	w.s, effects = Step(w.s, ev, w.now)
	if w.check != nil {
		w.check(ev, effects)
	}
	all := effects
	var confirm []Event
	for i, e := range effects {
		if i == n {
			w.tear(e)
			w.s = nil
			return all
		}
		switch e := e.(type) {
		case Persist:
			w.header = e.Header
		case Assign:
			w.write(e.Order, e.Nodes, false, e.Attempt)
			confirm = append(confirm, Assigned{e.Order, e.Nodes})
		case Restore:
			w.write(e.Order, e.Nodes, true, 0)
			confirm = append(confirm, Assigned{e.Order, e.Nodes})
		case AskGate:
			w.asks = append(w.asks, e)
		case Finish:
			w.finished = true
		}
	}
	for _, c := range confirm {
		all = append(all, w.step(c, -1)...)
	}
	return all
}

// tear does a part of an effect: what is written in several transactions.
func (w *world) tear(e Effect) {
	switch e := e.(type) {
	case Assign:
		w.write(e.Order, e.Nodes[:min(w.torn, len(e.Nodes))], false, e.Attempt)
	case Restore:
		w.write(e.Order, e.Nodes[:min(w.torn, len(e.Nodes))], true, 0)
	}
}

func (w *world) write(o Order, nodes []int, restore bool, attempt int) {
	for _, i := range nodes {
		if old, ok := w.given[i]; ok && !old.Order.Less(o) {
			w.t.Fatalf("node %s: order %s after %s", w.plan.Nodes[i], o, old.Order)
		}
		w.given[i] = Given{Node: i, Order: o, Restore: restore, Attempt: attempt}
	}
}

// answer lets a node's agent answer the order that stands for it.
func (w *world) answer(i int, ok bool, why string) (Report, bool) {
	g, given := w.given[i]
	if !given || w.reports[i].Order == g.Order {
		return Report{}, false
	}
	r := Report{Node: i, Order: g.Order, Why: why}
	switch {
	case !ok:
		r.Result = ResultFailed
	case g.Restore:
		r.Result = ResultRolledBack
	default:
		r.Result = ResultApplied
	}
	w.reports[i] = r
	return r, true
}

// unanswered are the nodes whose order stands without an answer.
func (w *world) unanswered() []int {
	var out []int
	for i := range w.plan.Nodes {
		if g, ok := w.given[i]; ok && w.reports[i].Order != g.Order {
			out = append(out, i)
		}
	}
	return out
}

func fleet(n int, zones ...string) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		nodes[i].Name = fmt.Sprintf("n%0*d", len(fmt.Sprint(n)), i+1)
		if len(zones) > 0 {
			nodes[i].Meta = map[string]string{"zone": zones[i%len(zones)]}
		}
	}
	return nodes
}

// inZone reads a Select as the value of the key zone.
func inZone(spec *Spec) Matcher {
	return func(stage int, n *Node) (bool, error) { return n.Meta["zone"] == spec.Stages[stage].Select, nil }
}

var t0 = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

func testSpec(stages ...Stage) Spec {
	return Spec{
		Name: "r", Hash: "h", Stages: stages,
		Configs: []Config{{Name: "a.conf", Revision: "111111111111", Destination: "/a.conf"}},
		Failure: Failure{MaxUnreachablePercent: 100, Then: ThenPause},
	}
}

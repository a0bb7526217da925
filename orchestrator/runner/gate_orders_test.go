package runner_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// asked is a gate that keeps what it was asked.
type asked struct {
	answer gates.Answer

	mu   sync.Mutex
	list []gates.Question
}

func (a *asked) Ask(_ context.Context, q gates.Question) gates.Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, q)
	return a.answer
}

func (a *asked) questions() []gates.Question {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]gates.Question(nil), a.list...)
}

func (f *fleet) gated(kind gates.Kind) *runner.Runner {
	f.t.Helper()
	return runner.New(runner.Config{
		Consul: f.kv, Prefix: keys.DefaultPrefix, Locks: runner.Locksmith(f.locks()), By: "tester",
		Gates: gates.New(gates.Config{Plugin: func(string) (gates.Kind, error) { return kind, nil }}),
	})
}

// TestOrdersAskNoGate: who gives an order from another terminal has neither the
// folder of the spec nor the environment of the orchestrator. The question that
// is due then is put by the next orchestrator, once.
func TestOrdersAskNoGate(t *testing.T) {
	f := newFleet(t, 2)
	in := f.input("one", orchestrator.Stage{Name: "canary", Nodes: 1, Bake: time.Hour, Gate: []string{"g"}}, orchestrator.Stage{Name: "rest", Percent: 100})
	in.Spec.Gates = []orchestrator.Gate{{
		Name: "g", Kind: orchestrator.GateKindPlugin, Plugin: &orchestrator.GatePlugin{Name: "p"}, During: orchestrator.DuringBake, Interval: time.Minute, SuccessLimit: 1000,
	}}
	in.Dir = "/specs"
	driver := &asked{answer: gates.Answer{Answer: orchestrator.Pass, Why: "well"}}
	out, err := f.gated(driver).Tick(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	list := driver.questions()
	if len(list) == 0 {
		t.Fatal("the tick asked nothing")
	}
	if q := list[0]; q.Dir != "/specs" || q.Rollout != out.ID || q.Stage != "canary" || q.Token == 0 || len(q.Updated) != 1 || len(q.Rest) != 1 {
		t.Errorf("asked %+v", q)
	}

	operator := &asked{answer: gates.Answer{Answer: orchestrator.Fail, Why: "asked in the wrong place"}}
	for _, verb := range []orchestrator.Verb{orchestrator.Pause, orchestrator.Resume, orchestrator.Promote} {
		if _, err := f.gated(operator).Command(t.Context(), runner.Order{ID: out.ID, Verb: verb}); err != nil {
			t.Fatalf("%s: %v", verb, err)
		}
	}
	if list := operator.questions(); len(list) > 0 {
		t.Errorf("orders asked %d questions, the first in %q", len(list), list[0].Dir)
	}
	head, err := f.gated(driver).Show(t.Context(), out.ID)
	if err != nil {
		t.Fatal(err)
	}
	if head.State.Terminal() || len(head.Gates) != 1 || head.Gates[0].Failed != 0 || head.Gates[0].State != orchestrator.GateOverruled {
		t.Errorf("%s, with gates %+v", head.State, head.Gates)
	}
}

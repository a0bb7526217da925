package runner_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// given is what an order was bound to when it was written.
type given struct {
	Verb  orchestrator.Verb `json:"verb"`
	Stage string            `json:"stage"`
	Pause *uint64           `json:"pause"`
}

func (f *fleet) given(id string) (g given) {
	f.t.Helper()
	p, err := f.kv.Get(f.t.Context(), prefix.Rollout(id)+"/command")
	if err != nil || p == nil {
		f.t.Fatalf("the command of %s: %v", id, err)
	}
	if err := json.Unmarshal(p.Value, &g); err != nil {
		f.t.Fatal(err)
	}
	return g
}

// An order that names neither a stage nor a pause is bound to those at which the
// rollout stood when it was given: whoever takes it later ends no other ones.
func TestOrdersAreBoundToWhatStood(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	one, two := canary, orchestrator.Stage{Name: "second", Nodes: 1, Promote: orchestrator.PromoteManual}
	one.Promote = orchestrator.PromoteManual
	r := f.runner()
	in := f.input("one", one, two, rest)
	out, err := r.Tick(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Paused {
		t.Fatalf("%+v %v", out, err)
	}
	h, err := r.Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Promote})
	if err != nil || !h.Command.OK {
		t.Fatalf("%+v %v", h, err)
	}
	if g := f.given(out.ID); g.Verb != orchestrator.Promote || g.Stage != one.Name || g.Pause == nil || *g.Pause != 1 {
		t.Errorf("the promotion is bound to %+v", g)
	}

	if out, err = r.Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Paused || out.Header.Stage != two.Name {
		t.Fatalf("%+v %v", out, err)
	}
	late := runner.Order{ID: out.ID, Verb: orchestrator.Promote, Stage: one.Name}
	if h, err = r.Command(t.Context(), late); err != nil || h.State != orchestrator.Paused || !strings.Contains(h.Command.Result, "over already") {
		t.Errorf("the one who saw the stage before it: %+v %v", h, err)
	}
	if f.count("one") != 2 {
		t.Errorf("%d nodes have it", f.count("one"))
	}
}

// Two operators have seen the same pause. One resumes it; the nodes that fail after
// that pause the rollout anew, and the other one's resume does not forgive them.
func TestResumeForgivesNoPauseUnseen(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in, _ := f.fails(1000, orchestrator.Retry{Attempts: 1, Delay: time.Second, MaxDelay: time.Second},
		orchestrator.Stage{Name: "all", Percent: 100, MaxParallel: 1})
	r := f.runner()
	paused := func(want uint64) *orchestrator.Header {
		t.Helper()
		out, err := r.Tick(t.Context(), in)
		if err != nil || out.Header.State != orchestrator.Paused || out.Header.Pauses != want {
			t.Fatalf("%+v %v", out, err)
		}
		return &out.Header
	}
	seen := paused(1)
	resume := runner.Order{ID: seen.ID, Verb: orchestrator.Resume, Pause: seen.Pauses}
	if h, err := r.Command(t.Context(), resume); err != nil || !h.Command.OK {
		t.Fatalf("%+v %v", h, err)
	}
	paused(2)
	h, err := r.Command(t.Context(), resume)
	if err != nil || h.Command.OK || !strings.Contains(h.Command.Result, "paused anew since") {
		t.Fatalf("%+v %v", h, err)
	}
	if h.State != orchestrator.Paused || h.Budget.ForgivenFailed != 1 || h.Budget.Failed != 2 {
		t.Errorf("it is %s with %+v", h.State, h.Budget)
	}
	resume.Pause = 0
	if h, err = r.Command(t.Context(), resume); err != nil || !h.Command.OK {
		t.Errorf("who has seen it: %+v %v", h, err)
	}
	if g := f.given(seen.ID); g.Pause == nil || *g.Pause != 2 {
		t.Errorf("the resume is bound to %+v", g)
	}
}

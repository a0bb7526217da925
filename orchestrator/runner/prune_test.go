package runner_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// old writes a rollout that ended days ago, with parts of its own.
func (f *fleet) old(name string, token uint64, days int, change func(*orchestrator.Header)) string {
	f.t.Helper()
	end := time.Now().Add(-time.Duration(days) * 24 * time.Hour)
	h := orchestrator.NewHeader(fmt.Sprintf("%s-%d", name, token), f.input(name, rest).Spec, end)
	h.Name, h.Epoch, h.Token, h.PlanChunks, h.State, h.FinishedAt = name, 1, token, 1, orchestrator.Succeeded, &end
	if change != nil {
		change(&h)
	}
	f.put(prefix.Rollout(h.ID), &h)
	f.put(prefix.RolloutPart(h.ID, "plan", 0), struct{}{})
	f.put(prefix.Rollout(h.ID)+"/command", struct{}{})
	return h.ID
}

// A year of rollouts shrinks to what is of use, plans first, and nothing goes
// that the fleet still rests on.
func TestPrune(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 0)
	// The newest of its config, with what it follows: kept whatever their age.
	other := func(h *orchestrator.Header) { h.Configs[0].Name = "other.conf" }
	root := f.old("other", 1, 400, other)
	follows := f.old("other", 2, 399, func(h *orchestrator.Header) { other(h); h.Follows = root })
	// Unfinished, and as old as can be.
	unfinished := f.old("app", 3, 500, func(h *orchestrator.Header) { h.FinishedAt, h.State = nil, orchestrator.Paused })
	for i := range 12 {
		f.old("app", uint64(10+i), 100-i*9, nil)
	}
	// Another rollout's name begins as one that goes.
	f.old("app-10", 1, 1, nil)
	keep := runner.Retention{Last: 2, Most: 6, Age: 50 * 24 * time.Hour}
	out, err := f.runner().Prune(t.Context(), keep)
	// Of 12 the last 2 stay whole, 4 more lose their plan, 6 go.
	if err != nil || out.Rollouts != 6 || out.Plans != 4 || out.More {
		t.Fatalf("%+v %v", out, err)
	}
	heads, err := f.runner().Headers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	left := map[string]*orchestrator.Header{}
	for _, h := range heads {
		left[h.ID] = h
	}
	all, err := f.kv.Keys(t.Context(), prefix.Rollouts(), "")
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]int{}
	for _, k := range all {
		id, _, _ := strings.Cut(strings.TrimPrefix(k, prefix.Rollouts()), "/")
		parts[id]++
	}
	for id, want := range map[string]int{
		root: 3, follows: 3, unfinished: 3, "app-10-1": 3, "app-21": 3, "app-20": 3, "app-19": 2, "app-16": 2, "app-15": 0, "app-10": 0,
	} {
		if parts[id] != want || (left[id] != nil) != (want > 0) || want == 2 && !left[id].PlanDropped {
			t.Errorf("%s has %d keys, want %d", id, parts[id], want)
		}
	}
	if again, err := f.runner().Prune(t.Context(), keep); err != nil || again != (runner.Pruned{}) {
		t.Fatalf("a second time: %+v %v", again, err)
	}
	if _, err := f.runner().PlanOf(t.Context(), left["app-19"]); !errors.Is(err, orchestrator.ErrPlanDamaged) {
		t.Fatalf("%v", err)
	}
}

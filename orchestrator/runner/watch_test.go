package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// The header of a rollout whose orchestrator is gone stands still and tells nothing
// of that: who watches it is told, and told again when somebody drives it.
func TestWatchTellsThatNobodyDrives(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	all := orchestrator.Stage{Name: "all", Percent: 100, Bake: time.Hour}
	in := f.input("one", all)
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Baking {
		t.Fatalf("%+v %v", out, err)
	}

	type seen struct {
		state    orchestrator.Status
		undriven bool
	}
	told := make(chan seen, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- f.runner().Watch(ctx, out.ID, func(h *orchestrator.Header, undriven bool) bool {
			told <- seen{h.State, undriven}
			return true
		})
	}()
	until := func(what string, ok func(seen) bool) {
		t.Helper()
		for late := time.After(20 * time.Second); ; {
			select {
			case s := <-told:
				if ok(s) {
					return
				}
			case <-late:
				t.Fatalf("not told: %s", what)
			}
		}
	}
	if s := <-told; s != (seen{orchestrator.Baking, false}) {
		t.Errorf("first it tells %+v", s)
	}
	if s := <-told; s != (seen{orchestrator.Baking, true}) {
		t.Errorf("then it tells %+v", s)
	}
	sctx, stop := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { _, err := f.runner().Start(sctx, in); started <- err }()
	until("it is driven", func(s seen) bool { return !s.undriven })
	stop()
	<-started
	until("nobody drives it again", func(s seen) bool { return s.undriven })

	// A pause is nobody's fault.
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Pause}); err != nil {
		t.Fatal(err)
	}
	until("it is paused", func(s seen) bool { return s.state == orchestrator.Paused })
	for over := time.After(2 * time.Second); over != nil; {
		select {
		case s := <-told:
			if s.undriven {
				t.Errorf("of a paused rollout it tells %+v", s)
			}
		case <-over:
			over = nil
		}
	}
	cancel()
	<-done
}

// While nobody drives a rollout nobody counts the answers either: who watches it gets
// them all the same, and not a node in flight that is long done.
func TestWatchCountsWhatNobodyDrives(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	gate := filepath.Join(t.TempDir(), "gate")
	in := f.input("one", orchestrator.Stage{Name: "all", Percent: 100})
	in.Spec.Configs[0].Validate = &orchestrator.Command{Argv: []string{"sh", "-c", "until [ -e " + gate + " ]; do sleep 0.1; done"}}
	sctx, stop := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() { _, err := f.runner().Start(sctx, in); started <- err }()
	id := ""
	f.until("orders to be given", func() bool {
		heads, err := f.runner().Headers(t.Context())
		if err == nil && len(heads) == 1 && heads[0].InFlight == 2 && len(heads[0].Flying) == 2 {
			id = heads[0].ID
		}
		return id != ""
	})
	stop()
	<-started

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	opened, applied := false, orchestrator.ClassApplied
	err := f.runner().Watch(ctx, id, func(h *orchestrator.Header, undriven bool) bool {
		switch {
		case !undriven:
			return true
		case !opened:
			opened = true
			if h.InFlight != 2 || len(h.Flying) != 2 || h.Counts[applied] != 0 {
				t.Errorf("it tells of %d in flight, %v, and %d applied", h.InFlight, h.Flying, h.Counts[applied])
			}
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Error(err)
			}
			return true
		}
		return h.Counts[applied] < 2 || h.InFlight > 0 || len(h.Flying) > 0
	})
	if err != nil {
		t.Errorf("the answers were not counted: %v", err)
	}
	h, err := f.runner().Show(t.Context(), id)
	if err != nil || h.Counts[applied] != 2 || len(h.Flying) != 0 {
		t.Errorf("%+v %v", h, err)
	}
}

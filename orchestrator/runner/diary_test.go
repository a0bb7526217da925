package runner_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// The log of a rollout tells its story, over several holds, and is numbered
// without a gap.
func TestEvents(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in := f.input("one", orchestrator.Stage{Name: "canary", Nodes: 1, Bake: time.Hour}, rest)
	ctx := t.Context()
	out, err := f.runner().Tick(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	if out.Header.State != orchestrator.Running {
		f.until("the canary to bake", func() bool {
			out, err = f.runner().Tick(ctx, in)
			return err == nil && out.Header.State == orchestrator.Baking
		})
	}
	if _, err := f.runner().Command(ctx, runner.Order{ID: out.ID, Verb: orchestrator.Promote, Reason: "looks good"}); err != nil {
		t.Fatal(err)
	}
	if out, err = f.runner().Start(ctx, in); err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%v, %v", out, err)
	}
	events, err := f.runner().Events(ctx, out.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	var story strings.Builder
	holds := map[uint64]bool{}
	for i, e := range events {
		if e.N != uint64(i+1) {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
		if e.Token == 0 || e.At.IsZero() {
			t.Errorf("event %+v does not say when and under which hold", e)
		}
		if e.Kind == records.EventHold {
			holds[e.Token] = true
		}
		fmt.Fprintf(&story, "%s %s %s\n", e.Kind, e.Stage, e.Text)
	}
	if len(holds) < 2 {
		t.Errorf("%d holds are told of", len(holds))
	}
	last := events[len(events)-1]
	if last.N != out.Header.Events {
		t.Errorf("the header says %d events, the last is %d", out.Header.Events, last.N)
	}
	at := 0
	for _, want := range []string{
		`hold canary driven by tester`, `stage canary stage "canary": node 1 of 3`, `stage canary baking for 1h0m0s`,
		`stage canary bake and gates of this stage are taken as passed by tester`, `command`, `promote by tester: done`,
		`stage rest stage "rest": nodes 2 to 3 of 3`, `status rest succeeded`,
	} {
		i := strings.Index(story.String()[at:], want)
		if i < 0 {
			t.Fatalf("nothing says %q in its place:\n%s", want, story.String())
		}
		at += i
	}
	// What came in while nobody drove it was not measured.
	if a := out.Header.Answers; a == nil || a.N < 1 || a.N > 3 || a.Mean() <= 0 {
		t.Errorf("the answers of 3 nodes were measured as %+v", a)
	}
	if later, err := f.runner().Events(ctx, out.ID, last.N-1); err != nil || len(later) != 1 || later[0].N != last.N {
		t.Errorf("behind event %d come %v, %v", last.N-1, later, err)
	}
}

// However many nodes fail, the log and each write of it stay within their
// bounds, and its beginning and its end are kept.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in := f.input("one", rest)
	r := f.runner()
	long := strings.Repeat("<&\n", 1500)
	n, err := r.FillEvents(t.Context(), &in.Spec, func(add func(orchestrator.Tell), write func() error) error {
		for round := range 40 {
			for i := range 400 {
				text := long
				if i >= 40 {
					text = long[:150]
				}
				add(orchestrator.Tell{Kind: orchestrator.TellNode, Stage: "rest", Node: fmt.Sprintf("n%d-%d", round, i), Text: text})
			}
			add(orchestrator.Tell{Kind: orchestrator.TellStage, Stage: "rest", Text: fmt.Sprintf("round %d", round)})
			if err := write(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := f.kv.List(ctx, "aimlock/rollouts/filled/events/")
	if err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, p := range list {
		bytes += len(p.Value)
	}
	if len(list) > 128 || bytes > 2<<20 {
		t.Errorf("the log has %d values of %d bytes in all", len(list), bytes)
	}
	events, err := r.Events(ctx, "filled", 0)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(events)
	if events[0].N != 1 || events[len(events)-1].N != n || !strings.Contains(all, "round 0") || !strings.Contains(all, "round 39") {
		t.Errorf("events %d to %d are kept, of %d", events[0].N, events[len(events)-1].N, n)
	}
	if !strings.Contains(all, "more nodes, which are left out here") {
		t.Error("nothing says that nodes were left out")
	}
}

package runner_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// fails is an input whose validation fails n times before it holds, and counts
// how often it was run in the file that is returned.
func (f *fleet) fails(n int, retry orchestrator.Retry, stages ...orchestrator.Stage) (runner.Input, string) {
	in := f.input("new", stages...)
	counter := filepath.Join(f.dir, "validated")
	in.Spec.Configs[0].Validate = &orchestrator.Command{Argv: []string{"/bin/sh", "-c", fmt.Sprintf("echo x >> %s; test $(wc -l < %s) -gt %d", counter, counter, n)}}
	in.Spec.Retry = &retry
	return in, counter
}

func lines(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// A tick waits for the retries of the nodes that it has given their orders: if
// each tick left them to the next one, none would ever come to its turn.
func TestRetryInATick(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in, counter := f.fails(2, orchestrator.Retry{Attempts: 3, Delay: 50 * time.Millisecond, MaxDelay: time.Second}, rest)
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Succeeded || f.count("new") != 1 {
		t.Fatalf("%+v %v", out, err)
	}
	if n := lines(t, counter); n != 3 {
		t.Errorf("the node tried %d times", n)
	}
	var d records.Desired
	key := prefix.Desired(config, f.nodes[0].Name)
	p, err := f.kv.Get(t.Context(), key)
	if err != nil || records.Decode(key, p.Value, &d) != nil || d.Attempt != 3 {
		t.Errorf("its order is %+v (%v)", d, err)
	}
}

// The orchestrator dies after each attempt; the next one goes on counting.
func TestRetriesSurviveACrash(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in, counter := f.fails(1000, orchestrator.Retry{Attempts: 3, Delay: 50 * time.Millisecond, MaxDelay: time.Second}, rest)
	for attempt := 1; attempt <= 2; attempt++ {
		ctx, cancel := context.WithCancel(t.Context())
		r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: runner.Locksmith(f.locks()), By: "tester",
			Tell: func(p runner.Progress) {
				if strings.HasPrefix(p.Text, fmt.Sprintf("attempt %d of 3 failed", attempt)) {
					cancel()
				}
			}})
		if _, err := r.Start(ctx, in); err == nil {
			t.Fatal("it was not stopped")
		}
		cancel()
	}
	out, err := f.runner().Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Paused || out.Header.Paused.Cause != orchestrator.CauseFailure {
		t.Fatalf("%+v %v", out, err)
	}
	if n := lines(t, counter); n != 3 {
		t.Errorf("the node tried %d times", n)
	}
	if out.Header.Budget.Failed != 1 || !strings.Contains(out.Header.Problems[0].Why, "3 attempts") {
		t.Errorf("%+v", out.Header)
	}
}

// Start holds on while a stage waits to be promoted, and goes on when it is; a
// tick leaves, and the one after the promotion goes on.
func TestPromotion(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	manual := canary
	manual.Promote = orchestrator.PromoteManual
	in := f.input("one", manual, rest)
	type result struct {
		out *runner.Outcome
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := f.runner().Start(t.Context(), in)
		done <- result{out, err}
	}()
	waits := func(r *runner.Runner) (id string) {
		f.until("the canary to wait for its promotion", func() bool {
			heads, err := r.Headers(t.Context())
			if err != nil || len(heads) == 0 || heads[0].Paused == nil {
				return false
			}
			id = heads[0].ID
			return heads[0].Paused.Cause == orchestrator.CausePromotion
		})
		return id
	}
	r := f.runner()
	id := waits(r)
	if out, err := r.Tick(t.Context(), in); err != nil || out.Busy == nil {
		t.Errorf("a tick beside it: %+v %v", out, err)
	}
	if h, err := r.Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Resume}); err != nil || h.Command.OK {
		t.Errorf("resume: %+v %v", h, err)
	}
	if f.count("one") != 1 {
		t.Fatalf("%d nodes have it before the promotion", f.count("one"))
	}
	if h, err := r.Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Promote}); err != nil || !h.Command.OK {
		t.Errorf("promote: %+v %v", h, err)
	}
	if res := <-done; res.err != nil || res.out.Header.State != orchestrator.Succeeded || f.count("one") != 3 {
		t.Fatalf("%+v", res)
	}

	in = f.input("two", manual, rest)
	for range 2 {
		if out, err := r.Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Paused {
			t.Fatalf("%+v %v", out, err)
		}
	}
	if h, err := r.Command(t.Context(), runner.Order{ID: waits(r), Verb: orchestrator.Promote}); err != nil || !h.Command.OK {
		t.Errorf("promote: %+v %v", h, err)
	}
	if out, err := r.Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded || f.count("two") != 3 {
		t.Fatalf("%+v %v", out, err)
	}
}

// The deadline passes between ticks by the clock of a host that saw it begin,
// and not by another's; an operator's pause stops it.
func TestDeadlineOverTicks(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = 100 * time.Hour
	in := f.input("one", bake, rest)
	in.Spec.Deadline, in.Spec.Failure.Then = time.Hour, orchestrator.ThenRollback
	at := func(host string, at time.Duration, want orchestrator.Status) string {
		t.Helper()
		out, err := f.on(host, at).Tick(t.Context(), in)
		if err != nil || out.Header.State != want {
			t.Fatalf("host %s at %s: %+v %v", host, at, out.Header, err)
		}
		return out.ID
	}
	id := at("a", 0, orchestrator.Baking)
	at("b", 5000*time.Hour, orchestrator.Baking)
	at("a", 50*time.Minute, orchestrator.Baking)
	if _, err := f.on("a", 50*time.Minute).Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Pause}); err != nil {
		t.Fatal(err)
	}
	at("a", 20*time.Hour, orchestrator.Paused)
	if _, err := f.on("a", 20*time.Hour).Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Resume}); err != nil {
		t.Fatal(err)
	}
	at("a", 20*time.Hour+59*time.Minute, orchestrator.Baking)
	at("a", 21*time.Hour+time.Minute, orchestrator.RolledBack)
	if n := f.count("one"); n != 0 {
		t.Errorf("%d nodes still have it", n)
	}
}

// A selector decides who is in a stage, and late joiners whom no stage would
// take get nothing by another way.
func TestSelectedJoiners(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	zones := []string{"b", "a", "a", "c"}
	for i := range f.nodes {
		f.nodes[i].Meta = map[string]string{"zone": zones[i]}
	}
	all := f.nodes
	in := f.input("one",
		orchestrator.Stage{Name: "canary", Select: `meta.zone == "a"`, Nodes: 1},
		orchestrator.Stage{Name: "rest", Select: `meta.zone == "a" or meta.zone == "b"`})
	in.Fleet = runner.StaticFleet(all[:2])
	r := f.runner()
	out, err := r.Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Succeeded || f.count("one") != 2 {
		t.Fatalf("%+v %v", out, err)
	}
	in.Fleet = runner.StaticFleet(all)
	out, err = r.Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Succeeded || f.file(all[2].Name) != "one" {
		t.Fatalf("%+v %v", out, err)
	}
	if f.file(all[3].Name) != "" {
		t.Error("a node that no stage selects has it")
	}
	if out, err = r.Start(t.Context(), in); err != nil || !out.Converged || out.Header.Total != 1 {
		t.Errorf("again: %+v %v", out, err)
	}
}

package runner_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

type result struct {
	out *runner.Outcome
	err error
}

// begin starts a rollout in the background.
func (f *fleet) begin(in runner.Input) chan result {
	f.t.Helper()
	r, ctx := f.runner(), context.WithoutCancel(f.t.Context())
	ended := make(chan result, 1)
	go func() {
		out, err := r.Start(ctx, in)
		ended <- result{out, err}
	}()
	return ended
}

// waiting waits until n rollouts wait for their turn.
func (f *fleet) waiting(n int) []*runner.Waiting {
	f.t.Helper()
	var list *runner.Listing
	f.until("rollouts to wait", func() bool {
		var err error
		list, err = f.runner().List(f.t.Context(), runner.Filter{})
		return err == nil && len(list.Waiting) == n
	})
	return list.Waiting
}

func (f *fleet) ends(ch chan result, want orchestrator.Status) *runner.Outcome {
	f.t.Helper()
	select {
	case got := <-ch:
		if got.err != nil || got.out == nil || got.out.Header.State != want {
			f.t.Fatalf("%+v %v, want %s", got.out, got.err, want)
		}
		return got.out
	case <-time.After(60 * time.Second):
		f.t.Fatalf("it does not end as %s", want)
		return nil
	}
}

func (f *fleet) queued(name, content string, stages ...orchestrator.Stage) runner.Input {
	in := f.input(content, stages...)
	in.Spec.Name, in.Spec.Conflict = name, orchestrator.ConflictQueue
	return in
}

// Rollouts with conflict = "queue" come one after the other, in the order in
// which they came, whether or not somebody drives the one before them.
func TestQueueInOrder(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = time.Hour
	first, err := f.runner().Tick(t.Context(), f.input("one", bake, rest))
	if err != nil || first.Header.State != orchestrator.Baking {
		t.Fatalf("%+v %v", first, err)
	}
	// Who plans it is told the same as who starts it.
	foresees := func(name, waitsFor string, state orchestrator.Status, words string) {
		t.Helper()
		p, err := f.runner().Preview(t.Context(), f.queued(name, name, rest))
		if err != nil || p.WaitsFor != waitsFor || p.WaitsForState != state || p.Waits != words || p.Supersedes != nil {
			t.Errorf("%+v, %v, want %s", p, err, words)
		}
	}
	foresees("second", first.ID, orchestrator.Baking, fmt.Sprintf("waits for rollout %s (baking), which nobody drives now: start it again, or `aimlock rollout abort %[1]s`", first.ID))
	second := f.begin(f.queued("second", "two", rest))
	ahead := f.waiting(1)[0]
	foresees("third", ahead.ID, orchestrator.Waiting, "waits for rollout "+ahead.ID+" (which waits too)")
	third := f.begin(f.queued("third", "three", rest))
	list := f.waiting(2)
	if list[0].Name != "second" || list[0].ForRollout != first.ID || list[0].Place != 1 || list[0].Of != 2 ||
		list[1].Name != "third" || list[1].ForRollout != list[0].ID || list[1].Place != 2 || list[1].Of != 2 {
		t.Fatalf("%+v\n%+v", list[0], list[1])
	}
	if h, err := f.runner().Show(t.Context(), list[1].ID); err != nil || h.State != orchestrator.Waiting || h.FinishedAt != nil {
		t.Fatalf("%+v %v", h, err)
	}
	// A tick does not wait, and says what for.
	out, err := f.runner().Tick(t.Context(), f.queued("fourth", "four", rest))
	if err != nil || out.Converged || out.Header.State != orchestrator.Waiting || out.Header.Reason == "" {
		t.Fatalf("%+v %v", out, err)
	}
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: first.ID, Verb: orchestrator.Abort}); err != nil {
		t.Fatal(err)
	}
	f.ends(second, orchestrator.Succeeded)
	f.ends(third, orchestrator.Succeeded)
	if f.count("three") != 2 {
		t.Fatal("the last one did not come last")
	}
	heads, err := f.runner().Headers(t.Context())
	if err != nil || len(heads) != 3 || heads[0].Name != "third" || heads[1].Name != "second" {
		t.Fatalf("%v", err)
	}
	f.waiting(0)
}

// An operator ends a rollout that waits; nothing else can be done with it. A tick
// of the same content does not begin it after all.
func TestAbortOfAWaitingRollout(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	bake := canary
	bake.Bake = time.Hour
	if _, err := f.runner().Tick(t.Context(), f.input("one", bake)); err != nil {
		t.Fatal(err)
	}
	in := f.queued("second", "two", rest)
	second := f.begin(in)
	id := f.waiting(1)[0].ID
	for _, verb := range orchestrator.Verbs {
		if verb == orchestrator.Abort {
			continue
		}
		if _, err := f.runner().Command(t.Context(), runner.Order{ID: id, Verb: verb}); !errors.Is(err, runner.ErrNotBegun) {
			t.Fatalf("%s: %v", verb, err)
		}
	}
	h, err := f.runner().Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Abort, Reason: "no need"})
	if err != nil || h.State != orchestrator.Aborted || h.Command == nil || !h.Command.OK {
		t.Fatalf("%+v %v", h, err)
	}
	if out := f.ends(second, orchestrator.Aborted); out.ID != id {
		t.Fatalf("%+v", out)
	}
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Abort}); !errors.Is(err, runner.ErrEnded) {
		t.Fatalf("%v", err)
	}
	f.waiting(0)
	if out, err := f.runner().Tick(t.Context(), in); err != nil || out.ID != id || !out.Converged {
		t.Fatalf("%+v %v", out, err)
	}
	if f.count("two") != 0 {
		t.Fatal("a node was assigned")
	}
}

// Who watches a rollout that waits sees it begin, and end.
func TestWatchFromTheQueue(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	f.begin(f.queued("first", "one", orchestrator.Stage{Name: "all", Percent: 100, Bake: time.Hour}))
	f.until("the first one to begin", func() bool {
		list, err := f.runner().List(t.Context(), runner.Filter{})
		return err == nil && len(list.Headers) == 1
	})
	second := f.begin(f.queued("second", "two", orchestrator.Stage{Name: "all", Percent: 100}))
	w := f.waiting(1)[0]
	states, watched := make(chan orchestrator.Status, 100), make(chan error, 1)
	go func() {
		watched <- f.runner().Watch(t.Context(), w.ID, func(h *orchestrator.Header, _ bool) bool {
			states <- h.State
			return true
		})
	}()
	if s := <-states; s != orchestrator.Waiting {
		t.Fatalf("it is seen as %s", s)
	}
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: w.ForRollout, Verb: orchestrator.Abort}); err != nil {
		t.Fatal(err)
	}
	f.ends(second, orchestrator.Succeeded)
	select {
	case err := <-watched:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the end is not seen")
	}
	close(states)
	last := orchestrator.Waiting
	for s := range states {
		last = s
	}
	if last != orchestrator.Succeeded {
		t.Errorf("the last that is seen is %s", last)
	}
}

// A start that supersedes need not wait for the orchestrator of what it
// supersedes: that one is told, and ends at once.
func TestSupersedeOfOneAtWork(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	first := f.begin(f.input("one", orchestrator.Stage{Name: "canary", Nodes: 1, Bake: time.Hour}, orchestrator.Stage{Name: "rest", Percent: 100}))
	f.until("the canary to bake", func() bool {
		list, err := f.runner().List(t.Context(), runner.Filter{})
		return err == nil && len(list.Headers) == 1 && list.Headers[0].State == orchestrator.Baking
	})
	second := f.ends(f.begin(f.input("two", orchestrator.Stage{Name: "all", Percent: 100})), orchestrator.Succeeded)
	out := f.ends(first, orchestrator.Superseded)
	if begun := " took its place, begun by "; !strings.Contains(out.Header.Reason, second.ID+begun) {
		t.Errorf("%q", out.Header.Reason)
	}
	if out.Header.SupersededBy != second.ID || out.Header.Counts != (orchestrator.Counts{orchestrator.ClassApplied: 1, orchestrator.ClassSuperseded: 1}) {
		t.Errorf("the first one: %+v", out.Header)
	}
	if n := f.count("two"); n != 2 {
		t.Errorf("%d nodes have the second content", n)
	}
}

// A rollout that supersedes what is unfinished supersedes what waits, too.
func TestSupersedeOfAWaitingRollout(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	bake := canary
	bake.Bake = time.Hour
	first, err := f.runner().Tick(t.Context(), f.input("one", bake))
	if err != nil {
		t.Fatal(err)
	}
	second := f.begin(f.queued("second", "two", rest))
	id := f.waiting(1)[0].ID
	last, err := f.runner().Start(t.Context(), f.input("three", rest))
	if err != nil || last.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v %v", last, err)
	}
	if out := f.ends(second, orchestrator.Superseded); out.ID != id || out.Header.SupersededBy != last.ID {
		t.Fatalf("%+v", out)
	}
	if h, err := f.runner().Show(t.Context(), first.ID); err != nil || h.SupersededBy != last.ID {
		t.Fatalf("%+v %v", h, err)
	}
	if f.count("three") != 1 {
		t.Fatal("the newest content is not there")
	}
	// What never began is not what the fleet shall have.
	f.nodes = append(f.nodes, orchestrator.Node{Name: "n99"})
	f.startAgent("n99")
	in := f.input("three", rest)
	if late, err := f.runner().Start(t.Context(), in); err != nil || late.Header.Follows != last.ID || f.count("three") != 2 {
		t.Fatalf("%+v %v", late, err)
	}
}

// A process that waits is killed: nobody waits behind it, and it is seen no more.
// One that waits for a lock alone is seen as well.
func TestWaitingProcessDies(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	h, err := f.locks().Acquire(t.Context(), locksmith.Request{Names: []string{config}})
	if err != nil {
		t.Fatal(err)
	}
	ch := f.begin(f.input("one", rest))
	w := f.waiting(1)[0]
	if w.For != "lock "+config {
		t.Fatalf("%+v", w)
	}
	p, err := f.kv.Get(t.Context(), prefix.Queued(w.ID))
	if err != nil || p == nil || p.Session == "" {
		t.Fatalf("%+v %v", p, err)
	}
	// The session ends, as that of a process that was stopped for a while: the
	// record goes with it, and the process, which lives, joins again.
	if _, err := f.kv.API().Session().Destroy(p.Session, nil); err != nil {
		t.Fatal(err)
	}
	f.until("it to join again", func() bool {
		list, err := f.runner().List(t.Context(), runner.Filter{})
		return err == nil && len(list.Waiting) == 1 && list.Waiting[0].ID != w.ID
	})
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.ends(ch, orchestrator.Succeeded)
	f.waiting(0)
	// Nothing of it is left: neither session nor key.
	sessions, _, err := f.kv.API().Session().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		if s.Behavior == api.SessionBehaviorDelete {
			t.Fatalf("session %q is left", s.Name)
		}
	}
}

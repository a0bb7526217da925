package runner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

const prefix = keys.Prefix(keys.DefaultPrefix)

func (f *fleet) locks() *locksmith.Client {
	f.t.Helper()
	set, err := shipped()
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := locksmith.New(locksmith.Config{Consul: f.kv, Prefix: prefix, Policies: set})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// shipped is what a client without policies judges by: it need not be parsed for each.
var shipped = sync.OnceValues(func() (*policies.Set, error) { return policies.Builtin(policies.BuiltinDefault) })

// bad is a content that node n01 finds unhealthy.
func (f *fleet) bad(content string, stages ...orchestrator.Stage) runner.Input {
	in := f.input(content, stages...)
	in.Spec.Failure = orchestrator.Failure{Then: orchestrator.ThenRollback, MaxUnreachablePercent: 100}
	in.Spec.Configs[0].Healthy = &orchestrator.Command{Argv: []string{"sh", "-c", `case "$0" in *n01*) exit 1;; esac`, "${destination}"}}
	return in
}

// gateLocks lets an acquisition begin only when it is told to.
type gateLocks struct {
	runner.Locker
	reached chan struct{}
	open    chan struct{}
}

func (l *gateLocks) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	close(l.reached)
	<-l.open
	return l.Locker.Acquire(ctx, req)
}

// Two copies are started at once; the first rolls back. The second, which had
// looked before there was anything, must not begin the bad content again.
func TestSecondCopyDoesNotRepeatARollback(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
		t.Fatal(err)
	}
	in := f.bad("two", canary, rest)
	gate := &gateLocks{Locker: runner.Locksmith(f.locks()), reached: make(chan struct{}), open: make(chan struct{})}
	second := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: gate, By: "second"})
	ended := make(chan result, 1)
	go func() {
		out, err := second.Start(context.WithoutCancel(t.Context()), in)
		ended <- result{out, err}
	}()
	<-gate.reached
	first, err := f.runner().Start(t.Context(), in)
	if err != nil || first.Header.State != orchestrator.RolledBack {
		t.Fatalf("%+v %v", first, err)
	}
	close(gate.open)
	got := <-ended
	if got.err != nil || got.out.ID != first.ID || got.out.Header.State != orchestrator.RolledBack {
		t.Fatalf("the second copy: %+v %v", got.out, got.err)
	}
	f.onlyRollouts(2)

	// Nor does a periodic job, ever; a person may.
	for range 2 {
		out, err := f.runner().Tick(t.Context(), in)
		if err != nil || out.ID != first.ID || !out.Converged {
			t.Fatalf("a tick: %+v %v", out, err)
		}
	}
	f.onlyRollouts(2)
	again, err := f.runner().Start(t.Context(), in)
	if err != nil || again.ID == first.ID {
		t.Fatalf("a start by a person: %+v %v", again, err)
	}
}

func (f *fleet) onlyRollouts(n int) {
	f.t.Helper()
	heads, err := f.runner().Headers(f.t.Context())
	if err != nil || len(heads) != n {
		f.t.Fatalf("%d rollouts, want %d (%v)", len(heads), n, err)
	}
}

// A rollback was cut short. The next content does not leave the bad one on
// half of the fleet while its canary bakes.
func TestRollbackIsFinishedBeforeTheNext(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
		t.Fatal(err)
	}
	in := f.bad("two", rest)
	locks := &stopLocks{Locker: runner.Locksmith(f.locks())}
	r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: locks, By: "tester"})
	out, err := r.Start(t.Context(), in)
	if !errors.Is(err, errCrash) || out.Header.State != orchestrator.RollingBack {
		t.Fatalf("%+v %v", out, err)
	}
	bake := canary
	bake.Bake = time.Hour
	next, err := f.runner().Tick(t.Context(), f.input("three", bake, rest))
	if err != nil || next.Header.State != orchestrator.Baking {
		t.Fatalf("%+v %v", next, err)
	}
	old, err := f.runner().Show(t.Context(), out.ID)
	if err != nil || old.State != orchestrator.RolledBack {
		t.Fatalf("%+v %v", old, err)
	}
	if f.count("two") != 0 || f.count("one") != 3 || f.count("three") != 1 {
		t.Fatalf("one %d, two %d, three %d", f.count("one"), f.count("two"), f.count("three"))
	}
}

// stopLocks hands out holds that die at the first order to go back.
type stopLocks struct{ runner.Locker }

func (l *stopLocks) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	h, err := l.Locker.Acquire(ctx, req)
	if err != nil {
		return nil, err
	}
	return stopHold{h}, nil
}

type stopHold struct{ runner.Hold }

func (h stopHold) Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	for _, op := range ops {
		var d records.Desired
		if records.Decode(op.Key, op.Value, &d) == nil && d.Action == records.ActionRestore {
			return nil, errCrash
		}
	}
	return h.Hold.Txn(ctx, ops...)
}

// What is left of an unfinished rollout does not stop the next, however
// damaged it is; but nothing of its own goes on from a gap.
func TestLostOrders(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = time.Hour
	in := f.input("one", bake, rest)
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.kv.API().KV().DeleteTree(prefix.DesiredAll(config), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Tick(t.Context(), in); !errors.Is(err, orchestrator.ErrDataLost) {
		t.Fatalf("it went on: %v", err)
	}
	next, err := f.runner().Start(t.Context(), f.input("two", rest))
	if err != nil || next.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v %v", next, err)
	}
	if old, err := f.runner().Show(t.Context(), out.ID); err != nil || old.State != orchestrator.Superseded || old.FinishedAt == nil {
		t.Fatalf("%+v %v", old, err)
	}
}

// Where somebody has said by a recovery that Consul went back, a rollout goes on:
// whose order was lost is given one again. It says what to do no longer than until
// that is done.
func TestLostOrdersAfterTheRecovery(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	first := canary
	first.Nodes, first.Bake = 2, time.Hour
	in := f.input("one", first, rest)
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil || out.Header.Confirmed != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	lost := prefix.Desired(config, "n00")
	if _, err := f.kv.API().KV().Delete(lost, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Tick(t.Context(), in); !errors.Is(err, orchestrator.ErrDataLost) {
		t.Fatalf("it went on: %v", err)
	}
	f.recover()
	if out, err = f.runner().Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Baking || out.Header.Counts[orchestrator.ClassApplied] != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	var d records.Desired
	if kv, err := f.kv.Get(t.Context(), lost); err != nil || kv == nil || records.Decode(lost, kv.Value, &d) != nil || d.Epoch != 1 {
		t.Fatalf("the order that was lost is %+v, %v", d, err)
	}
	if f.file("n00") != "one" || f.file("n02") != "" {
		t.Errorf("n00 has %q, n02 has %q", f.file("n00"), f.file("n02"))
	}
}

// An operator can end a rollout of which too much is lost to go on.
func TestAbortOfADamagedRollout(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = time.Hour
	for name, damage := range map[string]string{
		"its orders are lost": prefix.DesiredAll(config), "its plan is lost": "plan",
	} {
		in := f.input(name, bake, rest)
		out, err := f.runner().Tick(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		if damage == "plan" {
			damage = prefix.RolloutPart(out.ID, "plan", 1)
		}
		if _, err := f.kv.API().KV().DeleteTree(damage, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := f.runner().Tick(t.Context(), in); err == nil {
			t.Fatalf("%s: it went on", name)
		}
		if _, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Resume}); err == nil {
			t.Fatalf("%s: it was resumed", name)
		}
		h, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Abort})
		if err != nil || h.State != orchestrator.Aborted || h.FinishedAt == nil {
			t.Fatalf("%s: %+v %v", name, h, err)
		}
	}
}

// Of many follow-ups the newest tells of those before it: a tick does not read
// them any more, and they are kept no longer than others.
func TestManyFollowUps(t *testing.T) {
	t.Parallel()
	const n = 13
	f := newFleet(t, n)
	all := f.nodes
	stage := orchestrator.Stage{Name: "all", Percent: 100}
	f.nodes = all[:1]
	first, err := f.runner().Start(t.Context(), f.input("one", stage))
	if err != nil || !first.Converged {
		t.Fatalf("%+v, %v", first, err)
	}
	var last *runner.Outcome
	for i := 2; i <= n; i++ {
		f.nodes = all[:i]
		if last, err = f.runner().Tick(t.Context(), f.input("one", stage)); err != nil || !last.Converged || last.Header.Total != 1 {
			t.Fatalf("joiner %d: %+v, %v", i, last, err)
		}
	}
	if last.Header.Root != "" || last.Header.Follows == first.ID {
		t.Errorf("the last of them: %+v", last.Header)
	}
	h, err := f.runner().Show(t.Context(), last.Header.Follows)
	if err != nil || h.Root != first.ID {
		t.Fatalf("the one before it: %+v, %v", h, err)
	}
	if plan, err := f.runner().PlanOf(t.Context(), h); err != nil || len(plan.Before) != n-3 || plan.Root != first.ID {
		t.Fatalf("its plan: %+v, %v", plan, err)
	}
	// One of those that are only told of has failed since: a start serves it again.
	key := keys.Prefix(keys.DefaultPrefix).Actual(config, all[4].Name)
	f.stop[all[4].Name]()
	<-f.done[all[4].Name]
	p, err := f.kv.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var a records.Actual
	if err := records.Decode(key, p.Value, &a); err != nil {
		t.Fatal(err)
	}
	a.Result = records.ResultFailed
	f.put(key, a)

	if out, err := f.runner().Prune(t.Context(), runner.Retention{Last: 1, Age: 1, Most: 1}); err != nil || out.Rollouts != n-3 {
		t.Fatalf("%+v, %v", out, err)
	}
	in := f.input("one", stage)
	if out, err := f.runner().Tick(t.Context(), in); err != nil || out.ID != last.ID || !out.Converged {
		t.Fatalf("a tick: %+v, %v", out, err)
	}
	f.startAgent(all[4].Name)
	if out, err := f.runner().Start(t.Context(), in); err != nil || out.Header.Total != 1 || out.Header.Counts[orchestrator.ClassApplied] != 1 {
		t.Fatalf("a start: %+v, %v", out, err)
	}
}

// Late joiners are those that no plan had. Who was skipped, or stands behind
// the last stage, is not reached by the back door.
func TestJoiners(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	r := f.runner()
	part := f.input("a part", canary)
	out, err := r.Start(t.Context(), part)
	if err != nil || out.Header.Counts[orchestrator.ClassSkipped] != 3 {
		t.Fatalf("%+v %v", out, err)
	}
	for _, call := range []func(context.Context, runner.Input) (*runner.Outcome, error){r.Start, r.Tick} {
		if again, err := call(t.Context(), part); err != nil || again.ID != out.ID || f.count("a part") != 1 {
			t.Fatalf("%+v %v, %d files", again, err, f.count("a part"))
		}
	}
	bake := canary
	bake.Bake = time.Hour
	all := f.input("all", bake, rest)
	tick, err := r.Tick(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []runner.Order{{ID: tick.ID, Verb: orchestrator.Skip, Nodes: []string{"n03"}}, {ID: tick.ID, Verb: orchestrator.Promote}} {
		if h, err := r.Command(t.Context(), o); err != nil || !h.Command.OK {
			t.Fatalf("%+v %v", h, err)
		}
	}
	done, err := r.Start(t.Context(), all)
	if err != nil || done.Header.State != orchestrator.Succeeded || f.count("all") != 3 {
		t.Fatalf("%+v %v", done, err)
	}
	f.nodes = append(f.nodes, orchestrator.Node{Name: "n99"})
	f.startAgent("n99")
	all.Fleet = runner.StaticFleet(f.nodes)
	late, err := r.Tick(t.Context(), all)
	if err != nil || late.Header.Follows != done.ID || late.Header.Total != 1 || f.count("all") != 4 {
		t.Fatalf("%+v %v, %d files", late, err, f.count("all"))
	}
	if again, err := r.Start(t.Context(), all); err != nil || again.ID != late.ID || f.file("n03") == "all" {
		t.Fatalf("%+v %v", again, err)
	}
}

// Nodes have accepted orders of the future: Consul was restored. Nothing is
// assigned.
func TestRestoredConsul(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	if _, err := f.runner().Start(t.Context(), f.input("one", rest)); err != nil {
		t.Fatal(err)
	}
	p, err := f.kv.Get(t.Context(), prefix.Actual(config, "n01"))
	if err != nil {
		t.Fatal(err)
	}
	var a records.Actual
	if err := records.Decode(p.Key, p.Value, &a); err != nil {
		t.Fatal(err)
	}
	a.Token += 1_000_000
	if err := f.kv.Put(t.Context(), p.Key, records.Encode(&a)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Start(t.Context(), f.input("two", rest)); !errors.Is(err, runner.ErrRestored) {
		t.Fatalf("%v", err)
	}
	if f.count("one") != 2 {
		t.Fatal("something was assigned")
	}
	f.onlyRollouts(1)
}

// A command that was given while the lock was elsewhere is taken before the
// next orchestrator gives its first order.
func TestCommandComesFirst(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	bake := canary
	bake.Bake = time.Nanosecond // a tick of its own after the canary
	bake.MaxParallel = 1
	in := f.input("one", bake, rest)
	// The first tick dies before it gives the orders of the second stage.
	r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: &secondStage{Locker: runner.Locksmith(f.locks())}, By: "tester"})
	out, err := r.Start(t.Context(), in)
	if !errors.Is(err, errCrash) {
		t.Fatalf("%+v %v", out, err)
	}
	h, err := f.locks().Acquire(t.Context(), locksmith.Request{Names: []string{config}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Abort}); !errors.Is(err, runner.ErrNotTaken) {
		t.Fatalf("%v", err)
	}
	// Another operator does not overwrite it.
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Pause}); !errors.Is(err, runner.ErrNotTaken) {
		t.Fatalf("%v", err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err = f.runner().Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Aborted || f.count("one") != 1 {
		t.Fatalf("%+v %v, %d files", out, err, f.count("one"))
	}
}

// secondStage hands out holds that die at the second transaction with orders.
type secondStage struct{ runner.Locker }

func (l *secondStage) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	h, err := l.Locker.Acquire(ctx, req)
	if err != nil {
		return nil, err
	}
	return &secondHold{Hold: h}, nil
}

type secondHold struct {
	runner.Hold
	orders int
}

func (h *secondHold) Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	if slices.ContainsFunc(ops, func(op consulkv.Op) bool { return filepath.Dir(op.Key)+"/" == prefix.DesiredAll(config) }) {
		if h.orders++; h.orders == 2 {
			return nil, errCrash
		}
	}
	return h.Hold.Txn(ctx, ops...)
}

// Outside of its window a rollout holds no lock, is shown as waiting, and can
// be ended.
func TestWaitsForTheWindowWithoutTheLock(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in := f.input("one", rest)
	opens := time.Now().UTC().Add(12 * time.Hour)
	in.Spec.Window = &orchestrator.Window{Schedule: fmt.Sprintf("0 %d * * *", opens.Hour()), Duration: time.Hour, Timezone: "UTC"}
	ended := make(chan result, 1)
	go func() {
		out, err := f.runner().Start(context.WithoutCancel(t.Context()), in)
		ended <- result{out, err}
	}()
	id := ""
	f.until("the rollout to wait without the lock", func() bool {
		var err error
		if id, err = f.runner().Find(t.Context(), "app"); err != nil {
			return false
		}
		p, err := f.kv.Get(t.Context(), prefix.Lock(config))
		return err == nil && p != nil && p.Session == ""
	})
	if h, err := f.runner().Show(t.Context(), id); err != nil || h.State != orchestrator.Waiting {
		t.Fatalf("%+v %v", h, err)
	}
	if h, err := f.runner().Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Abort}); err != nil || h.State != orchestrator.Aborted {
		t.Fatalf("%+v %v", h, err)
	}
	if got := <-ended; got.err != nil || got.out.Header.State != orchestrator.Aborted {
		t.Fatalf("%+v %v", got.out, got.err)
	}
	if f.count("one") != 0 {
		t.Fatal("a node was assigned outside of the window")
	}
}

// Several configs in one rollout: one lock each, all taken together, and every
// node gets all of them.
func TestSeveralConfigs(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	in := f.input("one", canary, rest)
	other := f.input("another", rest).Spec.Configs[0]
	other.Name, other.Destination = "b.conf", "/etc/b.conf"
	in.Spec.Configs = append(in.Spec.Configs, other)
	in.Contents["b.conf"] = []byte("another")
	out, err := f.runner().Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Succeeded || f.count("one") != 3 {
		t.Fatalf("%+v %v", out, err)
	}
	for _, n := range f.nodes {
		b, err := os.ReadFile(filepath.Join(f.dir, n.Name, "root/etc/b.conf"))
		if err != nil || string(b) != "another" {
			t.Fatalf("%s has %q (%v)", n.Name, b, err)
		}
	}
	h, err := f.locks().Acquire(t.Context(), locksmith.Request{Names: []string{"b.conf"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Release(context.WithoutCancel(t.Context())) }()
	in.Spec.Hash = "changed"
	if busy, err := f.runner().Tick(t.Context(), in); err != nil || busy.Busy == nil || busy.Busy.Name != "b.conf" {
		t.Fatalf("the lock of the second config is taken: %+v %v", busy, err)
	}
}

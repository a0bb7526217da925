package runner_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// bakes begins a rollout that nobody drives while its first stage bakes for long.
func (f *fleet) bakes() (id string) {
	f.t.Helper()
	bake := canary
	bake.Bake = time.Hour
	out, err := f.runner().Tick(f.t.Context(), f.input("one", bake, rest))
	if err != nil || out.Header.State != orchestrator.Baking {
		f.t.Fatalf("%+v %v", out, err)
	}
	return out.ID
}

// stands gives a rollout a command that nobody takes.
func (f *fleet) stands(id string) {
	f.t.Helper()
	h, err := f.locks().Acquire(f.t.Context(), locksmith.Request{Names: []string{config}})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.runner().Command(f.t.Context(), runner.Order{ID: id, Verb: orchestrator.Skip, Nodes: []string{"n3"}}); !errors.Is(err, runner.ErrNotTaken) {
		f.t.Fatalf("%v", err)
	}
	if err := h.Release(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// Another operator's command holds the lock for the very same rollout, and has let it
// go by the time that this one looks who holds it: the lock was for nothing else, and
// the command is taken; so is one that stood before it.
func TestCommandWhileAnotherLetsGo(t *testing.T) {
	t.Parallel()
	for _, stood := range []bool{false, true} {
		t.Run(fmt.Sprintf("one stood before it: %v", stood), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 3)
			id := f.bakes()
			if stood {
				f.stands(id)
			}
			late := &letsGo{Locker: runner.Locksmith(f.locks()), other: runner.Locksmith(f.locks()), id: id}
			r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: late, By: "tester"})
			head, err := r.Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Pause})
			if err != nil || head.State != orchestrator.Paused || !head.Command.OK || late.refused != 1 {
				t.Fatalf("%+v %v, refused %d times", head, err, late.refused)
			}
		})
	}
}

// A rollout ends while a command waits for the one before it, which came too late
// itself: so did this one, and whoever gave it is told so, and not that it stands.
func TestCommandBehindOneThatCameTooLate(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	id := f.bakes()
	f.stands(id)
	ends := &endsAtLock{Locker: runner.Locksmith(f.locks()), end: func() {
		var head orchestrator.Header
		p, err := f.kv.Get(t.Context(), prefix.Rollout(id))
		if err != nil || p == nil {
			t.Fatalf("%v %v", p, err)
		}
		if err := records.Decode(p.Key, p.Value, &head); err != nil {
			t.Fatal(err)
		}
		head.End(orchestrator.Succeeded, "", time.Now())
		f.put(prefix.Rollout(id), &head)
	}}
	r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: ends, By: "tester"})
	began := time.Now()
	head, err := r.Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Pause})
	if !errors.Is(err, runner.ErrEnded) || errors.Is(err, runner.ErrNotTaken) || head == nil || head.State != orchestrator.Succeeded {
		t.Fatalf("after %s: %+v %v", time.Since(began), head, err)
	}
}

// endsAtLock has the rollout end just before it gives the lock.
type endsAtLock struct {
	runner.Locker
	end func()
}

func (l *endsAtLock) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	l.end()
	return l.Locker.Acquire(ctx, req)
}

// letsGo gives the first who asks a refusal by somebody who drives the same rollout,
// and who has let the lock go when the refusal arrives.
type letsGo struct {
	runner.Locker
	other   runner.Locker
	id      string
	refused int
}

func (l *letsGo) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	if l.refused > 0 {
		return l.Locker.Acquire(ctx, req)
	}
	h, err := l.other.Acquire(ctx, locksmith.Request{Names: req.Names, RolloutID: l.id})
	if err != nil {
		return nil, err
	}
	got, err := l.Locker.Acquire(ctx, req)
	if err == nil {
		return got, errors.New("the lock was given to two")
	}
	l.refused++
	return nil, errors.Join(err, h.Release(ctx))
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// elsewhere is Targets of one Local, as file_target is one.
type elsewhere struct {
	one
	*Local
	healthy *records.Command
}

func (e elsewhere) Apply(ctx context.Context, _ string, _ json.RawMessage, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	d := entry(orchestrator.Order(r.Order), r.Rollout, string(r.Content))
	d.Healthy = e.healthy
	return e.answer(e.Local.Apply(ctx, r.Config, d, r.Content))
}

func (e elsewhere) Restore(ctx context.Context, _ string, _ json.RawMessage, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	return e.answer(e.Local.Apply(ctx, r.Config, restoreEntry(orchestrator.Order(r.Order), r.Rollout), nil))
}

func (e elsewhere) answer(res Result, err error) (*plugin.Applied, error) {
	older, refused := errors.AsType[*OlderError](err)
	switch {
	case refused:
		return nil, &plugin.StaleError{Highest: plugin.Order(older.Highest)}
	case err != nil:
		return nil, err
	case res.Report.Result == records.ResultFailed:
		return nil, errors.New(res.Report.Error)
	}
	return &plugin.Applied{Highest: plugin.Order(res.Report.Order), SHA256: res.Report.SHA256}, nil
}

func (e elsewhere) Read(_ context.Context, _ string, _ json.RawMessage, r *plugin.ReadRequest) (*plugin.State, error) {
	s, err := e.Local.Read(r.Config, r.Destination)
	if err != nil {
		return nil, err
	}
	return &plugin.State{Exists: s.Exists, SHA256: s.SHA256, Highest: plugin.Order(s.Mark)}, nil
}

func newLocal(t *testing.T) (*Local, *rig) {
	t.Helper()
	far := newRig(t)
	l, err := NewLocal(Config{Node: "n1", StateDir: far.state, Root: far.root})
	if err != nil {
		t.Fatal(err)
	}
	return l, far
}

// TestTargetBehindAFence: an agent takes back at its target what failed on its own side,
// and what somebody has changed there, under the order that the target's fence has let
// pass already.
func TestTargetBehindAFence(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, far := newLocal(t)
	r.targets = elsewhere{one: one{dev: &device{}}, Local: l}
	stands := func(want string) {
		t.Helper()
		if got := far.read(t); got != want {
			t.Errorf("%q stands there, want %q", got, want)
		}
	}
	fails := func(d *records.Desired, content, want string) {
		t.Helper()
		d.Healthy = sh("exit 1")
		out := r.must(t, d, content, records.ResultFailed)
		if out.Report.Error != "healthy: sh ended with status 1" {
			t.Errorf("%+v", out.Report)
		}
		stands(want)
	}
	// What stood there before the first order is nothing.
	fails(there(order(1, 1), "r1", "bad\n"), "bad\n", "")
	d := there(order(1, 2), "r1", "good\n")
	d.Drift = records.DriftRestore
	r.must(t, d, "good\n", records.ResultApplied)
	stands("good\n")

	if err := os.WriteFile(far.path(), []byte("by hand\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	found := r.look(t)
	if !found.may {
		t.Fatalf("it may not be put back: %+v", found)
	}
	reps, err := r.putBackDrifted(t.Context(), conf, found.there, func(string, *records.Desired) source { return from("good\n") })
	if err != nil || reps[conf].Restored == nil || reps[conf].Drift != nil {
		t.Errorf("%+v, %v", reps[conf], err)
	}
	stands("good\n")

	fails(there(order(2, 1), "r2", "bad\n"), "bad\n", "good\n")
	back := restoreEntry(order(2, 2), "r2")
	back.Requires, back.Target = []string{records.FeatureTargets}, d.Target
	r.must(t, back, "", records.ResultRolledBack)
	stands("good\n")
}

// TestLocalTwin: what comes back is of the rollout that failed; the order of another one
// is one that a restored Consul gave twice.
func TestLocalTwin(t *testing.T) {
	t.Parallel()
	l, far := newLocal(t)
	apply := func(rollout, content string) error {
		_, err := l.Apply(t.Context(), conf, entry(order(5, 1), rollout, content), []byte(content))
		return err
	}
	for _, content := range []string{"one\n", "two\n"} {
		if err := apply("r1", content); err != nil || far.read(t) != content {
			t.Errorf("%q stands, %v", far.read(t), err)
		}
	}
	err := apply("r2", "three\n")
	if older, ok := errors.AsType[*OlderError](err); !ok || older.Twin != "r1" || far.read(t) != "two\n" {
		t.Errorf("%q stands, %v", far.read(t), err)
	}
}

// TestLocalGivenUp: what was given up in the middle is taken back, and not finished
// first, by what its giver puts back.
func TestLocalGivenUp(t *testing.T) {
	t.Parallel()
	l, far := newLocal(t)
	begun := filepath.Join(t.TempDir(), "begun")
	apply := func(ctx context.Context, seq uint64, content string) error {
		d := entry(order(1, seq), "r1", content)
		d.Healthy = sh(fmt.Sprintf("grep -q good %s || { : >%s; exec sleep 60; }", far.path(), begun))
		_, err := l.Apply(ctx, conf, d, []byte(content))
		return err
	}
	if err := apply(t.Context(), 1, "good\n"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(begun); err == nil {
				cancel()
			}
			<-time.After(10 * time.Millisecond)
		}
	}()
	if err := apply(ctx, 2, "slow\n"); !errors.Is(err, context.Canceled) || far.read(t) != "slow\n" {
		t.Fatalf("%q stands, %v", far.read(t), err)
	}
	soon, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := apply(soon, 2, "good\n"); err != nil || far.read(t) != "good\n" {
		t.Errorf("%q stands, %v", far.read(t), err)
	}
}

// TestGivenUpAtTheLock: a call that was given up before it had the config's lock does
// nothing when it has it.
func TestGivenUpAtTheLock(t *testing.T) {
	t.Parallel()
	l, far := newLocal(t)
	ctx, cancel := context.WithCancel(t.Context())
	l.fence.recover = func(context.Context, string) (*records.Actual, error) {
		cancel() // the lock is held here
		return nil, nil
	}
	if _, err := l.Apply(ctx, conf, entry(order(1, 1), "r1", "late\n"), []byte("late\n")); !errors.Is(err, context.Canceled) || far.read(t) != "" {
		t.Errorf("%q stands, %v", far.read(t), err)
	}
}

// TestTargetUnanswered: a call without an answer may have been carried out, or still be,
// after what was put back.
func TestTargetUnanswered(t *testing.T) {
	t.Parallel()
	for _, back := range []bool{true, false} {
		r, dev := newDevice(t)
		r.must(t, there(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
		calls := 0
		r.step = func(at string) {
			if at != "before target" {
				return
			}
			if calls++; calls == 1 || !back {
				dev.late = fmt.Errorf("no answer within 10s (timeout): %w", context.DeadlineExceeded)
			} else {
				dev.late = nil
			}
		}
		out := r.must(t, there(order(2, 1), "r2", "two\n"), "two\n", records.ResultFailed)
		stands := map[bool]string{true: "one\n", false: "two\n"}[back]
		if !strings.Contains(out.Report.Error, "whether it was carried out there is not known") || out.Report.SHA256 != sum256([]byte(stands)) {
			t.Errorf("put back: %v: %+v", back, out.Report)
		}
	}
}

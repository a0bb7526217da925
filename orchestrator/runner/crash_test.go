package runner_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

var errCrash = errors.New("crashed")

// mortal hands out holds whose process dies at write number at: before it, or
// after it without having seen the answer. A write is a transaction, or a record
// of progress. It counts which orders came through,
// over the lives of all processes.
type mortal struct {
	runner.Locker
	kv    *consulkv.Client
	at    int // 0: it does not die
	after bool

	mu     sync.Mutex
	writes int
	dead   bool
	died   context.CancelFunc
	given  map[string]map[string]int // node → action → orders that stand
}

func (l *mortal) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	h, err := l.Locker.Acquire(ctx, req)
	if err != nil {
		return nil, err
	}
	return &mortalHold{Hold: h, l: l}, nil
}

type mortalHold struct {
	runner.Hold
	l *mortal
}

func (h *mortalHold) Txn(ctx context.Context, ops ...consulkv.Op) (consulkv.Results, error) {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.l.dead {
		return nil, errCrash
	}
	dies := h.l.dies()
	if dies && !h.l.after {
		return nil, errCrash
	}
	res, err := h.Hold.Txn(ctx, ops...)
	if err == nil {
		for _, op := range ops {
			var d records.Desired
			if filepath.Dir(op.Key)+"/" == prefix.DesiredAll(config) && records.Decode(op.Key, op.Value, &d) == nil {
				node := keys.LastSegment(op.Key)
				if h.l.given[node] == nil {
					h.l.given[node] = map[string]int{}
				}
				h.l.given[node][d.Action]++
			}
		}
	}
	if dies {
		return nil, errCrash
	}
	return res, err
}

func (h *mortalHold) Progress(ctx context.Context, done, total int64, unit, note string) error {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.l.dead {
		return errCrash
	}
	dies := h.l.dies()
	if dies && !h.l.after {
		return errCrash
	}
	if err := h.Hold.Progress(ctx, done, total, unit, note); err != nil || !dies {
		return err
	}
	return errCrash
}

// dies counts a write, and tells whether the process dies at it. mu is held.
func (l *mortal) dies() bool {
	l.writes++
	if l.dead = l.writes == l.at; l.dead {
		l.died()
	}
	return l.dead
}

// Release of a dead process does not happen: its session ends some day.
func (h *mortalHold) Release(ctx context.Context) error {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if h.l.dead {
		p, err := h.l.kv.Get(ctx, prefix.Lock(config))
		if err == nil && p != nil && p.Session != "" {
			_, err = h.l.kv.API().Session().Destroy(p.Session, nil)
		}
		if err != nil {
			return err
		}
	}
	return h.Hold.Release(ctx)
}

// TestCrashAtEveryBoundary ends the runner before and after each of its writes,
// has another one recover, and looks at all that must hold: the rollout ends as
// it would have, every node in one class, and no node was given two orders where
// one would do.
func TestCrashAtEveryBoundary(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		in   func(f *fleet, content string) runner.Input
		end  orchestrator.Status
		// nodes in all, and by class at the end
		nodes, applied, failed, rolledBack int
		// twice: a failed node has one order to apply and one to go back
		actions map[string]int
	}{
		{
			name: "to the end", end: orchestrator.Succeeded, nodes: 3, applied: 3, actions: map[string]int{records.ActionApply: 1},
			in: func(f *fleet, content string) runner.Input { return f.input(content, canary, half, rest) },
		},
		{
			name: "and back", end: orchestrator.RolledBack, nodes: 4, failed: 1, rolledBack: 2,
			actions: map[string]int{records.ActionApply: 1, records.ActionRestore: 1},
			// The canary is n00; n01 fails beside n02; n03 never gets its turn.
			in: func(f *fleet, content string) runner.Input {
				return f.bad(content, canary, orchestrator.Stage{Name: "two", Nodes: 2, MaxParallel: 2}, rest)
			},
		},
	} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %v", tc.name, after), func(t *testing.T) {
				t.Parallel()
				f := newFleet(t, tc.nodes)
				if _, err := f.runner().Start(t.Context(), f.input("good", rest)); err != nil {
					t.Fatal(err)
				}
				for at := 1; ; at++ {
					in := tc.in(f, fmt.Sprintf("content %d", at))
					ctx, cancel := context.WithCancel(t.Context())
					l := &mortal{Locker: runner.Locksmith(f.locks()), kv: f.kv, at: at, after: after, died: cancel, given: map[string]map[string]int{}}
					r := runner.New(runner.Config{Consul: f.kv, Prefix: prefix, Locks: l, By: "tester"})
					first, err := r.Start(ctx, in)
					died := ctx.Err() != nil
					cancel()
					if (err != nil) != died {
						t.Fatalf("at %d: %v", at, err)
					}
					if !died {
						if at < 10 || first.Header.State != tc.end {
							t.Fatalf("it did not die at write %d: %+v", at, first)
						}
						return
					}
					l.mu.Lock()
					l.dead, l.at = false, 0
					l.mu.Unlock()
					out := &runner.Outcome{}
					heads, err := r.Headers(t.Context())
					if err == nil && heads[0].Hash == in.Spec.Hash && heads[0].FinishedAt != nil {
						out.Header = *heads[0] // it died with its last write: a start would begin it anew
					} else if err == nil {
						out, err = r.Start(t.Context(), in)
					}
					if err != nil || out.Header.State != tc.end {
						t.Fatalf("at %d: %+v %v", at, out, err)
					}
					c := out.Header.Counts
					if c[orchestrator.ClassApplied] != tc.applied || c[orchestrator.ClassFailed] != tc.failed ||
						c[orchestrator.ClassRolledBack] != tc.rolledBack || c.Total() != tc.nodes || c[orchestrator.ClassPending] != 0 {
						t.Fatalf("at %d: %v", at, c)
					}
					for node, actions := range l.given {
						for action, n := range actions {
							if n > tc.actions[actionName(action)] {
								t.Errorf("at %d: %s was given %d orders to %s", at, node, n, actionName(action))
							}
						}
					}
					want := map[orchestrator.Status]string{orchestrator.Succeeded: fmt.Sprintf("content %d", at), orchestrator.RolledBack: "good"}[tc.end]
					if f.count(want) != tc.nodes {
						t.Fatalf("at %d: %d nodes have %q", at, f.count(want), want)
					}
				}
			})
		}
	}
}

// actionName is the name of an action: none is to apply.
func actionName(action string) string {
	if action == "" {
		return records.ActionApply
	}
	return action
}

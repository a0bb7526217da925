package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Unfinished says how a rollout stands that has not ended: of a paused one since when,
// by whom and why.
func Unfinished(h *orchestrator.Header) string {
	if h.State != orchestrator.Paused || h.Paused == nil {
		return "unfinished"
	}
	words := "paused"
	if !h.Paused.At.IsZero() {
		words += " since " + text.Time(h.Paused.At)
	}
	return words + ": " + h.Paused.Why
}

// typed is a command on rollouts as people type it, with the flags that this one was given.
func (r *Runner) typed(verb string, args ...string) string {
	return r.flags.Judging("rollout "+verb, args...)
}

// waits adds to the notices of a wait for the rollout id's locks who is waited for, where
// that is a rollout.
func (r *Runner) waits(ctx context.Context, id string, most time.Duration) func(locksmith.Notice) {
	if r.notify == nil {
		return nil
	}
	return func(n locksmith.Notice) {
		if n.Kind == locksmith.NoticeWaiting && n.Text == "" && n.Status.Session != nil && n.Status.State != locksmith.Hot {
			if who := r.drives(ctx, n.Lock, id); who != "" {
				n.Text = fmt.Sprintf("it %s; waiting, %s at most", who, most)
			}
		}
		r.notify(n)
	}
}

// drives says which rollout the holder of a lock drives, and how that one stands; "" if
// it is none, or that cannot be read. id is the rollout that wants the lock.
func (r *Runner) drives(ctx context.Context, lock, id string) string {
	p, err := r.consul.Get(ctx, r.keys.Lock(lock))
	var rec records.Holder
	if err != nil || p == nil || p.Session == "" || records.Decode(p.Key, p.Value, &rec) != nil || rec.RolloutID == "" {
		return ""
	}
	words := "drives rollout " + rec.RolloutID
	if rec.RolloutID == id {
		words = "drives this very rollout"
	}
	h, err := r.header(ctx, rec.RolloutID)
	if err != nil || h.State != orchestrator.Paused {
		return words
	}
	return fmt.Sprintf("%s, which is %s; `%s` lets that go on", words, Unfinished(h), r.typed(h.WayOn(), h.ID))
}

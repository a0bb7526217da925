package runner

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// lookEvery is how often Watch looks whether anybody drives a rollout while its header
// stands still, and lookFirst how soon after the first header. A reading of all answers
// is followed by none for readShare times as long as it took.
const (
	lookEvery = 5 * time.Second
	lookFirst = time.Second
	readShare = 20
)

// Watch calls fn with the rollout's header, first and at each change, until it
// has ended or fn returns false. Whoever drives the rollout writes the header at
// every decision and, while nodes answer, every second: one query of a small key
// follows it, whatever the fleet's size. Where nobody drives a rollout that is at
// work, its header tells nothing of that: fn is then called with undriven, and once
// more when somebody does again. While nobody drives it, nobody counts the nodes'
// answers either: fn gets the header with the counts as they give them, at each look
// that finds other ones.
func (r *Runner) Watch(ctx context.Context, id string, fn func(h *orchestrator.Header, undriven bool) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	headers, failed := make(chan *orchestrator.Header), make(chan error, 1)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer cancel(nil)
	follower.Go(func() {
		for w := r.headerWatcher(id); ; {
			h, err := w.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case headers <- h:
			case <-ctx.Done():
				return
			}
		}
	})
	var last *orchestrator.Header // nil: it has not begun, as far as is known
	undriven, look := false, lookFirst
	count := recount{r: r}
	for first := true; ; first = false {
		var late <-chan time.Time
		switch {
		case first:
		case last == nil:
			late = time.After(blockerEvery)
		case last.AtWork() || last.State == orchestrator.Paused:
			late = time.After(look)
		}
		h := last
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		case h = <-headers:
		case <-late:
			if last == nil {
				break // it is time to look into the queue
			}
			look = lookEvery
			left, err := r.left(ctx, last)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return err
			}
			now, news := left && last.AtWork(), false
			if left {
				news = count.again(ctx, last)
			}
			if now != undriven || news {
				if undriven = now; !fn(count.of(last), now) {
					return nil
				}
			}
			continue
		}
		switch {
		case h == nil:
			// It may still wait for its turn.
			w, err := r.Waits(ctx, id)
			switch {
			case err != nil:
				return err
			case w == nil:
				if _, err := r.header(ctx, id); err != nil {
					return err
				}
			case !fn(w.Header(), false):
				return nil
			}
		case last != nil && reflect.DeepEqual(h, last):
			// Told again, after an error that was retried.
		default:
			undriven, count.live = false, nil
			if !fn(h, false) || h.FinishedAt != nil {
				return nil
			}
		}
		last = h
	}
}

// StandsStill reports whether a rollout stands still though it is at work: nobody drives it.
func (r *Runner) StandsStill(ctx context.Context, h *orchestrator.Header) (bool, error) {
	left, err := r.left(ctx, h)
	return left && h.AtWork(), err
}

// left reports whether nobody holds the lock of a rollout whose header is h. The
// header is read after the lock: who ends, pauses or resumes a rollout writes that
// before he lets the lock go.
func (r *Runner) left(ctx context.Context, h *orchestrator.Header) (bool, error) {
	if driven, err := r.driven(ctx, h); err != nil || driven {
		return false, err
	}
	now, err := r.header(ctx, h.ID)
	return err == nil && now.FinishedAt == nil && now.State == h.State, err
}

// recount counts the answers of the nodes of a rollout that nobody drives. Each count
// reads all of them, so that none is made where none can have come in.
type recount struct {
	r    *Runner
	plan *orchestrator.Plan
	// live is the header with the last counts; nil: there are none of it.
	live *orchestrator.Header
	due  time.Time
}

// of is a header with the counts that were made of it.
func (c *recount) of(h *orchestrator.Header) *orchestrator.Header {
	if c.live != nil {
		return c.live
	}
	return h
}

// again counts, if it is time, and reports whether the counts are other ones than
// before. What cannot be read now is left as it was.
func (c *recount) again(ctx context.Context, h *orchestrator.Header) bool {
	before := c.of(h)
	settled := c.live != nil && c.live.InFlight == 0 && c.live.Counts[orchestrator.ClassUnreachable] == 0
	if h.PlanChunks == 0 || settled || time.Now().Before(c.due) {
		return false
	}
	began := time.Now()
	defer func() { c.due = time.Now().Add(readShare * time.Since(began)) }()
	if c.plan == nil {
		plan, err := c.r.plan(ctx, h)
		if err != nil {
			return false
		}
		c.plan = plan
	}
	now, err := c.r.liveOf(ctx, c.plan, h)
	if err != nil {
		return false
	}
	c.live = now
	return before.Counts != now.Counts || before.InFlight != now.InFlight || !reflect.DeepEqual(before.Problems, now.Problems) || !reflect.DeepEqual(before.Flying, now.Flying)
}

package hooks

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/go-hclog"
)

// hook is one hook with its queue. One goroutine delivers, in order.
type hook struct {
	cfg  Config
	log  hclog.Logger
	send func(ctx context.Context, e *Event) error
	wake chan struct{}

	mu     sync.Mutex
	queue  []Event
	closed bool
	// dropped are those that were lost since the last that was delivered.
	dropped int64
	warned  time.Time

	delivered, failed, lost atomic.Int64
}

// push never waits: where the queue is full the oldest event goes.
func (h *hook) push(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if len(h.queue) >= QueueSize {
		h.queue = slices.Delete(h.queue, 0, 1)
		h.drop(1)
		if now := time.Now(); now.Sub(h.warned) >= time.Minute {
			h.warned = now
			h.log.Warn("a hook is too slow or away: its oldest events are dropped", "dropped", h.dropped)
		}
	}
	h.queue = append(h.queue, e)
	h.poke()
}

// drop is called with mu held.
func (h *hook) drop(n int64) {
	h.dropped += n
	h.lost.Add(n)
}

func (h *hook) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hook) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.poke()
}

func (h *hook) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.queue)
}

// next takes the first event; ok is false when there will be none.
func (h *hook) next(ctx context.Context) (e Event, ok bool) {
	for {
		h.mu.Lock()
		if len(h.queue) > 0 {
			e = h.queue[0]
			h.queue = slices.Delete(h.queue, 0, 1)
			e.Dropped = h.dropped
			h.mu.Unlock()
			return e, true
		}
		closed := h.closed
		h.mu.Unlock()
		if closed {
			return e, false
		}
		select {
		case <-h.wake:
		case <-ctx.Done():
			return e, false
		}
	}
}

// run delivers until the hook is closed and its queue empty, or ctx ends.
func (h *hook) run(ctx context.Context) {
	for {
		e, ok := h.next(ctx)
		if !ok {
			return
		}
		err := h.deliver(ctx, &e)
		h.mu.Lock()
		if err == nil {
			h.delivered.Add(1)
			h.dropped -= e.Dropped
		} else {
			h.drop(1)
		}
		if ctx.Err() != nil {
			h.drop(int64(len(h.queue)))
			h.queue = nil
		}
		h.mu.Unlock()
		if err != nil {
			h.log.Warn("an event could not be delivered", "event", e.Kind, "lock", e.Lock, "event_id", e.ID, "error", err)
		}
	}
}

// deliver tries until it succeeds, fails for good, or RetryFor is over: from one
// second on, doubling up to a minute, each pause spread by half.
func (h *hook) deliver(ctx context.Context, e *Event) error {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval, b.RandomizationFactor = time.Second, 2, time.Minute, 0.5
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tctx, cancel := context.WithTimeoutCause(ctx, h.cfg.Timeout, errTimeout)
		defer cancel()
		err := h.send(tctx, e)
		if err == nil {
			return struct{}{}, nil
		}
		h.failed.Add(1)
		if tctx.Err() != nil && ctx.Err() == nil {
			err = errTimeout
		}
		last = err
		if f, ok := errors.AsType[*finalError](err); ok {
			return struct{}{}, backoff.Permanent(f)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(b), backoff.WithMaxElapsedTime(RetryFor), backoff.WithNotify(func(err error, next time.Duration) {
		h.log.Debug("delivering again", "event", e.Kind, "error", err, "wait", next.Round(time.Millisecond).String())
	}))
	if err != nil && last != nil {
		return last
	}
	return err
}

var errTimeout = errors.New("timed out")

// finalError is one that another try does not mend.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

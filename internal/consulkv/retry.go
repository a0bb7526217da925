package consulkv

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/aim-control/aimlock/internal/fate"
)

// newBackOff is the pause between tries: from 100 ms, doubling up to 2 s,
// each spread by half, so that a fleet does not come back in step.
func newBackOff(ctx context.Context) fate.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 100 * time.Millisecond
	b.Multiplier = 2
	b.MaxInterval = 2 * time.Second
	b.RandomizationFactor = 0.5
	return fate.Spread(ctx, "retry", b)
}

// patience is how long an operation is tried again before anybody is told.
const patience = time.Second

// Retry runs f, which must be safe to repeat, until it succeeds, fails for
// good, or the client's RetryFor is over. Each try has the client's time-out.
// Until bounds it further. The error is an *Error, or the cause of ctx if that
// ended.
func Retry[T any](ctx context.Context, c *Client, op string, f func(context.Context) (T, error)) (T, error) {
	start, tries := time.Now(), 0
	most := c.retryFor
	if left, ok := Hurry(ctx); ok {
		// Not 0, which would mean without end.
		most = min(most, max(left, time.Nanosecond))
	}
	v, err := backoff.Retry(ctx, func() (T, error) {
		tries++
		tctx, cancel := context.WithTimeout(ctx, try(ctx, c.timeout))
		defer cancel()
		v, err := f(tctx)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return v, backoff.Permanent(context.Cause(ctx))
		}
		err = c.Classify(op, err)
		if e, ok := errors.AsType[*Error](err); ok && e.Temporary() {
			return v, err
		}
		return v, backoff.Permanent(err)
	}, backoff.WithBackOff(newBackOff(ctx)), backoff.WithMaxElapsedTime(most),
		backoff.WithNotify(func(err error, next time.Duration) {
			c.log.Debug("retrying", "op", op, "error", err, "wait", next.Round(time.Millisecond).String())
			if time.Since(start) > patience {
				c.onRetry(err)
			}
		}))
	if e, ok := errors.AsType[*Error](err); ok {
		e.Tries, e.Took = tries, time.Since(start)
	}
	return v, err
}

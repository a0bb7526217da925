package consulkv

import (
	"context"
	"time"
)

// leastTry is the time that one request is given though the deadline of Until is
// nearer or past: a Consul that answers is not to be called unreachable.
const leastTry = 2 * time.Second

type untilKey struct{}

// Until bounds the tries of every operation under ctx: none is made again past
// the deadline, and each operation has one try of up to 2 s whatever the time. So
// what is done under it goes on past the deadline for as long as Consul answers,
// and ends when it does not. A deadline of the past means one short try.
//
// It is no deadline of ctx: the errors are about Consul and name its address.
func Until(ctx context.Context, deadline time.Time) context.Context {
	return context.WithValue(ctx, untilKey{}, deadline)
}

// Unhurried takes the bound of Until off: for what outlives the one who set it.
func Unhurried(ctx context.Context) context.Context {
	if _, ok := Hurry(ctx); !ok {
		return ctx
	}
	return context.WithValue(ctx, untilKey{}, time.Time{})
}

// Hurry is what is left until the deadline of Until, which may be less than
// nothing; ok is false where there is none.
func Hurry(ctx context.Context) (left time.Duration, ok bool) {
	d, _ := ctx.Value(untilKey{}).(time.Time)
	if d.IsZero() {
		return 0, false
	}
	return time.Until(d), true
}

// try is how long one request may take that has timeout without a hurry.
func try(ctx context.Context, timeout time.Duration) time.Duration {
	if left, ok := Hurry(ctx); ok {
		return min(timeout, max(left, leastTry))
	}
	return timeout
}

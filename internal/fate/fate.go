// Package fate is where the code takes what it leaves to chance: how a pause is
// spread, a nonce, and when a goroutine whose timer has run out gets its turn.
//
// On a machine these come from its random source and its scheduler. A context may
// carry a Source that decides them instead: a simulation that has to replay. It
// imports only the standard library and backoff.
package fate

import (
	"context"
	"crypto/rand"
	"math"
	random "math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Source decides. What is asked for has a name, so that draws of different places
// do not depend on which comes first. It is safe for concurrent use.
type Source interface {
	// Int64N returns a number from 0 to below n, which is positive.
	Int64N(what string, n int64) int64
	// Text returns what nothing else was or will be called.
	Text(what string) string
	// Turn returns when the goroutine that calls it may go on.
	Turn(ctx context.Context, what string)
}

type sourceKey struct{}

// With is ctx with a source.
func With(ctx context.Context, s Source) context.Context {
	return context.WithValue(ctx, sourceKey{}, s)
}

func of(ctx context.Context) Source {
	s, _ := ctx.Value(sourceKey{}).(Source)
	return s
}

// N returns a random number from 0 to below n. It panics for an n that is not
// positive.
func N[T ~int64](ctx context.Context, what string, n T) T {
	if s := of(ctx); s != nil {
		return T(s.Int64N(what, int64(n)))
	}
	return random.N(n)
}

// Text returns a random text of at least 26 letters and digits that nobody can
// guess.
func Text(ctx context.Context, what string) string {
	if s := of(ctx); s != nil {
		return s.Text(what)
	}
	return rand.Text()
}

// Shuffle puts n elements into a random order.
func Shuffle(ctx context.Context, what string, n int, swap func(i, j int)) {
	for i := n - 1; i > 0; i-- {
		swap(i, int(N(ctx, what, int64(i+1))))
	}
}

// Turn is called when a timer has run out, before anything is done about it: from
// then on it is the scheduler of the machine that decides when the goroutine goes on,
// which may be much later if the process is stopped.
func Turn(ctx context.Context, what string) {
	if s := of(ctx); s != nil {
		s.Turn(ctx, what)
	}
}

// Spread makes the pauses of a back-off come from the source of ctx, where it has
// one. b must not be used otherwise.
func Spread(ctx context.Context, what string, b *backoff.ExponentialBackOff) BackOff {
	s := of(ctx)
	if s == nil {
		return b
	}
	factor := b.RandomizationFactor
	b.RandomizationFactor = 0
	return &spread{b, s, what, factor}
}

// BackOff is a backoff.BackOff that can begin anew.
type BackOff interface {
	NextBackOff() time.Duration
	Reset()
}

var (
	_ BackOff = (*backoff.ExponentialBackOff)(nil)
	_ BackOff = (*spread)(nil)
)

type spread struct {
	b      *backoff.ExponentialBackOff
	s      Source
	what   string
	factor float64
}

func (s *spread) Reset() { s.b.Reset() }

func (s *spread) NextBackOff() time.Duration {
	d := float64(s.b.NextBackOff())
	least := d * (1 - s.factor)
	width := int64(math.Max(1, 2*d*s.factor))
	return time.Duration(least) + time.Duration(s.s.Int64N(s.what, width))
}

package guard

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestPrunesEveryHour: what is old is deleted first ten minutes after this
// locksmith began to lead and every hour then, soon again where there is more, and
// after an error at the next turn.
func TestPrunesEveryHour(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		type turn struct {
			n    int
			more bool
			err  error
		}
		script := []turn{{n: 5000, more: true}, {err: errors.New("no leader")}, {n: 3}, {}}
		turns := make(chan time.Time, len(script))
		s := w.make(always, func(c *Config) {
			c.Prune = func(context.Context) (int, bool, error) {
				now := script[0]
				script = script[1:]
				turns <- time.Now()
				return now.n, now.more, now.err
			}
		})
		last := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.prunes(ctx) }()
		for i, want := range []time.Duration{pruneFirst, pruneMore, pruneEvery, pruneEvery} {
			at := <-turns
			if got := at.Sub(last); got < want || got > want+time.Second {
				t.Fatalf("turn %d comes after %s, and should after %s", i+1, got, want)
			}
			last = at
		}
		cancel()
		<-done
		if n := s.log.count("deleted old rollouts, plans and contents"); n != 2 {
			t.Errorf("it told %d times that it deleted, and did twice", n)
		}
		if !s.log.has("no leader") {
			t.Error("it does not tell what went wrong")
		}
	})
}

// TestPrunesWhileItLeads: and nobody else does.
func TestPrunesWhileItLeads(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		turn := make(chan struct{})
		w.start(always, func(c *Config) {
			c.Prune = func(context.Context) (int, bool, error) { close(turn); return 0, false, nil }
		}).leads(time.Minute)
		w.start(always, func(c *Config) {
			c.Prune = func(context.Context) (int, bool, error) {
				t.Error("one that does not lead deletes")
				return 0, false, nil
			}
		})
		<-turn
	})
}

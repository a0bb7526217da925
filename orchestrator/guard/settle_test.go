package guard

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// slowSource calls between after it has read, and before it tells of that.
type slowSource struct {
	Source
	between func()
}

func (s slowSource) Run(ctx context.Context, changed func([]*evidence.Snapshot)) error {
	return s.Source.Run(ctx, func(batch []*evidence.Snapshot) {
		s.between()
		changed(batch)
	})
}

// Who is done with a lock lets it go and ends: nobody is told that it is HOT though its
// end is seen before its release. One that stays held by who has ended is.
func TestReleaseIsNotHot(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.hold(w.client(asDead), "job")
		w.hold(w.client(asDead), "dead")
		release := sync.OnceFunc(func() {
			if err := h.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		s := w.start("", func(c *Config) {
			source := c.Source
			c.Source = func(roots []string) Source { return slowSource{source(roots), release} }
		})
		w.freed("dead", 10*time.Second)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if s.log.has("lock is HOT: lock=job") || !s.log.has("lock is HOT: lock=dead") {
			t.Error("only the lock whose holder died is HOT")
		}
		if s.log.has("job") {
			t.Error("something is told of a lock that was let go")
		}
	})
}

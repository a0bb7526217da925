package guard

import (
	"context"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// reread is what a lock was read as for the second time.
type reread struct {
	l *lock
	// was is the snapshot that the lock was judged by.
	was  *evidence.Snapshot
	snap *evidence.Snapshot
	err  error
}

// settle begins to read a lock again that has become HOT and may have been let go since
// it was read, and reports whether the verdict waits for that: a process that is done
// ends at once, and this host tells its end sooner than Consul its release.
func (g *Guard) settle(l *lock, v *locksmith.Verdict) bool {
	if !l.settled.Owes(g.client, v) {
		return false
	}
	l.settling = true
	r, reader := reread{l: l, was: l.snap}, g.client.Reader()
	g.spawn(func(ctx context.Context) {
		r.snap, r.err = reader.Read(ctx, r.was.Name)
		select {
		case g.rereads <- r:
		case <-ctx.Done():
		}
	})
	return true
}

// reread takes what was read. Of a hold that has ended it is the newest there is; of one
// that stands, the source may have told more meanwhile. Where Consul does not answer,
// what was known counts.
func (g *Guard) reread(r reread) {
	l, now := r.l, time.Now()
	l.settling = false
	if l.snap == nil {
		return
	}
	if hold := r.was.Hold(); r.err == nil && r.snap.Hold() != hold && l.snap.Hold() == hold {
		g.take(r.snap, now)
		return
	}
	g.judge(l, now)
}

package guard

import (
	"context"
	"time"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

const (
	// pruneFirst is when a leader first deletes what nobody needs any more, and
	// pruneEvery how often it does after that.
	pruneFirst = 10 * time.Minute
	pruneEvery = time.Hour
	// pruneMore is the pause before the next part, where there is more.
	pruneMore = 5 * time.Second
)

// prunes keeps what aimlock writes about locks bounded, for as long as this
// locksmith leads. What goes wrong is tried again at the next turn.
func (g *Guard) prunes(ctx context.Context) {
	for wait := pruneFirst; ; {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		out, err := g.cfg.Client.Prune(ctx, locksmith.Retention{})
		wait = pruneEvery
		switch {
		case err != nil && ctx.Err() == nil:
			g.trouble("deleting what is old", err)
		case out.More:
			wait = pruneMore
		}
		if g.cfg.Prune != nil {
			n, more, err := g.cfg.Prune(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				g.trouble("deleting old rollouts and contents", err)
			case more:
				wait = pruneMore
			}
			if n > 0 {
				g.log.Info("deleted old rollouts, plans and contents", "count", n)
			}
		}
		if n := out.Breaks + out.Requests + out.Approvals + out.Silences + out.Observed; n > 0 {
			g.log.Info("deleted what is old", "breaks", out.Breaks, "requests", out.Requests, "approvals", out.Approvals,
				"silences", out.Silences, "observed", out.Observed)
		}
	}
}

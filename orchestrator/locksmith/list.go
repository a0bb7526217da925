package locksmith

import (
	"context"
	"slices"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// List judges every held lock under a prefix of keys, "" for all of KV, and
// every free lock of aimlock's own there. However many locks there are, Consul
// is asked the same few questions; see [evidence.Sweep].
func (c *Client) List(ctx context.Context, prefix string) ([]*Verdict, error) {
	return c.list(ctx, prefix, false)
}

// ListHeld is List without the free locks.
func (c *Client) ListHeld(ctx context.Context, prefix string) ([]*Verdict, error) {
	return c.list(ctx, prefix, true)
}

func (c *Client) list(ctx context.Context, prefix string, held bool) ([]*Verdict, error) {
	sweep := c.reader.NewSweep([]string{prefix})
	sweep.HeldOnly = held
	found, err := sweep.Read(ctx)
	if err != nil {
		return nil, err
	}
	semaphores := map[string]bool{}
	for _, s := range found {
		semaphores[s.Key] = s.Semaphore != nil
	}
	found = slices.DeleteFunc(found, func(s *evidence.Snapshot) bool {
		if s.Slot != nil {
			// It is shown with its semaphore, but for one that has none.
			return semaphores[s.Slot.Of]
		}
		return held && !s.Held() && (s.Semaphore == nil || len(s.Semaphore.Slots)+len(s.Semaphore.Waiting) == 0)
	})
	cooling := c.coolingOf(ctx, found)
	now := time.Now()
	out := make([]*Verdict, len(found))
	for i, s := range found {
		out[i] = c.NewObserver(s.Name, nil).Judge(s, now)
		if cooling[s.Key] {
			out[i].State = Cooling
		}
	}
	return out, nil
}

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
	var out []*Verdict
	_, err := c.EachLock(ctx, []string{prefix}, true, func(v *Verdict) { out = append(out, v) })
	return out, err
}

// EachLock is List, of all keys that begin with one of prefixes, for who does not keep what it makes: the facts of thousands
// of verdicts are many times what is shown of them. free: the free locks of
// aimlock's own as well. hidden: there may be more locks, which the token
// may not read.
func (c *Client) EachLock(ctx context.Context, prefixes []string, free bool, each func(*Verdict)) (hidden bool, err error) {
	sweep := c.reader.NewSweep(prefixes)
	sweep.HeldOnly = !free
	found, err := sweep.Read(ctx)
	if err != nil {
		return false, err
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
		return !free && !s.Held() && (s.Semaphore == nil || len(s.Semaphore.Slots)+len(s.Semaphore.Waiting) == 0)
	})
	cooling := c.coolingOf(ctx, found)
	now := time.Now()
	for i, s := range found {
		v := c.NewObserver(s.Name, nil).Judge(s, now)
		if cooling[s.Key] {
			v.State = Cooling
		}
		found[i] = nil
		each(v)
	}
	return sweep.Hidden, nil
}

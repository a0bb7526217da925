package locksmith

import (
	"context"
	"slices"
	"strings"
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
	return c.eachLock(ctx, prefixes, !free, func(s *evidence.Snapshot) bool { return free || occupied(s) }, each)
}

// EachTaken is EachLock of the locks that cannot be had: those that somebody holds,
// and those of aimlock's own that are COOLING.
func (c *Client) EachTaken(ctx context.Context, prefixes []string, each func(*Verdict)) (hidden bool, err error) {
	none := true
	keep := func(s *evidence.Snapshot) bool {
		return occupied(s) || s.Own && s.Holder != nil && !s.Holder.Released
	}
	tell := func(v *Verdict) {
		if v.Occupied() || v.State == Cooling {
			none = false
			each(v)
		}
	}
	if hidden, err = c.eachLock(ctx, prefixes, true, keep, tell); err != nil || !none {
		return hidden, err
	}
	// Where there is no session, what nobody holds was not read.
	var own []string
	for _, p := range prefixes {
		switch locks := c.keys.Locks(); {
		case strings.HasPrefix(locks, p):
			own = append(own, locks)
		case strings.HasPrefix(p, locks):
			own = append(own, p)
		}
	}
	if own != nil && !hidden {
		_, err = c.eachLock(ctx, own, false, keep, tell)
	}
	return hidden, err
}

// occupied tells whether somebody has or wants the lock.
func occupied(s *evidence.Snapshot) bool {
	return s.Held() || s.Semaphore != nil && len(s.Semaphore.Slots)+len(s.Semaphore.Waiting) > 0
}

// eachLock judges the locks that keep wants. heldOnly: what nobody holds may be left
// out.
func (c *Client) eachLock(ctx context.Context, prefixes []string, heldOnly bool, keep func(*evidence.Snapshot) bool, each func(*Verdict)) (hidden bool, err error) {
	sweep := c.reader.NewSweep(prefixes)
	sweep.HeldOnly = heldOnly
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
		return !keep(s)
	})
	cooling := c.coolingOf(ctx, found)
	now := time.Now()
	for i, s := range found {
		obs := c.NewObserver(s.Name, nil)
		v, err := obs.Settle(ctx, obs.Judge(s, now))
		if err != nil {
			return false, err
		}
		if cooling[s.Key] {
			v.State = Cooling
		}
		found[i] = nil
		each(v)
	}
	return sweep.Hidden, nil
}

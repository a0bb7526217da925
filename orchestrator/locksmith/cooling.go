package locksmith

import (
	"context"
	"strings"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// noSession is an id that no session has.
const noSession = "00000000-0000-0000-0000-000000000000"

// cooling tells whether Consul's lock-delay refuses a free lock just now. No
// read tells it, so it is found out by a transaction that cannot commit: it
// demands that a key which exists does not, and locks it for a session that
// there is not. A server names the lock-delay before it looks at either. Where
// that cannot be asked (the token may not write), the lock counts as free.
func (c *Client) cooling(ctx context.Context, s *evidence.Snapshot) bool {
	return c.coolingOf(ctx, []*evidence.Snapshot{s})[s.Key]
}

// coolingOf is cooling for many locks, by as few transactions as hold them.
func (c *Client) coolingOf(ctx context.Context, list []*evidence.Snapshot) map[string]bool {
	out := map[string]bool{}
	var ops []consulkv.Op
	ask := func() {
		if len(ops) == 0 {
			return
		}
		_, err := c.consul.Txn(ctx, append([]consulkv.Op{consulkv.CheckIndex(ops[0].Key, 0)}, ops...)...)
		ops = ops[:0]
		ref, ok := isRefused(err)
		if !ok {
			return
		}
		for _, o := range ref.Ops {
			if strings.Contains(o.What, "lock delay") {
				out[o.Key] = true
			}
		}
	}
	for _, s := range list {
		if s.Held() || s.Pair == nil || s.Holder != nil && s.Holder.Released {
			// After a clean end, or before any, there is no lock-delay.
			continue
		}
		if s.Semaphore != nil || s.Slot != nil {
			// It is not by its session that such a key is had.
			continue
		}
		ops = append(ops, flags(consulkv.Lock(s.Key, nil, noSession), s))
		if len(ops) == coolingBatch {
			ask()
		}
	}
	ask()
	return out
}

// coolingBatch is how many locks one transaction asks about: older servers take
// 64 operations.
const coolingBatch = 63

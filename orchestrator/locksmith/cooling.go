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
	if s.Held() || s.Pair == nil || s.Holder != nil && s.Holder.Released {
		// After a clean end, or before any, there is no lock-delay.
		return false
	}
	_, err := c.consul.Txn(ctx, consulkv.CheckIndex(s.Key, 0), flags(consulkv.Lock(s.Key, s.Pair.Value, noSession), s))
	ref, ok := isRefused(err)
	if !ok {
		return false
	}
	for _, o := range ref.Ops {
		if strings.Contains(o.What, "lock delay") {
			return true
		}
	}
	return false
}

package consulkv

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// accessorTimeout bounds the one request for the accessor id: it is for the
// record, and nothing waits long for it.
const accessorTimeout = 2 * time.Second

// accessor is asked for once.
type accessor struct {
	mu    sync.Mutex
	known bool
	id    string
}

// Accessor is the accessor id of the client's ACL token: public, and the name by
// which an operator finds the token's owner. It is "" without a token of the
// client's own (Consul then takes the agent's default token or the anonymous
// one, and neither names anybody), where ACLs are disabled, and where the answer
// was refused or did not come within 2 s. It is asked for at most once, but for
// an answer that did not come.
func (c *Client) Accessor(ctx context.Context) string {
	if !c.hasToken {
		return ""
	}
	a := c.accessor
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known {
		return a.id
	}
	ctx, cancel := context.WithTimeout(ctx, accessorTimeout)
	defer cancel()
	// The answer holds the token itself: nothing but the accessor is kept.
	tok, _, err := c.api.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		err = c.Classify("read the accessor of the token", err)
		c.log.Debug("the accessor of the ACL token is not known", "error", err)
		if e, ok := errors.AsType[*Error](err); ctx.Err() != nil || ok && e.Temporary() {
			return ""
		}
	} else if tok != nil {
		a.id = tok.AccessorID
	}
	a.known = true
	return a.id
}

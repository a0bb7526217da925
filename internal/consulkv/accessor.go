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
	// asking is closed when the request that is under way has ended; nil: none is.
	asking chan struct{}
}

// AskAccessor begins to ask for what Accessor returns, unless that is known, so
// that a later call of it need not wait as long. It returns at once.
func (c *Client) AskAccessor() { c.askAccessor() }

// askAccessor returns what is closed when the accessor is known, or as good as
// not to be had; nil: it is so already.
func (c *Client) askAccessor() <-chan struct{} {
	a := c.accessor
	a.mu.Lock()
	defer a.mu.Unlock()
	if !c.hasToken || a.known {
		return nil
	}
	if a.asking == nil {
		a.asking = make(chan struct{})
		// It belongs to no one call: who asks next shares its answer. It ends
		// within accessorTimeout.
		go c.readAccessor(a.asking)
	}
	return a.asking
}

func (c *Client) readAccessor(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), accessorTimeout)
	defer cancel()
	// The answer holds the token itself: nothing but the accessor is kept.
	tok, _, err := c.api.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	known, id := true, ""
	if err != nil {
		err = c.Classify("read the accessor of the token", err)
		c.log.Debug("the accessor of the ACL token is not known", "error", err)
		if e, ok := errors.AsType[*Error](err); ctx.Err() != nil || ok && e.Temporary() {
			known = false
		}
	} else if tok != nil {
		id = tok.AccessorID
	}
	a := c.accessor
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known, a.id, a.asking = known, id, nil
	close(done)
}

// Accessor is the accessor id of the client's ACL token: public, and the name by
// which an operator finds the token's owner. It is "" without a token of the
// client's own (Consul then takes the agent's default token or the anonymous
// one, and neither names anybody), where ACLs are disabled, and where the answer
// was refused or did not come within 2 s, or within what is left of ctx. It is
// asked for at most once, but for an answer that did not come.
func (c *Client) Accessor(ctx context.Context) string {
	if asking := c.askAccessor(); asking != nil {
		select {
		case <-asking:
		case <-ctx.Done():
		}
	}
	a := c.accessor
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.id
}

// AccessorWithin is Accessor for who has no more than d to wait.
func (c *Client) AccessorWithin(ctx context.Context, d time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.Accessor(ctx)
}

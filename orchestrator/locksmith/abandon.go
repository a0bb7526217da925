package locksmith

import (
	"context"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

// LeaseEnd is when this process must have stopped work if Consul never answers
// again, on its monotonic clock.
func (h *Hold) LeaseEnd() time.Time { return h.sess.leaseEnd() }

// Abandon ends the hold without marking it released: something that ran under
// it may still run, so the next holder owes the quiesce that the record asks
// for. It is safe to call after Release, when it does nothing.
func (h *Hold) Abandon(ctx context.Context) {
	h.mu.Lock()
	if h.released {
		h.mu.Unlock()
		return
	}
	h.released = true
	h.mu.Unlock()
	h.end(ErrReleased)
	h.wg.Wait()
	h.sess.close(ctx)
	h.span.Outcome("abandoned", false)
	h.span.End()
}

// whoWithin is Who for who has no more than d to wait for the accessor.
func (c *Client) whoWithin(ctx context.Context, d time.Duration) records.Who {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.Who(ctx)
}

// By names the operator in records.
func (c *Client) By() string { return c.by }

// Who tells who this client is, in records beside By. It asks Consul for the
// accessor of the token once.
func (c *Client) Who(ctx context.Context) records.Who {
	return records.Who{Accessor: c.consul.Accessor(ctx), Host: c.self.Host, User: c.self.User}
}

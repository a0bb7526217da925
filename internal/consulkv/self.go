package consulkv

import (
	"context"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Self is the Consul agent that is asked.
type Self struct {
	Version, NodeName, NodeID, Datacenter string
}

// Self reads which agent is asked. It makes one try.
func (c *Client) Self(ctx context.Context) (Self, error) {
	var out struct{ Config Self }
	if _, err := c.api.Raw().Query("/v1/agent/self", &out, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return Self{}, c.Classify("read which agent this is", err)
	}
	return out.Config, nil
}

// ReservedFor returns the ID of another node for which the catalog keeps the agent's
// name, and "" where it does not, or where the token may not see it. Consul then takes
// nothing that this agent registers: no service, no check. So it is where a snapshot
// was restored into a server of the same name that has a new data folder.
func (c *Client) ReservedFor(ctx context.Context, a Self) (string, error) {
	n, _, err := c.api.Catalog().Node(a.NodeName, consistent(ctx))
	switch {
	case err != nil:
		return "", c.Classify("read node "+a.NodeName, err)
	case n == nil || n.Node == nil || n.Node.ID == "" || a.NodeID == "" || strings.EqualFold(n.Node.ID, a.NodeID):
		return "", nil
	}
	return n.Node.ID, nil
}

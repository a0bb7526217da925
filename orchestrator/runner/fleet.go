package runner

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
)

// FleetSource says which machines a rollout is for.
type FleetSource interface {
	// Nodes lists them, in any order, each once.
	Nodes(ctx context.Context, c *consulkv.Client) ([]orchestrator.Node, error)
}

// StaticFleet is a fleet that was read from a file.
type StaticFleet []orchestrator.Node

// Nodes implements FleetSource.
func (f StaticFleet) Nodes(context.Context, *consulkv.Client) ([]orchestrator.Node, error) {
	return f, nil
}

// ConsulFleet is every machine that offers a service, by Consul's catalog. A
// node's name is the service's metadata "node" where there is one (several
// nodes on one Consul node), else the Consul node's name.
type ConsulFleet struct{ Service string }

// Nodes implements FleetSource.
func (f ConsulFleet) Nodes(ctx context.Context, c *consulkv.Client) ([]orchestrator.Node, error) {
	list, err := consulkv.Retry(ctx, c, "list service "+f.Service, func(ctx context.Context) ([]*api.CatalogService, error) {
		l, _, err := c.API().Catalog().Service(f.Service, "", (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("fleet: Consul knows no instance of service %q: is its name right, and may this token read it (service:read, node:read)?", f.Service)
	}
	seen := map[string]orchestrator.Node{}
	for _, s := range list {
		name := s.Node
		if n := s.ServiceMeta["node"]; n != "" {
			name = n
		}
		if err := keys.CheckName("node", name); err != nil {
			return nil, fmt.Errorf("fleet: service %q: %w", f.Service, err)
		}
		meta := map[string]string{}
		maps.Copy(meta, s.NodeMeta)
		maps.Copy(meta, s.ServiceMeta)
		seen[name] = orchestrator.Node{Name: name, Meta: meta}
	}
	out := make([]orchestrator.Node, 0, len(seen))
	for _, n := range slices.Sorted(maps.Keys(seen)) {
		out = append(out, seen[n])
	}
	return out, nil
}

var (
	_ FleetSource = StaticFleet(nil)
	_ FleetSource = ConsulFleet{}
)

package scaffold

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// Cluster is what was found in Consul.
type Cluster struct {
	Datacenter string `json:"datacenter"`
	// Nodes are all that Consul knows; the token may be allowed to see fewer.
	Nodes int `json:"nodes"`
	// Agents are the nodes on which aimlock's agent runs, by their names in a fleet.
	Agents []string `json:"agents"`
	// Service is the one that runs beside most of the agents, on half of them at
	// least; empty if there is none.
	Service string `json:"service"`
	// Zone is a metadata key by which the agents' nodes are spread; empty if there
	// is none.
	Zone string `json:"zone"`
}

// zoneKeys are the usual names for what fails together.
var zoneKeys = []string{"zone", "availability_zone", "az", "rack", "region"}

// Look reads what Consul knows. The caller bounds it by ctx.
func Look(ctx context.Context, c *consulkv.Client) (*Cluster, error) {
	q := (&api.QueryOptions{AllowStale: true}).WithContext(ctx)
	nodes, _, err := c.API().Catalog().Nodes(q)
	if err != nil {
		return nil, c.Classify("list the nodes", err)
	}
	agents, _, err := c.API().Health().Service(agent.ServiceName, "", false, q)
	if err != nil {
		return nil, c.Classify("list the agents", err)
	}
	out := &Cluster{Nodes: len(nodes), Agents: []string{}}
	for _, n := range nodes {
		out.Datacenter = n.Datacenter
	}
	machines := map[string]bool{}
	for _, a := range agents {
		out.Agents = append(out.Agents, cmp.Or(a.Service.Meta["node"], a.Node.Node))
		machines[a.Node.Node] = true
	}
	slices.Sort(out.Agents)
	out.Zone = zoneOf(agents)
	out.Service, err = beside(ctx, c, machines)
	return out, err
}

// zoneOf is the first usual key that all agents' nodes have, with two values at
// least.
func zoneOf(agents []*api.ServiceEntry) string {
	for _, key := range zoneKeys {
		values, all := map[string]bool{}, len(agents) > 0
		for _, a := range agents {
			v := cmp.Or(a.Service.Meta[key], a.Node.Meta[key])
			values[v], all = true, all && v != ""
		}
		if all && len(values) > 1 {
			return key
		}
	}
	return ""
}

// own are services that say nothing about a config. A holder's goes some time after
// the holder has died.
var own = []string{agent.ServiceName, records.HolderService, "aimlock-locksmith", "consul", "nomad", "nomad-client", "vault"}

// maxServices bounds how many services are asked for their nodes.
const maxServices = 50

// beside is the service that runs on most of the machines.
func beside(ctx context.Context, c *consulkv.Client, machines map[string]bool) (string, error) {
	if len(machines) == 0 {
		return "", nil
	}
	q := (&api.QueryOptions{AllowStale: true}).WithContext(ctx)
	services, _, err := c.API().Catalog().Services(q)
	if err != nil {
		return "", c.Classify("list the services", err)
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(services)), func(s string) bool { return slices.Contains(own, s) })
	best, most := "", 0
	for _, name := range names[:min(len(names), maxServices)] {
		on, _, err := c.API().Catalog().Service(name, "", q)
		if err != nil {
			return "", c.Classify("list a service", err)
		}
		there := map[string]bool{}
		for _, s := range on {
			if machines[s.Node] {
				there[s.Node] = true
			}
		}
		if len(there) > most {
			best, most = name, len(there)
		}
	}
	if 2*most < len(machines) {
		return "", nil
	}
	return best, nil
}

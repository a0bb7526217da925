package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// consulLister lists the machines of a service, or all nodes, by Consul's
// catalog. A node's name is the service's metadata "node" where there is one
// (several nodes on one Consul node), else the Consul node's name.
type consulLister struct {
	src    orchestrator.Source
	consul *consulkv.Client
}

var _ Lister = (*consulLister)(nil)

func (l *consulLister) String() string { return l.src.String() }

// found is an answer of the catalog.
type found struct {
	machines []machine
	filtered bool
	// refused is why Consul does not evaluate the filter.
	refused error
}

// badFilter begins what Consul 1.14 says of a filter.
const badFilter = "Failed to create boolean expression evaluator"

func (l *consulLister) List(ctx context.Context) (*Listing, error) {
	what, ask := "Consul nodes", l.nodes
	if !l.src.Consul.Nodes {
		what, ask = "machines", l.instances
	}
	got, err := consulkv.Retry(ctx, l.consul.ForScan(), "list the fleet", func(ctx context.Context) (found, error) {
		got, err := ask((&api.QueryOptions{RequireConsistent: true, Filter: l.src.Consul.Filter}).WithContext(ctx))
		if err != nil && strings.Contains(err.Error(), badFilter) {
			// Consul answers 500, as if another try could help.
			got.refused, err = err, nil
		}
		return got, err
	})
	if err == nil && got.refused != nil {
		_, what, _ := strings.Cut(got.refused.Error(), badFilter)
		err = fmt.Errorf("Consul does not take the filter%s", text.Clip(text.Printable(strings.TrimSuffix(what, ")")), 300))
	}
	if err != nil {
		return nil, err
	}
	if len(got.machines) == 0 && (got.filtered || !l.noACLs(ctx)) {
		return nil, errors.New("Consul shows none: is the name right, does the filter match any, and may this token read them (node:read, service:read)? What a token may not read is not shown, so that this is not known to be empty")
	}
	for _, m := range got.machines {
		if err := keys.CheckName("node", m.node.Name); err != nil {
			return nil, err
		}
	}
	out := unique(got.machines, what)
	if got.filtered {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%s: ACLs hid a part of Consul's answer: there may be more nodes than this token may read (node:read)", l))
	}
	return out, nil
}

// nodes lists all Consul nodes.
func (l *consulLister) nodes(q *api.QueryOptions) (found, error) {
	list, meta, err := l.consul.API().Catalog().Nodes(q)
	if err != nil {
		return found{}, err
	}
	slices.SortFunc(list, func(a, b *api.Node) int { return cmp.Compare(a.Node, b.Node) })
	out := found{filtered: meta.ResultsFilteredByACLs, machines: make([]machine, 0, len(list))}
	for _, n := range list {
		out.machines = append(out.machines, machine{id: n.Node, up: true, node: orchestrator.Node{Name: n.Node, Meta: n.Meta}})
	}
	return out, nil
}

// instances lists those of a service. Of several on one machine the first by its
// id counts.
func (l *consulLister) instances(q *api.QueryOptions) (found, error) {
	list, meta, err := l.consul.API().Catalog().Service(l.src.Consul.Service, "", q)
	if err != nil {
		return found{}, err
	}
	slices.SortFunc(list, func(a, b *api.CatalogService) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ServiceID, b.ServiceID))
	})
	out := found{filtered: meta.ResultsFilteredByACLs, machines: make([]machine, 0, len(list))}
	for _, s := range list {
		n := orchestrator.Node{Name: cmp.Or(s.ServiceMeta["node"], s.Node), Meta: s.NodeMeta}
		if len(s.ServiceMeta) > 0 {
			n.Meta = make(map[string]string, len(s.NodeMeta)+len(s.ServiceMeta))
			maps.Copy(n.Meta, s.NodeMeta)
			maps.Copy(n.Meta, s.ServiceMeta)
		}
		out.machines = append(out.machines, machine{id: s.Node, up: true, node: n})
	}
	return out, nil
}

// noACLs reports whether this Consul asks for no tokens, so that what it does
// not show is not there.
func (l *consulLister) noACLs(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _, err := l.consul.API().ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(ctx))
	return err != nil && strings.Contains(err.Error(), "ACL support disabled")
}

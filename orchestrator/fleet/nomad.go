package fleet

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
)

// nomadLister lists the clients of a Nomad cluster by one query that Nomad
// filters. Those that are down, draining or not eligible belong to the fleet
// like all others: a config is not placed by the scheduler, and a machine that
// cannot be reached is to be named as unreachable, not to be forgotten. Who
// wants less says so in the filter. A client that Nomad itself has forgotten is
// no more.
//
// A node's name is the client's. Its metadata is node_class, node_pool and
// datacenter, and the client's own, which counts first.
type nomadLister struct {
	src   orchestrator.Source
	nomad *nomadapi.Client
	meta  bool
}

var _ Lister = (*nomadLister)(nil)

func (l *nomadLister) String() string { return l.src.String() }

// metaReaders is how many clients' metadata is read at the same time.
const metaReaders = 16

func (l *nomadLister) List(ctx context.Context) (*Listing, error) {
	src := l.src.Nomad
	list, err := nomadapi.Retry(ctx, l.nomad, "list clients", func(q *api.QueryOptions) ([]*api.NodeListStub, error) {
		q.Region, q.Filter = src.Region, expression(src)
		nodes, _, err := l.nomad.API().Nodes().List(q)
		return nodes, err
	})
	if err != nil {
		return nil, err
	}
	// The oldest first, and of one age by id.
	slices.SortFunc(list, func(a, b *api.NodeListStub) int {
		return cmp.Or(cmp.Compare(a.CreateIndex, b.CreateIndex), cmp.Compare(a.ID, b.ID))
	})
	machines := make([]machine, len(list))
	for i, n := range list {
		if !asked(src, n) {
			return nil, fmt.Errorf("Nomad at %s shows client %s, which is none of those that were asked for: it is too old to filter (1.3 and later do)", l.nomad.Addr(), n.Name)
		}
		if err := keys.CheckName("node", n.Name); err != nil {
			return nil, err
		}
		meta := map[string]string{"datacenter": n.Datacenter}
		if n.NodeClass != "" {
			meta["node_class"] = n.NodeClass
		}
		if n.NodePool != "" {
			meta["node_pool"] = n.NodePool
		}
		maps.Copy(meta, src.Meta)
		machines[i] = machine{id: n.ID, up: n.Status != api.NodeStatusDown, node: orchestrator.Node{Name: n.Name, Meta: meta}}
	}
	if l.meta {
		if err := l.readMeta(ctx, machines); err != nil {
			return nil, err
		}
	}
	return unique(machines, "Nomad clients that are up"), nil
}

// asked reports whether a client is of those that are asked for, as far as the
// list tells: a server that does not know filters shows all.
func asked(src *orchestrator.NomadSource, n *api.NodeListStub) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(src.NodeClass, n.NodeClass) && is(src.NodePool, n.NodePool) && is(src.Datacenter, n.Datacenter)
}

// expression is what is asked for in Nomad's filter language.
func expression(src *orchestrator.NomadSource) string {
	var parts []string
	is := func(selector, value string) {
		parts = append(parts, selector+" == "+strconv.Quote(value))
	}
	for _, p := range [][2]string{{"NodePool", src.NodePool}, {"NodeClass", src.NodeClass}, {"Datacenter", src.Datacenter}} {
		if p[1] != "" {
			is(p[0], p[1])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(src.Meta)) {
		is("Meta["+strconv.Quote(k)+"]", src.Meta[k])
	}
	if src.Filter != "" {
		parts = append(parts, "("+src.Filter+")")
	}
	return strings.Join(parts, " and ")
}

// readMeta adds each client's own metadata, which Nomad tells of one client at a
// time. One that was forgotten meanwhile is left as it is.
func (l *nomadLister) readMeta(ctx context.Context, machines []machine) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(metaReaders)
	for i := range machines {
		g.Go(func() error {
			m := &machines[i]
			n, err := nomadapi.Retry(ctx, l.nomad, "read client "+m.id, func(q *api.QueryOptions) (*api.Node, error) {
				q.Region = l.src.Nomad.Region
				n, _, err := l.nomad.API().Nodes().Info(m.id, q)
				if nomadapi.Status(err) == 404 {
					return nil, nil
				}
				return n, err
			})
			if err != nil {
				return err
			}
			if n != nil {
				maps.Copy(m.node.Meta, n.Meta)
			}
			return nil
		})
	}
	return g.Wait()
}

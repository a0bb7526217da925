package builtin

import (
	"context"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/fleet"
	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/plugin"
)

func fleetPlugins() []plugin.Plugin {
	list := []struct {
		name, doc string
		make      func() plugin.Fleet
	}{
		{"consul", "Lists the machines of a Consul service, or all of Consul's nodes.", func() plugin.Fleet { return &consulFleet{} }},
		{"nomad", "Lists the clients of a Nomad cluster.", func() plugin.Fleet { return &nomadFleet{} }},
		{"file", "Lists the nodes that a file names.", func() plugin.Fleet { return &fileFleet{} }},
	}
	var out []plugin.Plugin
	for _, f := range list {
		p := named(f.name, f.doc)
		p.Fleet = f.make
		out = append(out, p)
	}
	return out
}

// survey lists one source.
func survey(ctx context.Context, f *fleet.Fleet, c *consulkv.Client) (*plugin.Listing, error) {
	got, err := f.Survey(ctx, c)
	if err != nil {
		return nil, err
	}
	return listing(got.Nodes, got.Warnings), nil
}

func listing(nodes []orchestrator.Node, warnings []string) *plugin.Listing {
	out := &plugin.Listing{Warnings: warnings, Nodes: make([]plugin.Node, len(nodes))}
	for i, n := range nodes {
		out.Nodes[i] = plugin.Node{Name: n.Name, Meta: n.Meta}
	}
	return out
}

type consulFleet struct {
	Service string `config:"service" doc:"the service whose machines are the fleet"`
	Nodes   bool   `config:"nodes" doc:"all nodes of the datacenter, in place of a service"`
	Filter  string `config:"filter" doc:"an expression in Consul's own filter language"`
	consulConfig

	c *consulkv.Client
}

func (f *consulFleet) Validate(context.Context) error {
	if f.Nodes == (f.Service != "") {
		return plugin.Invalid("service", "name a service, or set nodes = true for all nodes")
	}
	return nil
}

func (f *consulFleet) Start(context.Context) (err error) {
	f.c, err = f.client()
	return err
}

func (f *consulFleet) List(ctx context.Context) (*plugin.Listing, error) {
	src := orchestrator.Source{Consul: &orchestrator.ConsulSource{Service: f.Service, Nodes: f.Nodes, Filter: f.Filter}}
	return survey(ctx, &fleet.Fleet{Sources: []orchestrator.Source{src}, Meta: true}, f.c)
}

type nomadFleet struct {
	Region     string            `config:"region" doc:"the region whose clients are listed; left out: NOMAD_REGION, or that of the Nomad that is asked"`
	NodePool   string            `config:"node_pool" doc:"only clients of this node pool"`
	NodeClass  string            `config:"node_class" doc:"only clients of this node class"`
	Datacenter string            `config:"datacenter" doc:"only clients of this datacenter"`
	Meta       map[string]string `config:"meta" doc:"pairs that a client's metadata must have"`
	Filter     string            `config:"filter" doc:"an expression in Nomad's own filter language"`
	nomadConfig

	c *nomadapi.Client
}

func (f *nomadFleet) Start(context.Context) (err error) {
	f.c, err = f.client()
	return err
}

func (f *nomadFleet) List(ctx context.Context) (*plugin.Listing, error) {
	src := orchestrator.Source{Nomad: &orchestrator.NomadSource{
		Region: f.Region, NodePool: f.NodePool, NodeClass: f.NodeClass, Datacenter: f.Datacenter, Meta: f.Meta, Filter: f.Filter,
	}}
	return survey(ctx, &fleet.Fleet{
		Sources: []orchestrator.Source{src}, Meta: true, Nomad: func() (*nomadapi.Client, error) { return f.c, nil },
	}, nil)
}

type fileFleet struct {
	Path string `config:"path,required" doc:"a file of nodes, in JSON or HCL; it is read at each list"`
}

func (f *fileFleet) List(context.Context) (*plugin.Listing, error) {
	nodes, err := spec.ReadFleet(f.Path)
	if err != nil {
		return nil, err
	}
	return listing(nodes, nil), nil
}

var (
	_ plugin.Fleet = (*consulFleet)(nil)
	_ plugin.Fleet = (*nomadFleet)(nil)
	_ plugin.Fleet = (*fileFleet)(nil)
)

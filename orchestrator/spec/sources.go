package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-bexpr"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/orchestrator"
)

// maxSources bounds the sources of one fleet.
const maxSources = 100

// fleet decodes where the nodes come from: any number of sources, in their
// order, which decides whose metadata counts.
func (d *decoder) fleet(b *hcl.Block) {
	c := d.content(b.Body, fleetSchema)
	d.file.Spec.Spread, _, _ = d.text(c, "spread")
	if len(c.Blocks) == 0 {
		d.fail(b.DefRange, "Fleet without a source", "The fleet needs a source: consul { service = … }, nomad { … } or file { path = … }.")
		return
	}
	fl := &d.file.Fleet
	seen := map[string]*hcl.Block{}
	files := true
	for i, sb := range c.Blocks {
		if i == maxSources {
			d.fail(sb.DefRange, "Too many fleet sources", "A fleet has %d sources at most.", maxSources)
			break
		}
		var src orchestrator.Source
		ok := false
		switch sb.Type {
		case "consul":
			src.Consul, ok = d.consulSource(sb)
		case "nomad":
			src.Nomad, ok = d.nomadSource(sb)
		case "file":
			src.File, ok = d.fileSource(sb)
		case "plugin":
			src.Plugin, ok = d.pluginSource(sb)
		}
		if !ok {
			files = false
			continue
		}
		if first := seen[src.String()]; first != nil {
			d.fail(sb.DefRange, "Duplicate fleet source", "The same source is there already at %s.", first.DefRange)
			continue
		}
		seen[src.String()] = sb
		files = files && src.File != nil
		fl.Sources = append(fl.Sources, src)
	}
	switch {
	case files && len(fl.Sources) == 1:
		fl.Nodes = fl.Sources[0].File.Nodes
	case files:
		var lists []orchestrator.Listed
		for _, s := range fl.Sources {
			lists = append(lists, orchestrator.Listed{Source: s.String(), Nodes: s.File.Nodes})
		}
		fl.Nodes = orchestrator.Join(lists).Nodes
	}
}

func (d *decoder) consulSource(b *hcl.Block) (*orchestrator.ConsulSource, bool) {
	before := len(d.diags)
	c := d.content(b.Body, consulSchema)
	s := &orchestrator.ConsulSource{}
	s.Service, _, _ = d.text(c, "service")
	all, at, known := d.yes(c, "nodes")
	switch service := c.Attributes["service"]; {
	case known && !all:
		d.bad(at, "Nothing is meant", "\"nodes\" is true for all Consul nodes: leave it out where a service is meant.")
	case at != nil && service != nil:
		d.bad(at, "Service and nodes", "The nodes are those of a service or all of them: make another consul block of this to join both.")
	case at == nil && service == nil:
		d.fail(b.DefRange, "Consul source without nodes", "It needs service = \"…\", or nodes = true for all Consul nodes.")
	}
	s.Nodes = all
	s.Filter = d.filter(c)
	return s, len(d.diags) == before
}

func (d *decoder) nomadSource(b *hcl.Block) (*orchestrator.NomadSource, bool) {
	before := len(d.diags)
	c := d.content(b.Body, nomadSchema)
	s := &orchestrator.NomadSource{}
	s.Region, _, _ = d.text(c, "region")
	s.NodePool, _, _ = d.text(c, "node_pool")
	s.NodeClass, _, _ = d.text(c, "node_class")
	s.Datacenter, _, _ = d.text(c, "datacenter")
	if a := c.Attributes["meta"]; a != nil {
		if v, ok := d.value(a); ok {
			fd := &fleetDecoder{decoder: d}
			s.Meta = fd.meta(a, v)
		}
	}
	s.Filter = d.filter(c)
	return s, len(d.diags) == before
}

// filter is an expression that Consul or Nomad evaluates. Its syntax is looked
// at here, because it is the same in both: a mistake is found with its place.
// maxExpressions bounds the work of the filters' parser, which is exponential in
// nested parentheses.
const maxExpressions = 100_000

func (d *decoder) filter(c *hcl.BodyContent) string {
	s, a, ok := d.text(c, "filter")
	if !ok {
		return ""
	}
	if _, err := bexpr.CreateEvaluator(s, bexpr.WithMaxExpressions(maxExpressions)); err != nil {
		d.bad(a, "Invalid filter", "%q is no filter expression, such as Meta.zone == \"a\": %s.", "filter", strings.TrimSuffix(strings.ReplaceAll(err.Error(), "\n", "; "), "."))
		return ""
	}
	return s
}

func (d *decoder) pluginSource(b *hcl.Block) (*orchestrator.PluginSource, bool) {
	before := len(d.diags)
	s := &orchestrator.PluginSource{Name: b.Labels[0]}
	d.name("plugin", b)
	s.Config = d.pluginConfig("fleet", b)
	return s, len(d.diags) == before
}

func (d *decoder) fileSource(b *hcl.Block) (*orchestrator.FileSource, bool) {
	before := len(d.diags)
	c := d.content(b.Body, fileSchema)
	name, a, ok := d.text(c, "path")
	if !ok {
		return nil, false
	}
	s := &orchestrator.FileSource{Path: name}
	body, err := d.read(name, MaxFleetFile)
	if err != nil {
		d.bad(a, "Cannot read the fleet", "%s", sentence(err))
		return nil, false
	}
	s.Nodes = d.fleetFile(a, name, body)
	return s, len(d.diags) == before
}

// source is what the hash of a spec takes of where its fleet comes from. A fleet
// of one source with nothing but a service or a path has the hash that it always
// had.
func (f *Fleet) source() (service, path string, sources []orchestrator.Source) {
	if len(f.Sources) == 1 {
		switch s := f.Sources[0]; {
		case s.Consul != nil && !s.Consul.Nodes && s.Consul.Filter == "":
			return s.Consul.Service, "", nil
		case s.File != nil:
			return "", s.File.Path, nil
		}
	}
	return "", "", f.Sources
}

// String is for messages about where nodes come from.
func (f Fleet) String() string {
	var parts []string
	for _, s := range f.Sources {
		parts = append(parts, s.String())
	}
	return strings.Join(parts, " and ")
}

var _ fmt.Stringer = Fleet{}

// yes reads true or false.
func (d *decoder) yes(c *hcl.BodyContent, name string) (v bool, a *hcl.Attribute, ok bool) {
	if a = c.Attributes[name]; a == nil {
		return false, nil, false
	}
	val, ok := d.value(a)
	if !ok {
		return false, a, false
	}
	if val.Type() != cty.Bool {
		d.bad(a, "Wrong type", "%q must be true or false, and this is %s.", name, friendly(val))
		return false, a, false
	}
	return val.True(), a, true
}

// ReadsMeta reports whether the metadata of nodes counts, beside what every
// Nomad source tells of its clients anyway.
func (f *File) ReadsMeta() bool {
	switch f.Spec.Spread {
	case "", "node_class", "node_pool", "datacenter":
	default:
		return true
	}
	return len(f.Fleet.Sources) > 1 || len(f.Templates) > 0 || f.Spec.HasTarget() || slices.ContainsFunc(f.Spec.Stages, func(s orchestrator.Stage) bool { return s.Select != "" })
}

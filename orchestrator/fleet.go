package orchestrator

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Source is where nodes of a fleet come from. Exactly one of its parts is set.
type Source struct {
	Consul *ConsulSource `json:"consul,omitempty"`
	Nomad  *NomadSource  `json:"nomad,omitempty"`
	File   *FileSource   `json:"file,omitempty"`
	Plugin *PluginSource `json:"plugin,omitempty"`
}

// PluginSource is the machines that a plugin lists. Config is its block as JSON.
type PluginSource struct {
	Name   string          `json:"name"`
	Config json.RawMessage `json:"config,omitempty"`
}

// ConsulSource is the machines that offer a service, or all nodes of the
// datacenter.
type ConsulSource struct {
	// Service is empty where Nodes is set.
	Service string `json:"service,omitempty"`
	Nodes   bool   `json:"nodes,omitempty"`
	// Filter is an expression in Consul's own filter language, which Consul
	// evaluates; empty: all.
	Filter string `json:"filter,omitempty"`
}

// NomadSource is the clients of a Nomad cluster that pass all that is set.
type NomadSource struct {
	Region     string `json:"region,omitempty"`
	NodePool   string `json:"node_pool,omitempty"`
	NodeClass  string `json:"node_class,omitempty"`
	Datacenter string `json:"datacenter,omitempty"`
	// Meta are pairs that a client's metadata must have.
	Meta map[string]string `json:"meta,omitempty"`
	// Filter is an expression in Nomad's own filter language.
	Filter string `json:"filter,omitempty"`
}

// FileSource is the nodes that a file named when the spec was read.
type FileSource struct {
	Path string `json:"path"`
	// Nodes are no part of what is wanted: a file that grew is the same source.
	Nodes []Node `json:"-"`
}

// String names a source for people.
func (s Source) String() string {
	switch {
	case s.Consul != nil && s.Consul.Nodes:
		return "Consul nodes" + where(s.Consul.Filter)
	case s.Consul != nil:
		return fmt.Sprintf("Consul service %q%s", s.Consul.Service, where(s.Consul.Filter))
	case s.Nomad != nil:
		n := s.Nomad
		var parts []string
		for _, p := range [][2]string{{"region", n.Region}, {"node_pool", n.NodePool}, {"node_class", n.NodeClass}, {"datacenter", n.Datacenter}} {
			if p[1] != "" {
				parts = append(parts, fmt.Sprintf("%s %q", p[0], p[1]))
			}
		}
		for _, k := range slices.Sorted(maps.Keys(n.Meta)) {
			parts = append(parts, fmt.Sprintf("meta.%s %q", k, n.Meta[k]))
		}
		out := "Nomad clients"
		if len(parts) > 0 {
			out += " of " + strings.Join(parts, ", ")
		}
		return out + where(n.Filter)
	case s.File != nil:
		return s.File.Path
	case s.Plugin != nil && len(s.Plugin.Config) == 0:
		return fmt.Sprintf("plugin %q", s.Plugin.Name)
	case s.Plugin != nil:
		// What the block says may be long; two of one plugin are told apart.
		sum := sha256.Sum256(s.Plugin.Config)
		return fmt.Sprintf("plugin %q (configuration %x)", s.Plugin.Name, sum[:4])
	}
	return "no source"
}

func where(filter string) string {
	if filter == "" {
		return ""
	}
	return " where " + filter
}

// Listed is what one source of a fleet names: each node once.
type Listed struct {
	Source string
	Nodes  []Node
}

// Joined is a fleet of one or several sources.
type Joined struct {
	// Nodes by name, each once.
	Nodes []Node
	// Shared is how many of them more than one source names.
	Shared int
	// Conflicts by node and key.
	Conflicts []Conflict
}

// Conflict is a key of a node's metadata for which two sources have two values.
// What Source says counts.
type Conflict struct {
	Node, Key            string
	Source, Value        string
	OtherSource, Another string
}

func (c Conflict) String() string {
	return fmt.Sprintf("node %s: meta %q is %q by %s and %q by %s: the first counts, because it stands first in the spec",
		c.Node, c.Key, c.Value, c.Source, c.Another, c.OtherSource)
}

// Join makes one fleet of what several sources name, in the order in which they
// stand in the spec. A node that two of them name is one node, with the metadata
// of both; where they disagree on a key, the first source counts.
func Join(lists []Listed) Joined {
	if len(lists) == 1 {
		// Nothing to merge: not even a copy is made of a large fleet's metadata.
		nodes := slices.Clone(lists[0].Nodes)
		slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
		return Joined{Nodes: nodes}
	}
	type merged struct {
		node Node
		// first is the source that named it first, by that of each key, once
		// a second source has named it.
		first int
		by    map[string]int
	}
	at := map[string]*merged{}
	var out Joined
	for i, l := range lists {
		for _, n := range l.Nodes {
			m := at[n.Name]
			if m == nil {
				at[n.Name] = &merged{node: n, first: i}
				continue
			}
			if m.by == nil {
				out.Shared++
				m.by = map[string]int{}
				for k := range m.node.Meta {
					m.by[k] = m.first
				}
				meta := make(map[string]string, len(m.node.Meta)+len(n.Meta))
				maps.Copy(meta, m.node.Meta)
				m.node.Meta = meta
			}
			for _, k := range slices.Sorted(maps.Keys(n.Meta)) {
				have, there := m.node.Meta[k]
				switch {
				case !there:
					m.node.Meta[k], m.by[k] = n.Meta[k], i
				case have != n.Meta[k]:
					out.Conflicts = append(out.Conflicts, Conflict{
						Node: n.Name, Key: k, Source: lists[m.by[k]].Source, Value: have, OtherSource: l.Source, Another: n.Meta[k],
					})
				}
			}
		}
	}
	out.Nodes = make([]Node, 0, len(at))
	for _, m := range at {
		out.Nodes = append(out.Nodes, m.node)
	}
	slices.SortFunc(out.Nodes, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortStableFunc(out.Conflicts, func(a, b Conflict) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Key, b.Key))
	})
	return out
}

// Package fleet finds the machines that a rollout is for: those of Consul
// services, of Consul's nodes, of Nomad's clients and of files, joined into one
// fleet. What it lists it has read consistently, and an answer that may have
// been cut short by missing rights is an error, never a smaller fleet.
//
// Package orchestrator/spec says which sources a rollout has; their joining is
// [orchestrator.Join]. What runs the rollout takes a Fleet as its FleetSource.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Lister is one source of nodes. Those of the spec are built in.
type Lister interface {
	// String names it for people, as the spec does.
	String() string
	// List names its nodes, each once. An error means that they are not known:
	// an empty answer is none only where it can mean nothing else.
	List(ctx context.Context) (*Listing, error)
}

// Listing is what a source names.
type Listing struct {
	Nodes []orchestrator.Node
	// Warnings are sentences for people: machines that share a name, and what
	// the token may not see.
	Warnings []string
}

// Fleet is the joined nodes of its sources.
type Fleet struct {
	Sources []orchestrator.Source
	// Nomad connects to Nomad; it is called where a source needs it.
	Nomad func() (*nomadapi.Client, error)
	// Plugin makes a Lister of a plugin; nil: there are none.
	Plugin func(src orchestrator.Source, name string, config json.RawMessage) (Lister, error)
	// Meta tells that the metadata of nodes counts: stages spread over it, or
	// choose by it. Nomad tells that of its clients one by one, so that it is
	// read only then.
	Meta bool
	// Warn is given each warning once; nil: nobody is.
	Warn func(string)

	mu   sync.Mutex
	told map[string]bool
}

// Survey is what the sources named, and how it came together.
type Survey struct {
	Nodes   []orchestrator.Node
	Sources []SourceCount
	// Shared is how many nodes more than one source names.
	Shared   int
	Warnings []string
}

// SourceCount is how many nodes a source names.
type SourceCount struct {
	Source string `json:"source"`
	Nodes  int    `json:"nodes"`
}

// maxConflicts bounds how many conflicts of metadata are told one by one.
const maxConflicts = 5

// Nodes implements the runner's FleetSource.
func (f *Fleet) Nodes(ctx context.Context, c *consulkv.Client) ([]orchestrator.Node, error) {
	s, err := f.Survey(ctx, c)
	if err != nil {
		return nil, err
	}
	f.tell(s.Warnings)
	return s.Nodes, nil
}

func (f *Fleet) tell(warnings []string) {
	if f.Warn == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told == nil {
		f.told = map[string]bool{}
	}
	for _, w := range warnings {
		if !f.told[w] {
			f.told[w] = true
			f.Warn(w)
		}
	}
}

// Survey asks all sources at the same time. The fleet is not known unless each
// of them has answered.
func (f *Fleet) Survey(ctx context.Context, c *consulkv.Client) (*Survey, error) {
	listers, err := f.listers(c)
	if err != nil {
		return nil, err
	}
	return survey(ctx, listers, emptyHint(f.Sources))
}

// listers makes one of each source.
func (f *Fleet) listers(c *consulkv.Client) ([]Lister, error) {
	var nomad *nomadapi.Client
	var out []Lister
	for _, s := range f.Sources {
		switch {
		case s.Consul != nil:
			out = append(out, &consulLister{src: s, consul: c})
		case s.Nomad != nil:
			if nomad == nil {
				if f.Nomad == nil {
					return nil, errors.New("fleet: there is no client for Nomad")
				}
				n, err := f.Nomad()
				if err != nil {
					return nil, fmt.Errorf("fleet: %w", err)
				}
				nomad = n
			}
			out = append(out, &nomadLister{src: s, nomad: nomad, meta: f.Meta})
		case s.File != nil:
			out = append(out, fileLister{s})
		case s.Plugin != nil:
			if f.Plugin == nil {
				return nil, fmt.Errorf("fleet: plugin %q is not there: this aimlock was started without plugins", s.Plugin.Name)
			}
			l, err := f.Plugin(s, s.Plugin.Name, s.Plugin.Config)
			if err != nil {
				return nil, fmt.Errorf("fleet: %w", err)
			}
			out = append(out, l)
		}
	}
	return out, nil
}

func survey(ctx context.Context, listers []Lister, emptyHint string) (*Survey, error) {
	found := make([]*Listing, len(listers))
	g, ctx := errgroup.WithContext(ctx)
	for i, l := range listers {
		g.Go(func() error {
			got, err := l.List(ctx)
			if err != nil {
				return fmt.Errorf("fleet: %s: %w", text.Printable(l.String()), err)
			}
			found[i] = got
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := &Survey{}
	lists := make([]orchestrator.Listed, len(listers))
	for i, l := range listers {
		name := text.Printable(l.String())
		lists[i] = orchestrator.Listed{Source: name, Nodes: found[i].Nodes}
		out.Sources = append(out.Sources, SourceCount{name, len(found[i].Nodes)})
		out.Warnings = append(out.Warnings, found[i].Warnings...)
		if len(found[i].Nodes) == 0 && len(listers) > 1 {
			out.Warnings = append(out.Warnings, name+" names no node")
		}
	}
	j := orchestrator.Join(lists)
	out.Nodes, out.Shared = j.Nodes, j.Shared
	for _, c := range j.Conflicts[:min(len(j.Conflicts), maxConflicts)] {
		out.Warnings = append(out.Warnings, text.Clip(text.Printable(c.String()), 400))
	}
	if more := len(j.Conflicts) - maxConflicts; more > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d more conflicts of metadata: the source that stands first in the spec counts", more))
	}
	if len(out.Nodes) == 0 {
		return nil, errors.New("fleet: it is empty: " + listed(out.Sources) + ". " + emptyHint)
	}
	return out, nil
}

// emptyHint is the way out of a fleet without nodes, for each way in which it is
// listed.
func emptyHint(sources []orchestrator.Source) string {
	var ways []string
	for _, s := range sources {
		way := ""
		switch {
		case s.Consul != nil:
			way = "start `aimlock agent` on its machines, or mend the block consul; `aimlock doctor` says which agents there are"
		case s.Nomad != nil:
			way = "mend what the block nomad asks for; `nomad node status -verbose` lists all clients with pool, class and datacenter"
		case s.Plugin != nil:
			way = fmt.Sprintf("mend the block of plugin %q, or what it lists", s.Plugin.Name)
		case s.File != nil:
			way = "add nodes to " + s.File.Path
		}
		if !slices.Contains(ways, way) {
			ways = append(ways, way)
		}
	}
	if len(ways) == 0 {
		return "Add a block to fleet"
	}
	return "To mend it: " + strings.Join(ways, "; or ")
}

func listed(sources []SourceCount) string {
	s := ""
	for i, c := range sources {
		if i > 0 {
			s += ", "
		}
		s += c.Source + " names no node"
	}
	return s
}

// fileLister is a file that was read with the spec.
type fileLister struct{ orchestrator.Source }

func (f fileLister) List(context.Context) (*Listing, error) {
	return &Listing{Nodes: f.File.Nodes}, nil
}

var _ Lister = fileLister{}

// machine is one that a source names: several may have one name.
type machine struct {
	node orchestrator.Node
	// id tells a machine from another one of the same name.
	id string
	up bool
}

// unique makes one node of machines of the same name, and tells where they are
// several that are up: their agents would get each other's orders. Of those the
// first that is up counts; list is in an order that does not change by itself.
func unique(list []machine, what string) *Listing {
	out := &Listing{}
	at := make(map[string]int, len(list)) // of a name, in first and out.Nodes
	first := make([]machine, 0, len(list))
	twins := map[string][]string{}
	for _, m := range list {
		i, there := at[m.node.Name]
		if !there {
			at[m.node.Name] = len(first)
			first = append(first, m)
			continue
		}
		switch {
		case first[i].id == m.id:
		case first[i].up && m.up:
			if twins[m.node.Name] == nil {
				twins[m.node.Name] = []string{first[i].id}
			}
			twins[m.node.Name] = append(twins[m.node.Name], m.id)
		case m.up:
			first[i] = m
		}
	}
	told := 0
	for _, m := range first {
		out.Nodes = append(out.Nodes, m.node)
		ids := twins[m.node.Name]
		if len(ids) == 0 {
			continue
		}
		if told++; told <= maxConflicts {
			out.Warnings = append(out.Warnings, text.Clip(text.Printable(fmt.Sprintf(
				"%d %s are called %s (%s): to a rollout they are one node, with the metadata of the first; give each agent a name of its own",
				len(ids), what, m.node.Name, shorten(ids))), 400))
		}
	}
	if more := told - maxConflicts; more > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d more names are shared by several %s", more, what))
	}
	return out
}

func shorten(ids []string) string {
	s := ""
	for i, id := range ids {
		if i == 3 {
			return s + ", …"
		}
		if i > 0 {
			s += ", "
		}
		s += id
	}
	return s
}

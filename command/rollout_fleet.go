package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/fleet"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/orchestrator/spec"
)

// fleet is where the nodes of a rollout come from.
func (m *Meta) fleet(f *spec.File) *fleet.Fleet {
	return &fleet.Fleet{
		Sources: f.Fleet.Sources, Nomad: m.Nomad, Plugin: m.Plugins().Fleet, Meta: f.ReadsMeta(),
		Warn: func(s string) { m.Notef("Warning: %s\n", text.Printable(s)) },
	}
}

// fleetView is the fleet of "rollout plan -json".
type fleetView struct {
	Nodes   int                 `json:"nodes"`
	Sources []fleet.SourceCount `json:"sources"`
	// Shared is how many nodes more than one source names.
	Shared   int      `json:"shared"`
	Warnings []string `json:"warnings"`
}

// surveyFleet asks the sources of a rollout once, and fixes what they named as
// its fleet: what is shown of it is what is planned.
func (m *Meta) surveyFleet(ctx context.Context, in *runner.Input) (*fleetView, error) {
	f, ok := in.Fleet.(*fleet.Fleet)
	if !ok {
		return nil, nil
	}
	consul, err := m.Consul()
	if err != nil {
		return nil, err
	}
	s, err := f.Survey(ctx, consul)
	if err != nil {
		return nil, err
	}
	in.Fleet = runner.StaticFleet(s.Nodes)
	return &fleetView{Nodes: len(s.Nodes), Sources: s.Sources, Shared: s.Shared, Warnings: append([]string{}, s.Warnings...)}, nil
}

func (v *fleetView) text() string {
	if v == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nFleet:\n")
	for _, s := range v.Sources {
		fmt.Fprintf(&b, "  %s of %s\n", text.Count(s.Nodes, "node"), text.Printable(s.Source))
	}
	if v.Shared > 0 {
		fmt.Fprintf(&b, "  %s named by several, so that the fleet has %d\n", text.Count(v.Shared, "node"), v.Nodes)
	}
	for _, w := range v.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", text.Printable(w))
	}
	return b.String()
}

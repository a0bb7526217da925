package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/fleet"
	"github.com/aim-control/aimlock/plugin"
)

// Fleet is the source of nodes that a plugin is, for fleet.Fleet. It does not start
// it. src names it as the spec does.
func (h *Host) Fleet(src orchestrator.Source, name string, config json.RawMessage) (fleet.Lister, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	return &pluginFleet{src: src, p: p, config: config}, nil
}

type pluginFleet struct {
	src    orchestrator.Source
	p      *Plugin
	config json.RawMessage
}

var _ fleet.Lister = (*pluginFleet)(nil)

func (l *pluginFleet) String() string { return l.src.String() }

// List implements fleet.Lister.
func (l *pluginFleet) List(ctx context.Context) (*fleet.Listing, error) {
	i := instanceOf(l.p, plugin.KindFleet, l.config, (*plugin.Client).Fleet)
	got, err := use(ctx, i, "list", true, func(ctx context.Context, v plugin.Fleet) (*plugin.Listing, error) {
		return v.List(ctx)
	})
	if err != nil {
		var e *Error
		if errors.As(err, &e) && e.Hint == "" {
			return nil, fmt.Errorf("%w. See: aimlock plugin verify %s", err, l.p.Name())
		}
		return nil, err
	}
	out := &fleet.Listing{}
	for _, n := range got.Nodes {
		if err := keys.CheckName("node", n.Name); err != nil {
			return nil, l.p.fail("list", err)
		}
		out.Nodes = append(out.Nodes, orchestrator.Node{Name: n.Name, Meta: n.Meta})
	}
	for _, w := range got.Warnings {
		out.Warnings = append(out.Warnings, l.String()+": "+text.Clip(text.Printable(w), maxWhy))
	}
	return out, nil
}

package runner

import (
	"context"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator"
)

// FleetSource says which machines a rollout is for. Package orchestrator/fleet
// has that of a spec.
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

var _ FleetSource = StaticFleet(nil)

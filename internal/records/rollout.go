package records

import (
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// Kinds of RolloutEvent.
const (
	// EventHold: somebody drives the rollout from here on, under Token.
	EventHold = "hold"
	// EventStatus, EventStage, EventNode and EventGate are what the core told.
	EventStatus = "status"
	EventStage  = "stage"
	EventNode   = "node"
	EventGate   = "gate"
	// EventCommand is an operator's order and what became of it.
	EventCommand = "command"
	// EventCounts is a sample of how far it was; it has no text.
	EventCounts = "counts"
)

// RolloutEvent is one thing that happened to a rollout.
type RolloutEvent struct {
	// N numbers the events of a rollout from 1. A gap: what is missing was
	// dropped, for the log is bounded.
	N uint64 `json:"n"`
	// At is by the clock of the machine that drove the rollout.
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`
	// State and Stage are those after it.
	State orchestrator.Status `json:"state,omitempty"`
	Stage string              `json:"stage,omitempty"`
	Node  string              `json:"node,omitempty"`
	// Text is for people; it may hold foreign text: outputs of nodes.
	Text string `json:"text,omitempty"`
	// Token of the hold under which it happened.
	Token uint64 `json:"token,omitempty"`
	// Counts and InFlight are there for EventCounts.
	Counts   *orchestrator.Counts `json:"counts,omitempty"`
	InFlight int                  `json:"in_flight,omitempty"`
}

// RolloutEvents is one chunk of a rollout's log, at
// rollouts/<id>/events/<number of its first event>.
type RolloutEvents struct {
	Version int            `json:"version"`
	Events  []RolloutEvent `json:"events"`
}

package orchestrator

import "time"

// Spec is a rollout as its author wrote it, checked and with every default
// filled in. It is made by package orchestrator/spec from HCL and is part of
// the persisted rollout, so every field has a JSON name that stays.
type Spec struct {
	Name    string   `json:"name"`
	Configs []Config `json:"configs"`
	// Spread names the metadata key over whose values stages spread their
	// nodes, such as "zone"; empty for no spreading.
	Spread  string  `json:"spread,omitempty"`
	Lock    Lock    `json:"lock"`
	Stages  []Stage `json:"stages"`
	Gates   []Gate  `json:"gates,omitempty"`
	Failure Failure `json:"failure"`
	Window  *Window `json:"window,omitempty"`
	// NodeDeadline bounds how long an order may stay unanswered before the
	// node counts as unreachable. Default 2 minutes.
	NodeDeadline time.Duration `json:"node_deadline"`
	// Hash is the SHA-256 in hex of the spec and of the content of its
	// configs: a rollout is resumed only by the same name and the same hash.
	Hash string `json:"hash"`
}

// Config is one file that a rollout delivers.
type Config struct {
	Name string `json:"name"`
	// Revision is the first 12 hex digits of SHA256.
	Revision    string   `json:"revision"`
	SHA256      string   `json:"sha256"`
	Size        int64    `json:"size"`
	Source      string   `json:"source"`
	Destination string   `json:"destination"`
	Mode        string   `json:"mode,omitempty"`
	Owner       string   `json:"owner,omitempty"`
	Group       string   `json:"group,omitempty"`
	Validate    *Command `json:"validate,omitempty"`
	Reload      *Command `json:"reload,omitempty"`
	Healthy     *Command `json:"healthy,omitempty"`
}

// Command is a program that an agent runs, without a shell.
type Command struct {
	Argv    []string      `json:"argv"`
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Lock says how a rollout takes its locks.
type Lock struct {
	// TTL of the session, 10 s to 24 h. Default 15 s.
	TTL time.Duration `json:"ttl"`
	// Wait bounds the wait for the lock. Default 10 minutes.
	Wait time.Duration `json:"wait"`
}

// Stage is one step of a rollout. Exactly one of Nodes and Percent is set.
type Stage struct {
	Name string `json:"name"`
	// Nodes adds that many nodes to what is done already.
	Nodes int `json:"nodes,omitempty"`
	// Percent, 1 to 100, is the share of the whole fleet that is done when
	// the stage ends, rounded up.
	Percent int `json:"percent,omitempty"`
	// MaxParallel bounds the nodes in flight: a sliding window. 0: no bound.
	MaxParallel int `json:"max_parallel,omitempty"`
	// Bake is how long the stage is watched after its last node.
	Bake time.Duration `json:"bake,omitempty"`
	// Gate names the gates that must pass after the bake.
	Gate []string `json:"gate,omitempty"`
}

// Gate is a named question put to the outside after a stage.
type Gate struct {
	Name string `json:"name"`
	// Kind is "consul_checks".
	Kind string `json:"kind"`
	// Service and MinPassingPercent are for consul_checks.
	Service           string `json:"service,omitempty"`
	MinPassingPercent int    `json:"min_passing_percent,omitempty"`
}

// What a rollout does when its failure budget is exceeded.
const (
	ThenPause    = "pause"
	ThenRollback = "rollback"
	ThenAbort    = "abort"
)

// Failure is the one failure budget of a rollout, over all stages, retries
// and restarts.
type Failure struct {
	// MaxFailed is how many failed nodes are still tolerated. Default 0.
	MaxFailed int `json:"max_failed"`
	// MaxUnreachablePercent of the fleet is still tolerated. Default 100: any
	// number, because a fleet of some size always has a machine that is down.
	MaxUnreachablePercent int `json:"max_unreachable_percent"`
	// Then is pause, rollback or abort. Default pause.
	Then string `json:"then"`
}

// Window is when a rollout may assign nodes.
type Window struct {
	// Schedule is a cron expression of five fields: when the window opens.
	Schedule string        `json:"schedule"`
	Duration time.Duration `json:"duration"`
	Timezone string        `json:"timezone"`
}

// Node is one machine of the fleet.
type Node struct {
	Name string            `json:"node"`
	Meta map[string]string `json:"meta,omitempty"`
}

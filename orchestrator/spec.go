package orchestrator

import (
	"encoding/json"
	"time"
)

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
	// Deadline bounds the whole rollout; past it, Failure.Then happens. Its
	// clock stands while the rollout waits for its window or is paused by an
	// operator, and runs in every other status until it ends or rolls back. 0:
	// none.
	Deadline time.Duration `json:"deadline,omitempty"`
	// Retry says how often a node is given its order; nil: once.
	Retry *Retry `json:"retry,omitempty"`
	// Conflict is what a new rollout does about unfinished ones of the same
	// configs: ConflictSupersede, also if empty, or ConflictQueue.
	Conflict string `json:"conflict,omitempty"`
	// Hash is the SHA-256 in hex of the spec and of the content of its
	// configs: a rollout is resumed only by the same name and the same hash.
	Hash string `json:"hash"`
}

// What a new rollout does about unfinished ones of the same configs.
const (
	// ConflictSupersede takes their place.
	ConflictSupersede = "supersede"
	// ConflictQueue waits for their end.
	ConflictQueue = "queue"
)

// Config is one file that a rollout delivers.
type Config struct {
	Name string `json:"name"`
	// Revision is the first 12 hex digits of SHA256. Of a template these three
	// are of its source in a spec, and of what most nodes get in a plan.
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
	// Template: the source is a template, rendered for each node.
	Template bool `json:"template,omitempty"`
	// Renderings is how many distinct contents the template came to, in a
	// plan; 0 without a template.
	Renderings int `json:"renderings,omitempty"`
	// Drift is what a node does about a file that somebody else changed: "restore",
	// or "", which leaves and reports it.
	Drift string `json:"drift,omitempty"`
	// Secrets are put into the content by the nodes.
	Secrets []Secret `json:"secrets,omitempty"`
	// Target is the plugin that writes the config in place of the nodes' agents; nil:
	// they do.
	Target *Target `json:"target,omitempty"`
}

// Target is a plugin of the nodes' agents that writes a config to machines that run
// no agent.
type Target struct {
	Name string `json:"name"`
	// Config is the block, as JSON.
	Config json.RawMessage `json:"config,omitempty"`
}

// Secret names a value that each node reads by itself: from the Consul key
// ConsulKey, or else from the environment variable Env of its agent.
type Secret struct {
	Name string `json:"name"`
	// Version is the author's: a new one is a new revision of the content,
	// which is how a value that changed goes through the stages.
	Version   string `json:"version,omitempty"`
	ConsulKey string `json:"consul_key,omitempty"`
	Env       string `json:"env,omitempty"`
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

// Stage is one step of a rollout. It has at least one of Nodes, Percent,
// Select and Order, and at most one of Nodes and Percent.
type Stage struct {
	Name string `json:"name"`
	// Nodes adds that many nodes to what is done already.
	Nodes int `json:"nodes,omitempty"`
	// Percent, 1 to 100, is the share of the whole fleet that is done when
	// the stage ends, rounded up; with Select the share of those it matches.
	Percent int `json:"percent,omitempty"`
	// Select is an expression over node and meta; the stage takes only nodes
	// that match it, and all of those without Nodes and Percent. Package
	// orchestrator/selector reads it.
	Select string `json:"select,omitempty"`
	// Order names nodes that have their turn first, in this order; without
	// Nodes, Percent and Select the stage is exactly these.
	Order []string `json:"order,omitempty"`
	// MaxParallel bounds the nodes in flight: a sliding window. 0: no bound.
	MaxParallel int `json:"max_parallel,omitempty"`
	// Bake is how long the stage is watched after its last node.
	Bake time.Duration `json:"bake,omitempty"`
	// Gate names the gates that must pass after the bake.
	Gate []string `json:"gate,omitempty"`
	// Promote is "manual" where the next stage waits, after bake and gates,
	// for an operator to promote this one; "" goes on by itself.
	Promote string `json:"promote,omitempty"`
	// Failure is the budget of this stage beside the rollout's; nil: none.
	Failure *StageFailure `json:"failure,omitempty"`
}

// PromoteManual is Stage.Promote where an operator decides.
const PromoteManual = "manual"

// StageFailure is the failure budget of the nodes of one stage. It stands
// beside the rollout's: what is exceeded first acts, and where both are at
// once, the graver Then.
type StageFailure struct {
	// MaxFailed is how many failed nodes of the stage are still tolerated;
	// nil: as many as the rollout's budget.
	MaxFailed *int `json:"max_failed,omitempty"`
	// MaxUnreachablePercent of the stage's nodes is still tolerated; nil: as
	// the rollout's budget.
	MaxUnreachablePercent *int `json:"max_unreachable_percent,omitempty"`
	// Then is pause, rollback or abort, and does for the stage's gates, too.
	Then string `json:"then"`
}

// MaxAttempts bounds Retry.Attempts.
const MaxAttempts = 10

// Retry is how often a node is given its order before it counts as failed.
type Retry struct {
	// Attempts in all, the first one included, 1 to MaxAttempts.
	Attempts int `json:"attempts"`
	// Delay before the second attempt; each further one waits twice as long.
	Delay time.Duration `json:"delay"`
	// MaxDelay bounds the wait.
	MaxDelay time.Duration `json:"max_delay"`
}

// Wait is how long a node waits after so many attempts.
func (r *Retry) Wait(attempts int) time.Duration {
	d := r.Delay
	for range attempts - 1 {
		if d >= r.MaxDelay/2 {
			return r.MaxDelay
		}
		d *= 2
	}
	return min(d, r.MaxDelay)
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

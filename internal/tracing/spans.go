package tracing

// Name is the name of a span. Names are public: see docs/traces.md.
type Name string

// The spans.
const (
	// Rollout is what one process does for a rollout while it has its locks, or
	// waits for them.
	Rollout Name = "aimlock.rollout"
	// Stage is one stage, as far as one process drives it: orders, answers, gates, bake.
	Stage Name = "aimlock.stage"
	// Rollback is the way back to what the nodes had.
	Rollback Name = "aimlock.rollback"
	// Apply is one order on one node: from its acceptance to its answer.
	Apply Name = "aimlock.apply"
	// Command is a command of an order: validate, reload, healthy.
	Command Name = "aimlock.apply.command"
	// Hold is one hold of a lock, or of several that are taken together: from the
	// first wish for it to its end.
	Hold Name = "aimlock.hold"
	// Acquire is the part of it until the lock is there, waits included.
	Acquire Name = "aimlock.hold.acquire"
	// Quiesce is the pause that the hold before it left behind.
	Quiesce Name = "aimlock.hold.quiesce"
	// Release is its end.
	Release Name = "aimlock.hold.release"
	// Break is one break: from its intent to its outcome.
	Break Name = "aimlock.break"
	// Intent is the transaction that says what will be done, before it is.
	Intent Name = "aimlock.break.intent"
	// Step is one step of the policy, with the wait that follows it.
	Step Name = "aimlock.break.step"
	// Take is the transaction that ends the old hold, and begins a new one where
	// there is a successor.
	Take Name = "aimlock.break.take"
)

// Names are all spans.
func Names() []Name {
	return []Name{Rollout, Stage, Rollback, Apply, Command, Hold, Acquire, Quiesce, Release, Break, Intent, Step, Take}
}

// Key is the name of an attribute. Keys are public, as names are.
type Key string

// The attributes.
const (
	RolloutID   Key = "aimlock.rollout.id"
	RolloutName Key = "aimlock.rollout.name"
	StageName   Key = "aimlock.stage.name"
	// Locks are the names of the locks: a list.
	Locks     Key = "aimlock.locks"
	Operation Key = "aimlock.operation"
	Session   Key = "aimlock.session"
	Epoch     Key = "aimlock.epoch"
	Token     Key = "aimlock.token"
	Seq       Key = "aimlock.seq"
	// Configs are the configs of an order: a list, as several may belong together.
	Configs  Key = "aimlock.configs"
	Node     Key = "aimlock.node"
	Revision Key = "aimlock.revision"
	Policy   Key = "aimlock.policy"
	Rule     Key = "aimlock.rule"
	// StepKind is the step of a break or the command of an order.
	StepKind Key = "aimlock.step"
	// Outcome is how it came out.
	Outcome Key = "aimlock.outcome"
	Gate    Key = "aimlock.gate"
)

// Keys are all attributes.
func Keys() []Key {
	return []Key{RolloutID, RolloutName, StageName, Locks, Operation, Session, Epoch, Token, Seq, Configs, Node, Revision, Policy, Rule, StepKind, Outcome, Gate}
}

// Event is the name of an event on a span.
type Event string

// The events.
const (
	// EventLost: the hold was lost, or asked for.
	EventLost Event = "aimlock.hold.over"
	// EventPaused and EventResumed: the rollout was paused, and goes on.
	EventPaused  Event = "aimlock.rollout.paused"
	EventResumed Event = "aimlock.rollout.resumed"
	// EventGate: a gate has answered.
	EventGate Event = "aimlock.gate.answered"
)

// Events are all events.
func Events() []Event { return []Event{EventLost, EventPaused, EventResumed, EventGate} }

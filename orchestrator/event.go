package orchestrator

// Event is something that happened. Times are not in events: Step takes the
// time at which it learns of one.
type Event interface{ event() }

// Acquired: the locks are held. Nothing is assigned before it. It is the
// first event of every hold.
type Acquired struct {
	// Order holds the epoch and the token of the hold, and in Seq the last
	// sequence number that was used under it (0 for a fresh one).
	Order Order
}

// WindowChanged tells whether the rollout's window is open. Where a spec has
// a window, nothing is assigned before the first of these says open.
type WindowChanged struct{ Open bool }

// Reports are answers of nodes to orders, in any number and order. A report
// of an order that is not the node's last is ignored, so the same report may
// be given any number of times.
type Reports []Report

// Report is what one node says about one config.
type Report struct {
	// Node and Config are indexes into the plan's nodes and configs.
	Node, Config int
	// Order is the one answered, or the one refused.
	Order  Order
	Result Result
	// Why is the node's own error, for people.
	Why string
}

// Result is how a node answered an order.
type Result uint8

// Results.
const (
	// ResultApplied: the revision stands and is healthy.
	ResultApplied Result = iota + 1
	// ResultFailed: it could not be done; the last good file stands.
	ResultFailed
	// ResultRolledBack: the node has what it had before the rollout.
	ResultRolledBack
	// ResultRefused: the node has accepted a newer order than this before.
	ResultRefused
)

// Health tells whose agents are up and whose are not. A node that no Health
// has named yet is taken for reachable: silence of the health system is no
// proof, and the node deadline bounds what a wrong guess costs.
type Health struct{ Up, Down []int }

// Assigned confirms that the orders of an Assign or a Restore stand in Consul.
// The nodes' deadline counts from here.
type Assigned struct {
	Order Order
	Nodes []int
}

// Answer is what a gate says.
type Answer string

// Answers of gates. What is none of these is unknown.
const (
	Pass    Answer = "pass"
	Fail    Answer = "fail"
	Unknown Answer = "unknown"
	// Pending: the answer is not there yet, and will be.
	Pending Answer = "pending"
)

// GateAnswered brings the answer to an AskGate. An answer to a question that
// is not asked any more is ignored.
type GateAnswered struct {
	Ask    int
	Gate   string
	Answer Answer
	// Error: the answer is unknown because the question itself failed.
	Error bool
	// Value is what was measured, and Why what the answer rests on, for people.
	Value, Why string
}

// Verb is an operator's command.
type Verb string

// Verbs.
const (
	Pause    Verb = "pause"
	Resume   Verb = "resume"
	Abort    Verb = "abort"
	Rollback Verb = "rollback"
	// Promote takes the present stage's bake and gates as passed.
	Promote Verb = "promote"
	// Skip takes nodes out of the rollout that have no order yet.
	Skip Verb = "skip"
	// MakeRoom ends the rollout in favour of another one of its config that waits
	// for its locks. Nobody types it: that other one gives it.
	MakeRoom Verb = "supersede"
)

// Verbs are all that operators have, in the order of the documentation.
var Verbs = []Verb{Pause, Resume, Abort, Rollback, Promote, Skip}

// OperatorCommand is what an operator told the rollout.
type OperatorCommand struct {
	// N numbers the commands of one rollout from 1. A command whose number is
	// not above that of the last one taken is ignored.
	N     uint64
	Verb  Verb
	Nodes []string
	// Stage is for Skip: all nodes of that stage which have no order yet. For
	// Promote it is the stage that is meant; empty is the present one, whichever
	// that is by then.
	Stage string
	// Pause is for Resume and Promote: the number of the newest pause that the
	// operator knew of (Header.Pauses), 0 for none. A later one is not ended: the
	// operator has not seen why it is. nil: whichever it is by then.
	Pause *uint64
	// Rollout is for MakeRoom: the one that takes its place.
	Rollout string
	By      string
	Reason  string
	// Accessor is the public id of the ACL token that the operator used, if
	// any.
	Accessor string
}

// Supersede ends the rollout in favour of another one of its config. Whoever
// feeds it holds the config's lock. Begun is who began that one, if it is known.
type Supersede struct{ By, Begun string }

// Tick: time has passed.
type Tick struct{}

func (Acquired) event()        {}
func (WindowChanged) event()   {}
func (Reports) event()         {}
func (Health) event()          {}
func (Assigned) event()        {}
func (GateAnswered) event()    {}
func (OperatorCommand) event() {}
func (Supersede) event()       {}
func (Tick) event()            {}

// Effect is something to be done. The effects of one Step are done in the
// order in which they stand; the first that fails ends the hold, and the rest
// is not done.
type Effect interface{ effect() }

// Persist carries the header. It must be durable BEFORE any effect behind it
// in the same Step is begun: a gate's pass before the first order of the next
// stage, a failure before the next node is put at risk, the intent to roll
// back before the first restore.
type Persist struct{ Header Header }

// Assign gives nodes the order to apply the rollout's revisions: for each node
// the orders of all configs in ONE transaction, nodes in any grouping. When
// all stand in Consul, feed Assigned. A crash in the middle is harmless:
// Recover reads which orders stand.
type Assign struct {
	Order Order
	Nodes []int
	// Attempt is which one this is for these nodes, from 2 on; 0 is the first.
	// It is written into the orders, so that no crash forgets it.
	Attempt int
}

// Restore gives nodes the order to go back to what they had before this
// rollout. The same rules as for Assign hold.
type Restore struct {
	Order Order
	Nodes []int
}

// AskGate asks a gate. It is done in the background; its answer is fed as
// GateAnswered, whatever happens: a gate that cannot be asked is unknown.
type AskGate struct {
	Ask   int
	Gate  Gate
	Stage string
}

// Finish: the rollout has ended and nothing is in flight. It comes once, as
// the last effect, behind the Persist that says so: release the locks.
type Finish struct{ Status Status }

// Tell is for people: it says what happened. It may be done at any time, or
// not at all.
type Tell struct {
	Kind  TellKind
	Stage string
	Node  string
	Text  string
}

// TellKind sorts what is told.
type TellKind string

// Kinds of Tell.
const (
	TellStatus TellKind = "status"
	TellStage  TellKind = "stage"
	TellNode   TellKind = "node"
	TellGate   TellKind = "gate"
)

func (Persist) effect() {}
func (Assign) effect()  {}
func (Restore) effect() {}
func (AskGate) effect() {}
func (Finish) effect()  {}
func (Tell) effect()    {}

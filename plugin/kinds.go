package plugin

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// Kind is what a plugin can be.
type Kind string

// The kinds.
const (
	KindEvidence Kind = "evidence"
	KindBreaker  Kind = "breaker"
	KindGate     Kind = "gate"
	KindTarget   Kind = "target"
	KindFleet    Kind = "fleet"
)

// Kinds are all kinds, in the order in which they are shown.
func Kinds() []Kind { return []Kind{KindEvidence, KindBreaker, KindGate, KindTarget, KindFleet} }

// Capabilities that a kind may have.
const (
	// CapFencing: the target itself refuses what is older than what it has seen.
	CapFencing = "fencing"
)

// Validator is a plugin that checks its configuration beyond its schema. It has
// no effects, asks nobody, and returns [Problems], or any error for the whole.
type Validator interface {
	Validate(ctx context.Context) error
}

// Starter is a plugin that has something to open before it is called.
type Starter interface {
	Start(ctx context.Context) error
}

// Lock is a lock and who holds it.
type Lock struct {
	// Name is empty for the lock of another tool; Key is the whole key.
	Name, Key string
	// Session is the Consul session that holds it.
	Session string
	// Epoch and Token are those of the hold.
	Epoch, Token uint64
	Holder       Holder
}

// Holder is what the holder's own record says. Anybody who may write the lock's
// key can have written it: do not pass it to a shell.
type Holder struct {
	Host, Node  string
	PID         int
	BootID      string
	PIDNS       string
	StartTicks  uint64
	User        string
	Tool        string
	Operation   string
	Rollout     string
	AllocID     string
	AllocRegion string
}

// FactDef declares a fact. Policies read it as plugin.<plugin>.<Name>.
type FactDef struct {
	// Name is lower case with underscores.
	Name string
	Type Type
	// Doc is one line.
	Doc string
}

// Fact is what is known of a declared fact.
type Fact struct {
	Name string
	// Value is of the declared type; nil: the fact cannot apply.
	Value any
	// Unknown: it should exist, and could not be had. Why says why.
	Unknown bool
	Why     string
	// Age is how long ago it was observed, on this process's monotonic clock.
	Age time.Duration
}

// Known is a fact with a value.
func Known(name string, v any) Fact { return Fact{Name: name, Value: v} }

// Null is a fact that cannot apply to this lock.
func Null(name string) Fact { return Fact{Name: name} }

// Unknown is a fact that should exist and could not be had.
func Unknown(name, format string, args ...any) Fact {
	return Fact{Name: name, Unknown: true, Why: fmt.Sprintf(format, args...)}
}

// ObserveRequest asks for facts.
type ObserveRequest struct {
	Lock Lock
	// Host is the name of the host that asks.
	Host string
	// Want are the facts that are wanted; none is all. Others may be left out.
	Want []string
}

// Wants tells whether a fact is wanted.
func (r *ObserveRequest) Wants(name string) bool {
	for _, w := range r.Want {
		if w == name {
			return true
		}
	}
	return len(r.Want) == 0
}

// Evidence finds out facts about a lock and its holder.
type Evidence interface {
	// Facts declares all facts, and is the same at every call, configured or not.
	Facts() []FactDef
	// Observe returns what is known now. A fact that is left out, or has a value of
	// another type, is unknown; an error makes all of them unknown. It has no effects.
	Observe(ctx context.Context, r *ObserveRequest) ([]Fact, error)
}

// Outcome is how a step of a break ended.
type Outcome string

// The outcomes. What is none of them is Failed.
const (
	Failed        Outcome = "failed"
	Done          Outcome = "done"
	NotApplicable Outcome = "not_applicable"
)

// BreakRequest asks for one step of a break.
type BreakRequest struct {
	// ID names this request: what was done under it is not done again. The SDK
	// answers a repetition itself while the process lives.
	ID   string
	Lock Lock
	// Rule is the policy's rule that made the lock HOT, and Reason its text.
	Rule, Reason string
	// Step is the number of the step in the policy, from 1.
	Step int
	// DryRun: say in the detail what would be done, and do nothing.
	DryRun bool
}

// BreakResult is how it ended. The zero value is Failed.
type BreakResult struct {
	Outcome Outcome
	// Detail is one line for people.
	Detail string
}

// Breaker does one step of a break, such as stopping the holder's unit.
type Breaker interface {
	// Break does it. An error is a failed step too, one that could not be tried.
	Break(ctx context.Context, r *BreakRequest) (*BreakResult, error)
}

// Verdict is a gate's answer.
type Verdict string

// The verdicts. What is none of them is Undecided.
const (
	Pass Verdict = "pass"
	Fail Verdict = "fail"
	// Pending: it is not decided yet; ask again.
	Pending Verdict = "pending"
	// Undecided: it was asked, and cannot be told. The rollout pauses.
	Undecided Verdict = "unknown"
)

// Question is what a gate is asked.
type Question struct {
	Gate, Rollout, Stage string
	// Epoch and Token are those of the hold that asks.
	Epoch, Token uint64
	// Updated are the nodes that have the revision, and Rest those that were not
	// given it yet, both in the plan's order.
	Updated, Rest []string
	// Dir is the folder of the rollout's spec; empty where it is not known.
	Dir string
}

// Answer is what a gate says. The zero value is unknown.
type Answer struct {
	Verdict Verdict
	// Value is what was measured, and Why what the answer rests on: one line each.
	Value, Why string
	// Retry, with Undecided: it could not be asked, and another try may do better.
	Retry bool
}

// Gate says whether a rollout may go on.
type Gate interface {
	// Ask puts the question. An error is an answer that could not be had: unknown,
	// to be asked again.
	Ask(ctx context.Context, q *Question) (*Answer, error)
}

// Order orders writes: by epoch, then token, then seq.
type Order struct{ Epoch, Token, Seq uint64 }

// Compare is negative if o is older than p, 0 if they are the same.
func (o Order) Compare(p Order) int {
	return cmp.Or(cmp.Compare(o.Epoch, p.Epoch), cmp.Compare(o.Token, p.Token), cmp.Compare(o.Seq, p.Seq))
}

func (o Order) String() string { return fmt.Sprintf("%d-%d-%d", o.Epoch, o.Token, o.Seq) }

// Place is one config on one node.
type Place struct {
	Node   string
	Meta   map[string]string
	Config string
	// Destination is the path that the spec names.
	Destination string
}

// ApplyRequest asks for a write.
type ApplyRequest struct {
	Place
	Order             Order
	Revision, Rollout string
	// SHA256 is that of Content, in hex. The SDK has checked it.
	SHA256  string
	Content []byte
	// Mode is in octal, such as "0640"; it, Owner and Group may be empty.
	Mode, Owner, Group string
}

// Applied is what stands on the node after a write.
type Applied struct {
	// Unchanged: it was there already.
	Unchanged bool
	// Highest is the newest order that the target has seen; zero: it keeps none.
	Highest Order
	// SHA256 and Revision are what stands there now, where they are known.
	SHA256, Revision string
	// Detail is one line for people.
	Detail string
}

// ReadRequest asks what stands on a node.
type ReadRequest struct {
	Place
	// Content: return it too.
	Content bool
}

// State is what stands on a node.
type State struct {
	Exists           bool
	SHA256, Revision string
	Size             int64
	// Highest is the newest order that the target has seen; zero: it keeps none.
	Highest Order
	// Content is nil where it was not asked for.
	Content []byte
}

// RestoreRequest asks for what stood before a rollout.
type RestoreRequest struct {
	Place
	Order Order
	// Rollout is the one that is undone.
	Rollout string
}

// Target writes configs to nodes that run no agent of aimlock.
type Target interface {
	// Fencing tells whether the target itself refuses an order that is older than
	// the highest it has seen, by a mark that is kept where the config is. Where it
	// is false, plans warn of that: only the agent that hands orders over refuses older
	// ones, and who comes after a rollout that broke off waits. It is the same at every call, configured or not.
	Fencing() bool
	// Apply writes the content, whole or not at all. An older order than one already
	// seen is a [StaleError]; any other error is a failed write. The newest order that
	// was seen comes again, and is carried out again: with another content, which puts
	// back what stood there before it, or with its own, where somebody has changed what
	// stands there. Once ctx has ended nothing is written any more: what comes after it
	// under the same order may be there already.
	Apply(ctx context.Context, r *ApplyRequest) (*Applied, error)
	// Read tells what stands there. A file that does not exist is no error.
	Read(ctx context.Context, r *ReadRequest) (*State, error)
	// Restore puts what stood before the rollout back, under a new order:
	// ErrUnsupported if the target does not keep it, ErrNotFound if it is not there.
	Restore(ctx context.Context, r *RestoreRequest) (*Applied, error)
}

// Node is one machine of a fleet.
type Node struct {
	Name string
	// Meta is what selectors and spread read, such as zone.
	Meta map[string]string
}

// Listing is a whole fleet.
type Listing struct {
	Nodes []Node
	// Warnings are lines for people.
	Warnings []string
}

// Fleet lists nodes. It is asked when a rollout is planned, started or goes on, and
// tells nothing by itself: whom a rollout is for is decided under its lock, and is
// kept with it.
type Fleet interface {
	// List returns all nodes. An incomplete list is an error: a fleet that shrinks
	// because a server did not answer would be rolled out to in part.
	List(ctx context.Context) (*Listing, error)
}

package policies

import (
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"
)

// Policy is one policy block: which locks it is for, when they are warm or hot,
// and how a hot one may be broken.
type Policy struct {
	Name        string
	Description string
	// Locks are the patterns as they stand in the file.
	Locks []string
	// File is the template of the path of the file whose kernel lock goes with
	// a lock, as it is written; empty where the policy names none.
	File string
	// Warm and Hot are the rules in the order of the file.
	Warm, Hot []*Rule
	// Break is nil where the policy has no break block: its locks are judged
	// and never broken.
	Break *Break
	// Range is the block's header.
	Range hcl.Range

	// Source is the whole block as it stands in its file.
	Source string

	globs []*glob
	file  *expr
	rules []*Rule // warm and hot, in the order of the file
	reads []*factRef
	names *Names
	// scopes are scopes of reads.
	scopes sync.Pool
}

// Matches reports whether the policy is for the lock.
func (p *Policy) Matches(id LockID) bool {
	_, ok := p.Pattern(id)
	return ok
}

// Pattern returns the first of the policy's patterns that matches the lock.
func (p *Policy) Pattern(id LockID) (string, bool) {
	for _, g := range p.globs {
		if g.match(id) {
			return g.text, true
		}
	}
	return "", false
}

// Judging returns the facts that a verdict rests on: those that Judge, Steady and
// FilePath read. What is done about a verdict (Break) reads others. It is empty
// for a nil policy.
func (p *Policy) Judging() *Names {
	if p == nil {
		return &Names{}
	}
	return p.names
}

// Rules returns the policy's rules, warm and hot, in the order of the file.
func (p *Policy) Rules() []*Rule { return p.rules }

// Rule is one warm or hot rule.
type Rule struct {
	Name string
	Hot  bool
	// For is how long the rule must hold without a break before it counts.
	For time.Duration
	// Proof marks a rule that rests on proof and not on silence: confirm and
	// freeze do not apply to it.
	Proof bool
	// When is the condition as it is written, on one line.
	When  string
	Range hcl.Range

	key    string
	when   *expr
	reason *expr
	ages   bool
}

// Key names the rule and what it says, for as long as it says it: a rule whose
// condition was edited has another key.
func (r *Rule) Key() string { return r.key }

// Used names the facts that the rule's condition reads, in order.
func (r *Rule) Used() []string { return r.when.used }

// Kind is "hot" or "warm".
func (r *Rule) Kind() string {
	if r.Hot {
		return "hot"
	}
	return "warm"
}

// Words of a policy file.
const (
	ApprovalAuto   = "auto"
	ApprovalManual = "manual"
	ApprovalNever  = "never"

	OnErrorAbort    = "abort"
	OnErrorContinue = "continue"

	StepRequest        = "request"
	StepSignal         = "signal"
	StepNomadStop      = "nomad_stop"
	StepExec           = "exec"
	StepPlugin         = "plugin"
	StepDestroySession = "destroy_session"
	StepTake           = "take"
)

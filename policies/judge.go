package policies

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// The states that a verdict can give to a held lock.
const (
	StateHeld    = "HELD"
	StateWarm    = "WARM"
	StateHot     = "HOT"
	StateUnknown = "UNKNOWN"
)

// RuleResult is what one rule said.
type RuleResult struct {
	Rule  *Rule
	Value Tri
	// Reason is the rule's reason, or the facts that it read, where it holds.
	Reason string
	// Why says why Value is Unknown.
	Why string
	// Used names the facts that the rule reads, in order. It is shared: do not
	// change it.
	Used []string
	// Held is for how long a rule with a `for` has held, as far as the memory
	// goes.
	Held time.Duration
}

// Pending is a rule that holds now, but not yet for its whole `for`.
type Pending struct {
	Rule *Rule
	// Since is when it began to hold, on the caller's clock; Left is how long
	// it must still go on.
	Since, Left time.Duration
}

// Judgement is the verdict on one held lock.
type Judgement struct {
	State string
	// Rule decided, and Result is what it said: the first true hot rule in the
	// order of the file, else the first unknown one, else the first true warm
	// rule. Both are nil for HELD.
	Rule    *Rule
	Result  *RuleResult
	Results []RuleResult
	Pending []Pending
}

// Ages reports whether time alone can change the verdict: a rule reads a fact
// that grows by itself, or is waiting for its `for`.
func (j *Judgement) Ages() bool {
	for i := range j.Results {
		if j.Results[i].Rule.ages {
			return true
		}
	}
	return len(j.Pending) > 0
}

// Used names every fact that the verdict read, each once.
func (j *Judgement) Used() []string {
	var out []string
	for i := range j.Results {
		for _, u := range j.Results[i].Used {
			if !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	return out
}

// Memory is how long each rule has held for one lock, without a break. The
// zero value is ready. It belongs to one lock and is not safe for concurrent
// use.
//
// Invariant: an entry's time never moves forward while the hold is the same
// and the rule goes on holding; it is gone after the first judgement at which
// the rule did not hold or could not be told.
type Memory struct {
	hold  string
	since map[string]time.Duration
}

// Hold returns the hold that the memory is about, and since when each rule has
// held, by Rule.Key, so that an observer can write it down.
func (m *Memory) Hold() (hold string, since map[string]time.Duration) {
	out := make(map[string]time.Duration, len(m.since))
	for k, v := range m.since {
		out[k] = v
	}
	return m.hold, out
}

// Restore makes the memory what Hold returned, on this process's clock.
func (m *Memory) Restore(hold string, since map[string]time.Duration) {
	m.hold, m.since = hold, make(map[string]time.Duration, len(since))
	for k, v := range since {
		m.since[k] = v
	}
}

// Clone is a memory of the same that changes by itself.
func (m *Memory) Clone() *Memory {
	c := &Memory{}
	c.Restore(m.Hold())
	return c
}

// note records one answer of a rule and returns since when it has held.
func (m *Memory) note(key string, v Tri, now time.Duration) time.Duration {
	if v != True {
		delete(m.since, key)
		return now
	}
	if since, ok := m.since[key]; ok && since <= now {
		return since
	}
	if m.since == nil {
		m.since = make(map[string]time.Duration)
	}
	m.since[key] = now
	return now
}

// Judge returns the verdict on a held lock.
//
// hold names the hold (session and token): when it changes, m starts anew. now
// is the caller's monotonic time. With a nil m nothing is remembered, and a
// rule with a `for` can only be pending. A nil policy has no rules: HELD.
//
// The order of the verdict: a hot rule true, HOT; else a hot rule unknown,
// UNKNOWN; else a warm rule true, WARM; else HELD.
func (p *Policy) Judge(f Facts, m *Memory, hold string, now time.Duration) Judgement {
	j := Judgement{State: StateHeld}
	if p == nil {
		return j
	}
	if m != nil && m.hold != hold {
		m.hold, m.since = hold, nil
	}
	s := p.scope(f)
	defer p.scopes.Put(s)
	j.Results = make([]RuleResult, len(p.rules))
	var hot, unknown, warm *RuleResult
	for i, r := range p.rules {
		res := &j.Results[i]
		*res = r.eval(s)
		holds := res.Value == True
		if r.For > 0 {
			since := now
			if m != nil {
				since = m.note(r.key, res.Value, now)
			}
			res.Held = now - since
			if left := r.For - (now - since); holds && left > 0 {
				j.Pending = append(j.Pending, Pending{Rule: r, Since: since, Left: left})
				holds = false
			}
		}
		switch {
		case r.Hot && holds && hot == nil:
			hot = res
		case r.Hot && res.Value == Unknown && unknown == nil:
			unknown = res
		case !r.Hot && holds && warm == nil:
			warm = res
		}
	}
	switch {
	case hot != nil:
		j.State, j.Result = StateHot, hot
	case unknown != nil:
		j.State, j.Result = StateUnknown, unknown
	case warm != nil:
		j.State, j.Result = StateWarm, warm
	}
	if j.Result != nil {
		j.Rule = j.Result.Rule
	}
	return j
}

// scope is the facts as expressions read them, made once for each judgement.
type scope struct {
	ctx *hcl.EvalContext
	// why says of each unknown fact why.
	why map[string]string
}

func newScope(f Facts, reads []*factRef) *scope {
	s := &scope{ctx: &hcl.EvalContext{
		Variables: make(map[string]cty.Value, len(reads)),
		Functions: functions,
	}}
	s.fill(f, reads)
	return s
}

func (s *scope) fill(f Facts, reads []*factRef) {
	for _, r := range reads {
		v, why := r.value(f)
		s.ctx.Variables[r.name] = v
		if why != "" {
			if s.why == nil {
				s.why = make(map[string]string)
			}
			s.why[r.name] = why
		}
	}
}

// scope is one of f for all rules of the policy, perhaps one that was used before:
// what it holds is always about the same facts. It goes back to p.scopes.
func (p *Policy) scope(f Facts) *scope {
	s, ok := p.scopes.Get().(*scope)
	if !ok {
		return newScope(f, p.reads)
	}
	clear(s.why)
	s.fill(f, p.reads)
	return s
}

// unknowns says which of the facts are unknown, and why.
func (s *scope) unknowns(used []string) string {
	var out string
	for _, name := range used {
		if why, ok := s.why[name]; ok {
			if out != "" {
				out += "; "
			}
			out += name + " is unknown: " + clip(printable(why), 200)
		}
	}
	return out
}

// eval returns the expression's answer. A value that is null does not hold. An
// error does not hold where a null was read, and is unknown otherwise.
func (e *expr) eval(s *scope) (t Tri, why string) {
	v, diags := e.value(s.ctx)
	if diags.HasErrors() {
		for _, name := range e.used {
			if s.ctx.Variables[name].IsNull() {
				return False, ""
			}
		}
		return Unknown, e.explain(s, diagText(diags))
	}
	if v.IsKnown() && !v.IsNull() && v.Type() != cty.Bool {
		b, err := convert.Convert(v, cty.Bool)
		if err != nil {
			return Unknown, e.explain(s, "it gave a "+v.Type().FriendlyName()+", not true or false")
		}
		v = b
	}
	switch {
	case !v.IsKnown():
		return Unknown, e.explain(s, "")
	case v.IsNull():
		return False, ""
	}
	return triOf(v.True()), ""
}

func (e *expr) explain(s *scope, problem string) string {
	why := s.unknowns(e.used)
	switch {
	case problem == "" && why == "":
		return "it rests on what is not known"
	case problem == "":
		return why
	case why == "":
		return problem
	}
	return problem + " (" + why + ")"
}

// value evaluates the compiled expression. What HCL or cty cannot bear is an
// error and never a panic: a policy must not take down who judges by it.
func (e *expr) value(ctx *hcl.EvalContext) (v cty.Value, diags hcl.Diagnostics) {
	defer func() {
		if p := recover(); p != nil {
			v = cty.DynamicVal
			diags = hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Evaluation failed", Detail: clip(printable(fmt.Sprint(p)), 200), Subject: e.rng.Ptr()}}
		}
	}()
	return e.run(ctx)
}

func (r *Rule) eval(s *scope) RuleResult {
	res := RuleResult{Rule: r, Used: r.when.used}
	res.Value, res.Why = r.when.eval(s)
	if res.Value == True {
		res.Reason = r.reasonText(s)
	}
	return res
}

func diagText(diags hcl.Diagnostics) string {
	for _, d := range diags {
		if d.Severity == hcl.DiagError {
			text := d.Summary
			if d.Detail != "" {
				text += ": " + d.Detail
			}
			return clip(printable(text), 300)
		}
	}
	return ""
}

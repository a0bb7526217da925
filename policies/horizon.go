package policies

import (
	"math"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// How late a verdict is at most where the moment of its change cannot be told.
const (
	// RestlessEvery is for rules that read a fact that drifts by itself (a
	// rate, a plugin's answer), or an age in another way than by comparing it.
	RestlessEvery = time.Second
	// ClockEvery bounds the wait of rules that read now.*: the wall clock may
	// be set.
	ClockEvery = time.Minute
)

// crossingSlack is how long after an age passes a bound it is looked at again:
// "more than" does not hold yet at the bound itself.
const crossingSlack = time.Millisecond

// Steady returns for how long the verdict j, given on facts f at now, stands as
// it is if nothing changes but the time; ok is false where time alone never
// changes it. now is the wall clock's, for rules that read it.
//
// The answer may be too soon and is never too late, for all that grows at one
// second a second: ages, and the `for` of rules that hold. For the rest it is at
// most RestlessEvery, or ClockEvery for now.*. What no passing of time changes
// (that a process ends, that Consul learns something) is not in it.
func (p *Policy) Steady(f Facts, j *Judgement, now time.Time) (d time.Duration, ok bool) {
	if p == nil {
		return 0, false
	}
	least := time.Duration(math.MaxInt64)
	for _, pend := range j.Pending {
		least = min(least, pend.Left)
	}
	for _, r := range p.rules {
		least = min(least, r.when.horizon.steady(f, now))
	}
	if least == math.MaxInt64 {
		return 0, false
	}
	return max(least, crossingSlack), true
}

// Steady returns for how long it stays as it is whether breaking is frozen; see
// Policy.Steady.
func (f *Freeze) Steady(facts Facts, now time.Time) (d time.Duration, ok bool) {
	d = f.when.horizon.steady(facts, now)
	return max(d, crossingSlack), d != math.MaxInt64
}

// horizon is what an expression's value depends on that changes with time.
type horizon struct {
	// crossings are the comparisons of ages: each changes its answer only where
	// its difference passes 0.
	crossings []linear
	restless  bool
	// hour: it reads the hour or the weekday. clock: it reads any of now.*.
	hour, clock bool
	windows     []*windowExpr
}

// linear is constant + the sum of factor * fact. Of the facts, ages grow at one
// second a second, and the others stand still.
type linear struct {
	constant float64
	terms    []term
}

type term struct {
	ref    *factRef
	factor float64
}

func (h *horizon) steady(f Facts, now time.Time) time.Duration {
	least := time.Duration(math.MaxInt64)
	if h == nil {
		return least
	}
	if h.restless {
		least = RestlessEvery
	}
	if h.clock {
		least = min(least, ClockEvery)
	}
	if h.hour {
		u := now.UTC()
		least = min(least, u.Truncate(time.Hour).Add(time.Hour).Sub(u))
	}
	for _, w := range h.windows {
		if _, change := w.window.At(now); !change.IsZero() {
			least = min(least, change.Sub(now))
		}
	}
	for i := range h.crossings {
		if d, ok := h.crossings[i].crossing(f); ok {
			least = min(least, d)
		}
	}
	return least
}

// crossing is how long until the sum passes 0; ok is false where it never does.
func (l *linear) crossing(f Facts) (time.Duration, bool) {
	at, rate := l.constant, 0.0
	for _, t := range l.terms {
		v, ok := t.ref.lowest(f)
		if !ok {
			return 0, false // null, or not known at all: time does not change that
		}
		at += t.factor * v
		if t.ref.age {
			rate += t.factor
		}
	}
	if rate == 0 {
		return 0, false
	}
	s := -at / rate
	switch {
	case math.IsNaN(s) || s < 0:
		return 0, false
	case s > math.MaxInt64/2/float64(time.Second):
		return 0, false
	}
	return time.Duration(math.Ceil(s*float64(time.Second))) + crossingSlack, true
}

// lowest is the fact's number or, where only a lower bound of it is known, that:
// both grow with time.
func (r *factRef) lowest(f Facts) (float64, bool) {
	v, _ := r.value(f)
	switch {
	case v.Type() != cty.Number || v.IsKnown() && v.IsNull():
		return 0, false
	case !v.IsKnown():
		low, _ := v.Range().NumberLowerBound()
		if !low.IsKnown() || low.IsNull() {
			return 0, false
		}
		v = low
	}
	n, _ := v.AsBigFloat().Float64()
	return n, !math.IsInf(n, 0)
}

// drifts are the facts that change by themselves and are no ages.
var drifts = map[string]bool{"lock.delay_left": true, "progress.rate": true, "cluster.leader": true, "cluster.sessions_lost": true}

func isDrift(name string) bool {
	return drifts[name] || strings.HasPrefix(name, pluginObject+".")
}

// horizonOf analyses a compiled expression.
func horizonOf(e hclsyntax.Expression, reads []*factRef) *horizon {
	a := &analyser{h: &horizon{}, refs: make(map[string]*factRef, len(reads)), done: map[hclsyntax.Node]bool{}}
	for _, r := range reads {
		a.refs[r.name] = r
		a.h.restless = a.h.restless || isDrift(r.name)
		a.h.clock = a.h.clock || r.object == "now"
		a.h.hour = a.h.hour || r.name == "now.hour" || r.name == "now.weekday"
	}
	_ = hclsyntax.Walk(e, a)
	return a.h
}

// analyser finds the comparisons of ages. done are the ages that stand in one;
// any other use of an age makes the expression restless.
type analyser struct {
	h    *horizon
	refs map[string]*factRef
	done map[hclsyntax.Node]bool
}

var _ hclsyntax.Walker = (*analyser)(nil)

// Enter is called for a node before its children.
func (a *analyser) Enter(n hclsyntax.Node) (none hcl.Diagnostics) {
	switch n := n.(type) {
	case *hclsyntax.BinaryOpExpr:
		var seen []hclsyntax.Node
		if n.Op == opIsNull || n.Op == opNotNull {
			// What is null does not age, and what is not stays so.
			a.linear(n.LHS, &seen)
			a.linear(n.RHS, &seen)
			a.skip(seen)
		}
		if !comparison(n.Op) {
			return none
		}
		l, lok := a.linear(n.LHS, &seen)
		r, rok := a.linear(n.RHS, &seen)
		if !lok || !rok {
			return none
		}
		a.skip(seen)
		if len(seen) > 0 {
			a.h.crossings = append(a.h.crossings, l.plus(r, -1))
		}
	case *windowExpr:
		a.h.windows = append(a.h.windows, n)
	case *hclsyntax.ScopeTraversalExpr:
		if r := a.refs[n.Traversal.RootName()]; r != nil && r.age && !a.done[n] {
			a.h.restless = true
		}
	}
	return none
}

// skip keeps the nodes from making the expression restless.
func (a *analyser) skip(nodes []hclsyntax.Node) {
	for _, n := range nodes {
		a.done[n] = true
	}
}

// Exit is called for a node after its children.
func (a *analyser) Exit(hclsyntax.Node) (none hcl.Diagnostics) { return none }

func comparison(op *hclsyntax.Operation) bool {
	switch op {
	case opLess, opLessEq, opGreater, opGreaterEq, opEqual, opNotEqual:
		return true
	}
	return false
}

// linear reads an expression as a sum of numbers; seen gets the nodes of ages.
func (a *analyser) linear(e hclsyntax.Expression, seen *[]hclsyntax.Node) (linear, bool) {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		if e.Val.Type() != cty.Number || !e.Val.IsKnown() || e.Val.IsNull() {
			return linear{}, false
		}
		n, _ := e.Val.AsBigFloat().Float64()
		return linear{constant: n}, true
	case *hclsyntax.ScopeTraversalExpr:
		r := a.refs[e.Traversal.RootName()]
		if r == nil || r.typ != cty.Number || len(e.Traversal) != 1 {
			return linear{}, false
		}
		if r.age {
			*seen = append(*seen, e)
		}
		return linear{terms: []term{{r, 1}}}, true
	case *hclsyntax.UnaryOpExpr:
		v, ok := a.linear(e.Val, seen)
		return v.times(-1), ok && e.Op == opNegate
	case *hclsyntax.BinaryOpExpr:
		l, lok := a.linear(e.LHS, seen)
		r, rok := a.linear(e.RHS, seen)
		if !lok || !rok {
			return linear{}, false
		}
		switch {
		case e.Op == opAdd:
			return l.plus(r, 1), true
		case e.Op == opSubtract:
			return l.plus(r, -1), true
		case e.Op == opMultiply && len(r.terms) == 0:
			return l.times(r.constant), true
		case e.Op == opMultiply && len(l.terms) == 0:
			return r.times(l.constant), true
		case e.Op == opDivide && len(r.terms) == 0 && r.constant != 0:
			return l.times(1 / r.constant), true
		}
	}
	return linear{}, false
}

func (l linear) times(k float64) linear {
	out := linear{constant: k * l.constant}
	for _, t := range l.terms {
		out.terms = append(out.terms, term{t.ref, k * t.factor})
	}
	return out
}

func (l linear) plus(r linear, k float64) linear {
	out := linear{constant: l.constant + k*r.constant}
	out.terms = append(append(out.terms, l.terms...), r.times(k).terms...)
	return out
}

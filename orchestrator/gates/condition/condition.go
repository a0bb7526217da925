// Package condition is the language of a gate's threshold and body: one HCL
// expression that is true or false, with the functions of policies. It is read
// with the spec, kept as text in the rollout's plan, and judged by whoever asks
// the gate. It imports HCL and package policies, and neither Consul nor the core.
package condition

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// MaxSource bounds the text of a condition, in bytes.
const MaxSource = 4 << 10

// Vars are the variables of a condition with their values. A value may be
// unknown: what does not rest on it is decided all the same.
type Vars map[string]cty.Value

// BodyVars are the variables of an HTTP gate's body, all unknown.
func BodyVars() Vars {
	return Vars{"status": cty.UnknownVal(cty.Number), "body": cty.UnknownVal(cty.String), "json": cty.DynamicVal}
}

// ThresholdVars are those of a Prometheus gate's threshold, all unknown.
func ThresholdVars() Vars {
	return Vars{"value": cty.UnknownVal(cty.Number), "labels": cty.DynamicVal}
}

// Condition is one that was read and checked. It is safe for concurrent use.
type Condition struct {
	expr hclsyntax.Expression
	// Uses are the names of the variables that it reads.
	Uses map[string]bool
}

// Parse reads a condition that may use vars, which are all unknown. file and
// start are where the text stands, for the diagnostics.
func Parse(src, file string, start hcl.Pos, vars Vars) (*Condition, hcl.Diagnostics) {
	rng := hcl.Range{Filename: file, Start: start, End: start}
	bad := func(summary, format string, args ...any) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &rng}}
	}
	if len(src) > MaxSource {
		return nil, bad("Condition is too long", "It has %d bytes, and %d are the most.", len(src), MaxSource)
	}
	expr, diags := hclsafe.ParseExpression([]byte(src), file, start)
	if diags.HasErrors() {
		return nil, diags
	}
	c := &Condition{expr: expr, Uses: map[string]bool{}}
	for _, t := range expr.Variables() {
		c.Uses[t.RootName()] = true
		if _, ok := vars[t.RootName()]; !ok {
			rng = t.SourceRange()
			return nil, bad("Unknown variable", "There is no variable named %q: there are %s.", t.RootName(), strings.Join(slices.Sorted(maps.Keys(vars)), ", "))
		}
	}
	// Of what stands behind an unknown value HCL reports nothing.
	known := policies.Functions()
	var calls hcl.Diagnostics
	_ = hclsyntax.VisitAll(expr, func(n hclsyntax.Node) hcl.Diagnostics {
		if call, ok := n.(*hclsyntax.FunctionCallExpr); ok && calls == nil {
			if _, ok := known[call.Name]; !ok {
				rng = call.NameRange
				calls = bad("Unknown function", "There is no function named %q: there are %s.", call.Name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
			}
		}
		return nil
	})
	if calls != nil {
		return nil, calls
	}
	rng = expr.Range()
	v, diags := expr.Value(scope(vars))
	switch {
	case diags.HasErrors():
		return nil, diags
	case v.Type() != cty.Bool && v.Type() != cty.DynamicPseudoType:
		return nil, bad("Not a condition", "It must be true or false, and this is a %s.", v.Type().FriendlyName())
	case len(c.Uses) == 0:
		return nil, bad("Condition reads nothing", "It is the same whatever is measured: use %s.", strings.Join(slices.Sorted(maps.Keys(vars)), ", "))
	}
	return c, nil
}

func scope(vars Vars) *hcl.EvalContext {
	return &hcl.EvalContext{Variables: vars, Functions: policies.Functions()}
}

// ErrUnknown is the error of a condition that an unknown value decides: the
// caller knows why it is unknown.
var ErrUnknown = errors.New("it rests on what is not known")

// Holds judges the condition. An error means that it is neither true nor
// false; what it says of foreign values is fit to be shown.
func (c *Condition) Holds(vars Vars) (bool, error) {
	v, diags := c.expr.Value(scope(vars))
	if diags.HasErrors() {
		d := diags[0]
		return false, errors.New(text.Clip(text.Printable(strings.TrimSuffix(d.Summary+": "+d.Detail, ".")), 250))
	}
	v, _ = v.Unmark()
	switch {
	case !v.IsKnown():
		return false, ErrUnknown
	case v.IsNull():
		return false, errors.New("it is null: something that it reads is not there")
	case v.Type() != cty.Bool:
		return false, fmt.Errorf("it is a %s, and neither true nor false", v.Type().FriendlyName())
	}
	return v.True(), nil
}

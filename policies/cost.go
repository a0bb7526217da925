package policies

import (
	"fmt"
	"reflect"
	"regexp/syntax"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// What one evaluation may cost. Facts come from records that anybody with access
// to Consul may have written, so that no fact may make judging slow or large.
const (
	// maxFact bounds the text of one fact, maxElements the elements of a
	// collection that a for expression goes over.
	maxFact     = 64 << 10
	maxElements = 10_000
	// maxLoop bounds the text that a for expression handles in all.
	maxLoop = 4 << 20
	// maxProgram bounds a compiled regular expression: matching takes time in
	// proportion to it and to the text.
	maxProgram = 2000
)

// loopBudget is what is left of maxLoop for one run of a for expression. It
// travels in the evaluation context under loopVar, which no policy can name.
type loopBudget struct{ left int }

const loopVar = "left of a for expression"

var budgetType = cty.Capsule("budget", reflect.TypeFor[loopBudget]())

// loopExpr is a for expression with a bound of its own. Over null it is null.
type loopExpr struct{ *hclsyntax.ForExpr }

func (e *loopExpr) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	coll, diags := e.CollExpr.Value(ctx)
	if !diags.HasErrors() && coll.IsKnown() && coll.IsNull() {
		return cty.NullVal(cty.DynamicPseudoType), nil
	}
	if !diags.HasErrors() && coll.IsKnown() && !coll.IsNull() && coll.CanIterateElements() && coll.LengthInt() > maxElements {
		return cty.DynamicVal, tooMuch(e.CollExpr.Range(), fmt.Sprintf("A for expression goes over %d elements at most, and here are %d.", maxElements, coll.LengthInt()))
	}
	child := ctx.NewChild()
	child.Variables = map[string]cty.Value{loopVar: cty.CapsuleVal(budgetType, &loopBudget{maxLoop})}
	if diags.HasErrors() {
		return cty.DynamicVal, diags
	}
	once := *e.ForExpr
	once.CollExpr = &hclsyntax.LiteralValueExpr{Val: coll, SrcRange: e.CollExpr.Range()}
	return once.Value(child)
}

// chargedExpr is a part of the body of a for expression that makes text.
type chargedExpr struct{ hclsyntax.Expression }

func (e *chargedExpr) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	v, ok := lookup(ctx, loopVar)
	if !ok {
		return e.Expression.Value(ctx)
	}
	b := v.EncapsulatedValue().(*loopBudget)
	if b.left > 0 {
		out, diags := e.Expression.Value(ctx)
		b.left -= e.cost(ctx, out)
		if b.left > 0 {
			return out, diags
		}
	}
	return cty.DynamicVal, tooMuch(e.Range(), fmt.Sprintf("A for expression handles %d MiB of text at most.", maxLoop>>20))
}

// cost is the text that was made or, of a function, read.
func (e *chargedExpr) cost(ctx *hcl.EvalContext, out cty.Value) int {
	n := 16 + size(out)
	if call, ok := e.Expression.(*hclsyntax.FunctionCallExpr); ok {
		for _, a := range call.Args {
			if _, simple := a.(*hclsyntax.ScopeTraversalExpr); !simple {
				continue // charged by itself, or a constant
			}
			if v, diags := a.Value(ctx); !diags.HasErrors() {
				n += size(v)
			}
		}
		if regexFunctions[call.Name] {
			n *= 16
		}
	}
	return n
}

func tooMuch(at hcl.Range, detail string) hcl.Diagnostics {
	return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Too much to evaluate", Detail: detail, Subject: &at}}
}

var regexFunctions = map[string]bool{"regex": true, "regexall": true, "regexreplace": true}

// boundedRegex refuses patterns that are slow to match. at is which argument
// the pattern is.
func boundedRegex(f function.Function, at int) function.Function {
	return checked(f, func(i int, v cty.Value) error {
		if i != at || v.Type() != cty.String {
			return nil
		}
		re, err := syntax.Parse(v.AsString(), syntax.Perl)
		if err != nil {
			return nil //nolint:nilerr // the function itself says what is wrong
		}
		prog, err := syntax.Compile(re.Simplify())
		if err == nil && len(prog.Inst) > maxProgram {
			return fmt.Errorf("the pattern is too large: it takes %d steps, and %d are allowed", len(prog.Inst), maxProgram)
		}
		return nil
	})
}

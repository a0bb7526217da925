package policies

import (
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// evaluator evaluates a part of a compiled expression.
type evaluator func(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics)

// evaluatorOf returns what evaluates e as e.Value does, and sooner: HCL converts
// operands, copies parameters and looks names up anew for each operation, and a
// locksmith does that for each rule of each lock. What is not known here is left
// to HCL.
//
// Invariant: values and diagnostics are those of e.Value.
func evaluatorOf(e hclsyntax.Expression, refs map[string]*factRef) evaluator {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		v := e.Val
		return func(*hcl.EvalContext) (cty.Value, hcl.Diagnostics) { return v, nil }
	case *hclsyntax.ScopeTraversalExpr:
		name := e.Traversal.RootName()
		if len(e.Traversal) != 1 || refs[name] == nil {
			break
		}
		return func(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
			if v, ok := ctx.Variables[name]; ok {
				return v, nil
			}
			return e.Value(ctx)
		}
	case *hclsyntax.BinaryOpExpr:
		return binaryOf(e, evaluatorOf(e.LHS, refs), evaluatorOf(e.RHS, refs))
	case *hclsyntax.UnaryOpExpr:
		return unaryOf(e, evaluatorOf(e.Val, refs))
	case *hclsyntax.FunctionCallExpr:
		if f := containsOf(e, refs); f != nil {
			return f
		}
	}
	return e.Value
}

// done is an expression whose value was found already: HCL evaluates what stands
// around it.
type done struct {
	hclsyntax.Expression
	v     cty.Value
	diags hcl.Diagnostics
}

func (d *done) Value(*hcl.EvalContext) (cty.Value, hcl.Diagnostics) { return d.v, d.diags }

func binaryOf(e *hclsyntax.BinaryOpExpr, lhs, rhs evaluator) evaluator {
	short := e.Op.ShortCircuit
	params := e.Op.Impl.Params()
	if short == nil || len(params) != 2 {
		return e.Value
	}
	lt, rt := params[0].Type, params[1].Type
	return func(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
		l, ld := lhs(ctx)
		r, rd := rhs(ctx)
		if fits(l, lt) && fits(r, rt) {
			if v, diags := short(l, r, ld, rd); v != cty.NilVal {
				return v, diags
			}
		}
		rest := *e
		rest.LHS, rest.RHS = &done{e.LHS, l, ld}, &done{e.RHS, r, rd}
		return rest.Value(ctx)
	}
}

// fits reports whether HCL would pass v on to an operation as it is.
func fits(v cty.Value, t cty.Type) bool {
	return !v.IsMarked() && (t == cty.DynamicPseudoType || v.Type() == t)
}

func unaryOf(e *hclsyntax.UnaryOpExpr, val evaluator) evaluator {
	return func(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
		v, diags := val(ctx)
		if e.Op == opNot && len(diags) == 0 && fits(v, cty.Bool) {
			return not(v), nil
		}
		rest := *e
		rest.Val = &done{e.Val, v, diags}
		return rest.Value(ctx)
	}
}

// containsOf is for a fact that is looked for among constants; nil for any other
// call.
func containsOf(e *hclsyntax.FunctionCallExpr, refs map[string]*factRef) evaluator {
	if e.Name != "contains" || len(e.Args) != 2 || e.ExpandFinal {
		return nil
	}
	list, ok := e.Args[0].(*hclsyntax.LiteralValueExpr)
	fact, isFact := e.Args[1].(*hclsyntax.ScopeTraversalExpr)
	if !ok || !isFact || list.Val.ContainsMarked() || !list.Val.Type().IsTupleType() {
		return nil
	}
	value := evaluatorOf(fact, refs)
	return func(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
		v, diags := value(ctx)
		if len(diags) == 0 && v.Type().IsPrimitiveType() && !v.IsMarked() {
			if out, err := contains([]cty.Value{list.Val, v}, cty.Bool); err == nil {
				return out, nil
			}
		}
		rest := *e
		rest.Args = []hclsyntax.Expression{list, &done{fact, v, diags}}
		return rest.Value(ctx)
	}
}

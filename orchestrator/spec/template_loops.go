package spec

import (
	"fmt"
	"reflect"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// What the loops of a template may do for one node. Loops within loops multiply,
// and HCL's evaluation cannot be stopped from outside.
const (
	maxLoops    = 100_000
	maxLoopText = 4 * MaxContent // of all loops, those within others counted at each
)

// loops is what the loops of one rendering have done.
type loops struct {
	turns, text int
	// why it was too much. What is left then ends as fast as it can; what it comes
	// to is no content, whoever catches the error.
	why *hcl.Diagnostic
}

func (l *loops) over() bool { return l.why != nil }

func loopsOf(ctx *hcl.EvalContext) *loops {
	for ctx.Parent() != nil {
		ctx = ctx.Parent()
	}
	done, ok := ctx.Variables[loopsName].EncapsulatedValue().(*loops)
	if !ok {
		panic("spec: a template is evaluated without its bounds")
	}
	return done
}

// loopsName is where an evaluation finds its own loops: no reference can name it.
const loopsName = "loops of this rendering"

var loopsType = cty.Capsule("loops", reflect.TypeFor[loops]())

// boundLoops makes every loop of a template count its turns.
func boundLoops(e hclsyntax.Expression) {
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		switch e := n.(type) {
		case turn:
			n = e.Expression
		case list:
			n = e.Expression
		}
		if f, ok := n.(*hclsyntax.ForExpr); ok {
			f.CollExpr, f.ValExpr = list{f.CollExpr}, turn{f.ValExpr, f.OpenRange}
			if f.CondExpr != nil {
				f.CondExpr = turn{f.CondExpr, f.OpenRange}
			}
		}
		return nil
	})
}

// list is what a loop goes over.
type list struct{ hclsyntax.Expression }

// Value implements hcl.Expression.
func (e list) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	if loopsOf(ctx).over() {
		return cty.EmptyTupleVal, nil
	}
	return e.Expression.Value(ctx)
}

// turn is what a loop evaluates in each turn.
type turn struct {
	hclsyntax.Expression
	loop hcl.Range
}

// Value implements hcl.Expression.
func (e turn) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	done := loopsOf(ctx)
	if done.over() {
		return cty.DynamicVal, nil
	}
	if done.turns++; done.turns > maxLoops {
		return cty.DynamicVal, e.tooMuch(done, "has more than %d turns", maxLoops)
	}
	v, diags := e.Expression.Value(ctx)
	if u, _ := v.Unmark(); u.Type() == cty.String && u.IsKnown() && !u.IsNull() {
		done.text += len(u.AsString())
	}
	if done.text > maxLoopText && !done.over() {
		return cty.DynamicVal, e.tooMuch(done, "writes more than %d MiB", maxLoopText>>20)
	}
	return v, diags
}

func (e turn) tooMuch(done *loops, format string, args ...any) hcl.Diagnostics {
	done.why = &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: "Loops go on too long", Subject: &e.loop,
		Detail: "Together with the other loops of the template this one " + fmt.Sprintf(format, args...) + " for a node, and that is the most.",
	}
	return hcl.Diagnostics{done.why}
}

package policies

import (
	"math/big"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

const (
	// maxCases bounds how many combinations of facts one condition is tried on,
	// and maxAllCases those of all conditions together.
	maxCases    = 1024
	maxAllCases = 200_000
)

// possibilities tries a condition on every combination of facts that it can tell
// apart. holds says whether it holds on some of them, fails whether it does not
// on some: a null counts only where the condition looks at nulls itself. Both are
// true where that cannot be told. spent counts the combinations.
//
// A fact that is only compared with constants takes those, a value on each side
// of and between them, and null; one that is used in another way stays unknown.
func (e *expr) possibilities(spent *int) (holds, fails bool) {
	reps := make([][]cty.Value, len(e.reads))
	cases := 1
	values := comparedWith(e)
	for i, r := range e.reads {
		reps[i] = r.representatives(values[r.name])
		cases *= len(reps[i])
		if cases > maxCases || *spent+cases > maxAllCases {
			return true, true
		}
	}
	nulls := looksAtNulls(e.hcl)
	s := newScope(nil, e.reads)
	at := make([]int, len(reps))
	for range cases {
		*spent++
		null := false
		for i, r := range e.reads {
			v := reps[i][at[i]]
			s.ctx.Variables[r.name] = v
			null = null || !nulls && v.IsKnown() && v.IsNull()
		}
		t, _ := e.eval(s)
		holds = holds || t != False
		fails = fails || t != True && !null
		if holds && fails {
			return true, true
		}
		for i := range at {
			if at[i]++; at[i] < len(reps[i]) {
				break
			}
			at[i] = 0
		}
	}
	return holds, fails
}

// compared is what an expression does with a fact.
type compared struct {
	constants []cty.Value
	otherwise bool // something that is not told by the constants
}

// comparedWith finds the constants that each fact is compared with.
func comparedWith(e *expr) map[string]*compared {
	out := make(map[string]*compared, len(e.reads))
	for _, r := range e.reads {
		out[r.name] = &compared{}
	}
	done := map[hclsyntax.Node]bool{}
	pair := func(fact hclsyntax.Expression, with ...hclsyntax.Expression) {
		t, ok := fact.(*hclsyntax.ScopeTraversalExpr)
		if !ok || len(t.Traversal) != 1 || out[t.Traversal.RootName()] == nil {
			return
		}
		c := out[t.Traversal.RootName()]
		for _, w := range with {
			lit, ok := w.(*hclsyntax.LiteralValueExpr)
			if !ok || !lit.Val.IsWhollyKnown() {
				return
			}
			if !lit.Val.IsNull() {
				c.constants = append(c.constants, lit.Val)
			}
		}
		done[t] = true
	}
	_ = hclsyntax.Walk(e.hcl, walker{
		enter: func(n hclsyntax.Node) {
			switch n := n.(type) {
			case *hclsyntax.BinaryOpExpr:
				if comparison(n.Op) || n.Op == opIsNull || n.Op == opNotNull {
					pair(n.LHS, n.RHS)
					pair(n.RHS, n.LHS)
				}
			case *hclsyntax.FunctionCallExpr:
				switch {
				case n.Name == "between" && len(n.Args) == 3:
					pair(n.Args[0], n.Args[1], n.Args[2])
				case n.Name == "contains" && len(n.Args) == 2:
					pair(n.Args[1], elementsOf(n.Args[0])...)
				}
			case *windowExpr:
				out[unixFact].otherwise = true
			case *hclsyntax.ScopeTraversalExpr:
				if c := out[n.Traversal.RootName()]; c != nil && !done[n] {
					c.otherwise = true
				}
			}
		},
		exit: func(hclsyntax.Node) {},
	})
	return out
}

// looksAtNulls reports whether something in e tells a null from a value.
func looksAtNulls(e hclsyntax.Expression) bool {
	found := false
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		switch n := n.(type) {
		case *hclsyntax.BinaryOpExpr:
			found = found || n.Op == opIsNull || n.Op == opNotNull
		case *hclsyntax.FunctionCallExpr:
			found = found || n.Name == "coalesce" || n.Name == "try" || n.Name == "can"
		}
		return nil
	})
	return found
}

// elementsOf are the elements of a constant list; or the list itself, which
// then is no constant.
func elementsOf(e hclsyntax.Expression) []hclsyntax.Expression {
	lit, ok := e.(*hclsyntax.LiteralValueExpr)
	if !ok || !lit.Val.IsWhollyKnown() || lit.Val.IsNull() || !lit.Val.CanIterateElements() {
		return []hclsyntax.Expression{e}
	}
	var out []hclsyntax.Expression
	for it := lit.Val.ElementIterator(); it.Next(); {
		_, v := it.Element()
		out = append(out, &hclsyntax.LiteralValueExpr{Val: v, SrcRange: e.Range()})
	}
	return out
}

// representatives are values of the fact of which every other one is like one.
func (r *factRef) representatives(c *compared) []cty.Value {
	unknown := []cty.Value{r.atWorst()}
	switch {
	case r.typ == cty.Bool:
		return []cty.Value{cty.True, cty.False, cty.NullVal(cty.Bool)}
	case r.typ == cty.String && schema[r.object][r.attr].Values != nil:
		out := []cty.Value{cty.NullVal(cty.String)}
		for _, v := range schema[r.object][r.attr].Values {
			out = append(out, cty.StringVal(v))
		}
		return out
	case c.otherwise:
		return unknown
	case r.typ == cty.String:
		out, seen := []cty.Value{cty.NullVal(cty.String), cty.StringVal("\x00any other")}, map[string]bool{}
		for _, v := range c.constants {
			if v.Type() != cty.String {
				return unknown
			}
			if !seen[v.AsString()] {
				seen[v.AsString()] = true
				out = append(out, v)
			}
		}
		return out
	case r.typ == cty.Number:
		out := r.numbers(c.constants)
		if out == nil {
			return unknown
		}
		return append(out, cty.NullVal(cty.Number))
	}
	return unknown
}

// numbers are the constants, and numbers beside and between them.
func (r *factRef) numbers(constants []cty.Value) []cty.Value {
	points := make([]*big.Float, 0, len(constants))
	for _, v := range constants {
		if v.Type() != cty.Number {
			return nil
		}
		points = append(points, v.AsBigFloat())
	}
	slices.SortFunc(points, func(a, b *big.Float) int { return a.Cmp(b) })
	points = slices.CompactFunc(points, func(a, b *big.Float) bool { return a.Cmp(b) == 0 })
	if len(points) == 0 {
		return []cty.Value{cty.Zero}
	}
	one := big.NewFloat(1)
	all := []*big.Float{new(big.Float).Sub(points[0], one)}
	for i, p := range points {
		if i > 0 {
			sum := new(big.Float).Add(points[i-1], p)
			all = append(all, sum.Quo(sum, big.NewFloat(2)))
		}
		all = append(all, p)
	}
	all = append(all, new(big.Float).Add(points[len(points)-1], one))
	out := make([]cty.Value, 0, len(all)+1)
	if r.age {
		out = append(out, cty.Zero)
	}
	for _, p := range all {
		if !r.age || p.Sign() >= 0 {
			out = append(out, cty.NumberVal(p))
		}
	}
	return out
}

// atWorst is the fact when nothing is known of it but that no age is negative.
func (r *factRef) atWorst() cty.Value {
	if r.age {
		return cty.UnknownVal(cty.Number).Refine().NumberRangeLowerBound(cty.Zero, true).NewValue()
	}
	return r.unknown
}

// parts are what stands between the outermost ||.
func (e *expr) parts() []*expr {
	var out []*expr
	var split func(n hclsyntax.Expression)
	split = func(n hclsyntax.Expression) {
		if or, ok := n.(*hclsyntax.BinaryOpExpr); ok && or.Op == opOr {
			split(or.LHS)
			split(or.RHS)
			return
		}
		part := &expr{hcl: n, run: n.Value, rng: n.Range()}
		roots := map[string]bool{}
		for _, t := range hclsyntax.Variables(n) {
			roots[t.RootName()] = true
		}
		for _, r := range e.reads {
			if roots[r.name] || r.name == unixFact && hasWindow(n) {
				part.reading(r)
			}
		}
		out = append(out, part)
	}
	split(e.hcl)
	return out
}

// reachable warns of a condition that can never hold or always does.
func (d *decoder) reachable(e *expr, who string, at hcl.Range) {
	plain, _ := e.eval(newScope(nil, e.reads))
	switch {
	case plain == True:
		d.warn(at, "Condition always holds", "%s always holds: this is true whatever the facts are.", who)
		return
	case plain == False:
		d.warn(at, "Condition never holds", "%s can never hold: this is false whatever the facts are.", who)
		return
	}
	holds, fails := e.possibilities(&d.cases)
	switch {
	case !holds:
		d.warn(at, "Condition never holds", "%s can never hold: this contradicts itself, and is false whatever the facts are.", who)
		return
	case !fails:
		d.warn(at, "Condition always holds", "%s always holds where there is such a fact: this is true whatever its value.", who)
		return
	}
	parts := e.parts()
	if len(parts) == 1 {
		return
	}
	for _, p := range parts {
		if holds, _ := p.possibilities(&d.cases); !holds {
			d.warn(p.rng, "Part never holds", "This part of the condition can never hold, and adds nothing.")
		}
	}
}

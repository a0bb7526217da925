package policies

import (
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// expr is a compiled expression over facts.
//
// Compiling rewrites the syntax tree: every fact becomes one flat variable, so
// that judging builds no objects; HCL's operators give way to those of
// logic.go; and what is constant is evaluated once and for all.
type expr struct {
	hcl hclsyntax.Expression
	// run evaluates hcl.
	run   evaluator
	reads []*factRef
	// used are the names of reads.
	used []string
	rng  hcl.Range
	// horizon says when time alone can change the value.
	horizon *horizon
	// typed is the expression with the types that plugins declare for their facts; nil
	// where it reads none.
	typed *typedExpr
}

// scope makes a scope for this expression alone.
func (e *expr) scope(f Facts) *scope { return newScope(f, e.reads) }

// ages reports whether the expression reads an age, and which. The time of day
// is none: it says nothing of the holder.
func (e *expr) ages() (string, bool) {
	for _, r := range e.reads {
		if r.age && r.object != "now" {
			return r.name, true
		}
	}
	return "", false
}

// compiler turns checked syntax into exprs. consts are the values of var.* and
// local.*, by flat name.
type compiler struct {
	consts map[string]cty.Value
	// src are the files that expressions come from.
	src map[string][]byte
	// plugins are the facts that plugins declare, by plugin; nil: they are not known.
	plugins map[string]map[string]FactDef
	refs    map[string]*factRef
	// loops counts the for expressions around what is compiled now.
	loops int
}

// ref returns the fact that a checked traversal begins with, and how many of
// its steps name it.
func (c *compiler) ref(t hcl.Traversal) (*factRef, int) {
	root := t.RootName()
	steps := 2
	object := root
	if root == pluginObject {
		steps = 3
		object = root + "." + stepName(t[1])
	}
	attr := stepName(t[steps-1])
	name := object + "." + attr
	if r, ok := c.refs[name]; ok {
		return r, steps
	}
	r := &factRef{object: object, attr: attr, name: name, typ: cty.DynamicPseudoType}
	if def, ok := schema[object][attr]; ok {
		r.typ, r.age = def.Type, def.Age
	} else if def, ok := c.plugins[strings.TrimPrefix(object, pluginObject+".")][attr]; ok && root == pluginObject {
		r.typ = def.Type
	}
	r.unknown = cty.UnknownVal(r.typ)
	c.refs[name] = r
	return r, steps
}

// stepName is the name that a step of a traversal selects, or "".
func stepName(s hcl.Traverser) string {
	switch s := s.(type) {
	case hcl.TraverseAttr:
		return s.Name
	case hcl.TraverseIndex:
		if s.Key.Type() == cty.String && s.Key.IsKnown() && !s.Key.IsNull() {
			return s.Key.AsString()
		}
	}
	return ""
}

// compile rewrites a checked expression.
func (c *compiler) compile(e hclsyntax.Expression) *expr {
	out := &expr{rng: e.Range()}
	for _, t := range hclsyntax.Variables(e) {
		if isConstRoot(t.RootName()) {
			continue
		}
		r, _ := c.ref(t)
		out.reading(r)
		if t.RootName() == pluginObject {
			if r, src := e.Range(), c.src[e.Range().Filename]; r.CanSliceBytes(src) {
				out.typed = &typedExpr{src: r.SliceBytes(src), consts: c.consts}
			}
		}
	}
	out.hcl, _ = c.rewrite(e)
	if hasWindow(out.hcl) {
		out.reading(c.refs[unixFact])
	}
	out.run = evaluatorOf(out.hcl, c.refs)
	out.horizon = horizonOf(out.hcl, out.reads)
	return out
}

func (e *expr) reading(r *factRef) {
	if !slices.Contains(e.reads, r) {
		e.reads = append(e.reads, r)
		e.used = append(e.used, r.name)
	}
}

func isConstRoot(name string) bool { return name == "var" || name == "local" }

// rewrite returns the compiled form of e and whether it is constant.
func (c *compiler) rewrite(e hclsyntax.Expression) (_ hclsyntax.Expression, constant bool) {
	all := func(exprs []hclsyntax.Expression) bool {
		constant := true
		for i := range exprs {
			var k bool
			exprs[i], k = c.rewrite(exprs[i])
			constant = constant && k
		}
		return constant
	}
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return e, true
	case *hclsyntax.ScopeTraversalExpr:
		return c.rewriteTraversal(e)
	case *hclsyntax.ParenthesesExpr:
		// Parentheses have done their work in the parser.
		return c.rewrite(e.Expression)
	case *hclsyntax.BinaryOpExpr:
		e.Op = compiledOp(e.Op, isNullLiteral(e.LHS) || isNullLiteral(e.RHS))
		var l, r bool
		e.LHS, l = c.rewrite(e.LHS)
		e.RHS, r = c.rewrite(e.RHS)
		return fold(e, l && r)
	case *hclsyntax.UnaryOpExpr:
		e.Op = compiledOp(e.Op, false)
		var k bool
		e.Val, k = c.rewrite(e.Val)
		return fold(e, k)
	case *hclsyntax.ConditionalExpr:
		var a, b, d bool
		e.Condition, a = c.rewrite(e.Condition)
		e.TrueResult, b = c.rewrite(e.TrueResult)
		e.FalseResult, d = c.rewrite(e.FalseResult)
		return fold(&condExpr{e}, a && b && d)
	case *hclsyntax.FunctionCallExpr:
		constant := all(e.Args)
		if e.Name == inWindow {
			if w := c.window(e); w != nil {
				return w, false
			}
			return e, false
		}
		out, constant := fold(e, constant)
		return c.charged(out), constant
	case *hclsyntax.TupleConsExpr:
		return fold(e, all(e.Exprs))
	case *hclsyntax.TemplateExpr:
		out, constant := fold(e, all(e.Parts))
		return c.charged(out), constant
	case *hclsyntax.TemplateWrapExpr:
		return c.rewrite(e.Wrapped)
	case *hclsyntax.TemplateJoinExpr:
		e.Tuple, _ = c.rewrite(e.Tuple)
		return c.charged(e), false
	case *hclsyntax.ObjectConsExpr:
		for i := range e.Items {
			// A key that is a bare word is a string and no variable.
			if k, ok := e.Items[i].KeyExpr.(*hclsyntax.ObjectConsKeyExpr); ok {
				if _, bare := k.Wrapped.(*hclsyntax.ScopeTraversalExpr); !bare || k.ForceNonLiteral {
					k.Wrapped, _ = c.rewrite(k.Wrapped)
				}
			}
			e.Items[i].ValueExpr, _ = c.rewrite(e.Items[i].ValueExpr)
		}
	case *hclsyntax.IndexExpr:
		e.Collection, _ = c.rewrite(e.Collection)
		e.Key, _ = c.rewrite(e.Key)
	case *hclsyntax.RelativeTraversalExpr:
		e.Source, _ = c.rewrite(e.Source)
	case *hclsyntax.SplatExpr:
		e.Source, _ = c.rewrite(e.Source)
		e.Each, _ = c.rewrite(e.Each)
	case *hclsyntax.ForExpr:
		e.CollExpr, _ = c.rewrite(e.CollExpr)
		c.loops++
		defer func() { c.loops-- }()
		if e.KeyExpr != nil {
			e.KeyExpr, _ = c.rewrite(e.KeyExpr)
		}
		e.ValExpr, _ = c.rewrite(e.ValExpr)
		if e.CondExpr != nil {
			e.CondExpr, _ = c.rewrite(e.CondExpr)
		}
		return &loopExpr{e}, false
	}
	return e, false
}

func (c *compiler) rewriteTraversal(e *hclsyntax.ScopeTraversalExpr) (hclsyntax.Expression, bool) {
	root := e.Traversal.RootName()
	_, object := schema[root]
	switch {
	case isConstRoot(root):
		v := c.consts[root+"."+stepName(e.Traversal[1])]
		if rest := e.Traversal[2:]; len(rest) > 0 {
			var diags hcl.Diagnostics
			if v, diags = rest.TraverseRel(v); diags.HasErrors() {
				return e, false // reported by the check already
			}
		}
		return &hclsyntax.LiteralValueExpr{Val: v, SrcRange: e.SrcRange}, true
	case !object && root != pluginObject:
		return e, false // a variable of a for expression
	}
	r, steps := c.ref(e.Traversal)
	flat := append(hcl.Traversal{hcl.TraverseRoot{Name: r.name, SrcRange: e.Traversal[0].SourceRange()}}, e.Traversal[steps:]...)
	return &hclsyntax.ScopeTraversalExpr{Traversal: flat, SrcRange: e.SrcRange}, false
}

// charged makes what stands in a for expression count against its bound.
func (c *compiler) charged(e hclsyntax.Expression) hclsyntax.Expression {
	if _, constant := e.(*hclsyntax.LiteralValueExpr); constant || c.loops == 0 {
		return e
	}
	return &chargedExpr{e}
}

// fold evaluates what is constant once.
func fold(e hclsyntax.Expression, constant bool) (hclsyntax.Expression, bool) {
	if !constant {
		return e, false
	}
	v, diags := e.Value(&hcl.EvalContext{Functions: functions})
	if diags.HasErrors() || !v.IsWhollyKnown() {
		return e, false
	}
	return &hclsyntax.LiteralValueExpr{Val: v, SrcRange: e.Range()}, true
}

func isNullLiteral(e hclsyntax.Expression) bool {
	switch e := e.(type) {
	case *hclsyntax.LiteralValueExpr:
		return e.Val.IsNull()
	case *hclsyntax.ParenthesesExpr:
		return isNullLiteral(e.Expression)
	}
	return false
}

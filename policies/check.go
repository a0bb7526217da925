package policies

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// maxReferences bounds how many facts and values one expression refers to.
const maxReferences = 1000

// checker finds what is wrong with an expression before any fact is known: it
// names every object, fact and function that does not exist, and finds type
// errors by evaluating over unknown values of the right types.
type checker struct {
	consts map[string]cty.Value
	// base holds the roots that every expression may read, as unknowns.
	base map[string]cty.Value
	// elements is base with one unknown element in every list.
	elements map[string]cty.Value
	// functions is what may be called.
	functions map[string]function.Function
	// used is told which of consts an expression names.
	used map[string]bool
}

func newChecker(consts map[string]cty.Value) *checker {
	c := &checker{consts: consts, base: make(map[string]cty.Value, len(schema)+3), elements: map[string]cty.Value{}, functions: functions}
	for object, facts := range schema {
		attrs, elements := make(map[string]cty.Value, len(facts)), make(map[string]cty.Value, len(facts))
		for name, def := range facts {
			attrs[name] = cty.UnknownVal(def.Type)
			elements[name] = attrs[name]
			if def.Type.IsListType() {
				elements[name] = cty.ListVal([]cty.Value{cty.UnknownVal(def.Type.ElementType())})
			}
		}
		c.base[object] = cty.ObjectVal(attrs)
		c.elements[object] = cty.ObjectVal(elements)
	}
	c.base[pluginObject] = cty.DynamicVal
	for _, root := range []string{"var", "local"} {
		attrs := map[string]cty.Value{}
		for name, v := range consts {
			if n, ok := strings.CutPrefix(name, root+"."); ok {
				attrs[n] = v
			}
		}
		c.base[root] = cty.ObjectVal(attrs)
		c.elements[root] = c.base[root]
	}
	c.elements[pluginObject] = cty.DynamicVal
	return c
}

// check reports what is wrong with e and returns the value that e has over
// unknown facts: its type, and its constant value if it has one. With constant,
// e may not read facts.
func (c *checker) check(e hclsyntax.Expression, constant bool) (cty.Value, hcl.Diagnostics) {
	var diags hcl.Diagnostics
	vars := hclsyntax.Variables(e)
	if len(vars) > maxReferences {
		return cty.DynamicVal, hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  "Expression too large",
			Detail:   fmt.Sprintf("This expression refers to %d facts and values: %d at most. Split it into several rules.", len(vars), maxReferences),
			Subject:  e.Range().Ptr(),
		}}
	}
	for _, t := range vars {
		diags = append(diags, c.checkTraversal(t, constant)...)
	}
	syntaxDiags, restore := c.checkSyntax(e, constant)
	diags = append(diags, syntaxDiags...)
	v, evalDiags := c.evaluate(e, c.base)
	if iterates(e) {
		// A for or [*] over a list that is not known looks at no element.
		_, more := c.evaluate(e, c.elements)
		for _, d := range more {
			if d.Summary != "Invalid index" {
				evalDiags = append(evalDiags, d)
			}
		}
	}
	evalDiags = append(evalDiags, c.checkConditions(e)...)
	restore()
	for _, d := range evalDiags {
		if !overlapsAny(d.Subject, diags) {
			diags = append(diags, tidy(d))
		}
	}
	return v, diags
}

// evaluate evaluates over unknown facts; a panic of the libraries is an error.
func (c *checker) evaluate(e hclsyntax.Expression, vars map[string]cty.Value) (v cty.Value, diags hcl.Diagnostics) {
	defer func() {
		if p := recover(); p != nil {
			v = cty.DynamicVal
			diags = hcl.Diagnostics{{
				Severity: hcl.DiagError,
				Summary:  "Invalid expression",
				Detail:   "This expression cannot be evaluated: " + clip(printable(fmt.Sprint(p)), 200) + ".",
				Subject:  e.Range().Ptr(),
			}}
		}
	}()
	ctx := (&hcl.EvalContext{Variables: vars, Functions: c.functions}).NewChild()
	ctx.Variables = map[string]cty.Value{loopVar: cty.CapsuleVal(budgetType, &loopBudget{maxLoop})}
	return e.Value(ctx)
}

// checkConditions looks at what stands before each question mark: HCL does not
// look at the type of one that is unknown.
func (c *checker) checkConditions(e hclsyntax.Expression) hcl.Diagnostics {
	var diags hcl.Diagnostics
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		cond, ok := n.(*hclsyntax.ConditionalExpr)
		if !ok {
			return nil
		}
		v, d := c.evaluate(cond.Condition, c.base)
		if t := v.Type(); !d.HasErrors() && t != cty.Bool && t != cty.DynamicPseudoType {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Incorrect condition type",
				Detail:   fmt.Sprintf("This is a %s. What stands before the question mark is true or false.", t.FriendlyName()),
				Subject:  cond.Condition.Range().Ptr(),
				Context:  cond.SrcRange.Ptr(),
			})
		}
		return nil
	})
	return diags
}

// iterates reports whether e looks at the elements of a list.
func iterates(e hclsyntax.Expression) bool {
	found := false
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		switch n.(type) {
		case *hclsyntax.ForExpr, *hclsyntax.SplatExpr, *hclsyntax.IndexExpr:
			found = true
		}
		return nil
	})
	return found
}

func (c *checker) checkTraversal(t hcl.Traversal, constant bool) hcl.Diagnostics {
	root := t.RootName()
	rootRange := t[0].SourceRange()
	_, object := schema[root]
	fail := func(subject hcl.Range, summary, detail string, args ...any) hcl.Diagnostics {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  summary,
			Detail:   fmt.Sprintf(detail, args...),
			Subject:  &subject,
			Context:  t.SourceRange().Ptr(),
		}}
	}
	switch {
	case isConstRoot(root):
		return c.checkConst(t)
	case !object && root != pluginObject:
		return fail(rootRange, "Unknown object", "%s", unknownObject(t))
	case constant:
		return fail(t.SourceRange(), "Fact not allowed here", "%s is a fact, and facts are read only in rules. Write a constant here.", t.RootName())
	case root == pluginObject:
		if len(t) < 3 || stepName(t[1]) == "" || stepName(t[2]) == "" {
			return fail(t.SourceRange(), "Incomplete fact", "A fact of an evidence plugin is plugin.NAME.FACT.")
		}
		return nil
	case len(t) < 2:
		return fail(rootRange, "Incomplete fact", "%q is an object. Name one of its facts: %s.", root, dotted(root, factNames(root)))
	}
	name := stepName(t[1])
	if name == "" {
		return fail(t[1].SourceRange(), "Incomplete fact", "A fact is chosen by its name: %s.", dotted(root, factNames(root)))
	}
	if _, ok := schema[root][name]; !ok {
		return fail(t[1].SourceRange(), "Unknown fact", "%s has no fact %q.%s", root, name,
			didYouMean(name, factNames(root), "Its facts are "+dotted(root, factNames(root))+"."))
	}
	return nil
}

func unknownObject(t hcl.Traversal) string {
	root := t.RootName()
	if len(t) == 1 {
		for _, object := range objectNames() {
			for _, fact := range factNames(object) {
				if slices.Contains(schema[object][fact].Values, root) {
					return fmt.Sprintf("A word that is compared with a fact stands in quotes: %q, such as %s.%s == %q.", root, object, fact, root)
				}
			}
		}
	}
	return fmt.Sprintf("There is no object %q.%s", root,
		didYouMean(root, append(objectNames(), pluginObject, "var", "local"), "The objects are "+strings.Join(objectNames(), ", ")+" and plugin.NAME."))
}

func (c *checker) checkConst(t hcl.Traversal) hcl.Diagnostics {
	root := t.RootName()
	kind := map[string]string{"var": "variable", "local": "local value"}[root]
	name := ""
	if len(t) > 1 {
		name = stepName(t[1])
	}
	if _, ok := c.consts[root+"."+name]; ok {
		if c.used != nil {
			c.used[root+"."+name] = true
		}
		return nil
	}
	var names []string
	for n := range c.consts {
		if n, ok := strings.CutPrefix(n, root+"."); ok {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return hcl.Diagnostics{{
		Severity: hcl.DiagError,
		Summary:  "Unknown " + kind,
		Detail:   fmt.Sprintf("There is no %s %q.%s", kind, name, didYouMean(name, names, "")),
		Subject:  t.SourceRange().Ptr(),
	}}
}

// checkSyntax looks at the shape of e. Until restore is called, the operators
// of e are the check's: they do not hide an error behind a short cut.
func (c *checker) checkSyntax(e hclsyntax.Expression, constant bool) (diags hcl.Diagnostics, restore func()) {
	depth := 0
	var undo []func()
	fail := func(severity hcl.DiagnosticSeverity, subject hcl.Range, summary, detail string, args ...any) {
		diags = append(diags, &hcl.Diagnostic{Severity: severity, Summary: summary, Detail: fmt.Sprintf(detail, args...), Subject: &subject})
	}
	_ = hclsyntax.Walk(e, walker{
		enter: func(n hclsyntax.Node) {
			switch n := n.(type) {
			case *hclsyntax.FunctionCallExpr:
				if _, ok := c.functions[n.Name]; !ok {
					fail(hcl.DiagError, n.NameRange, "Unknown function", "There is no function %q.%s", n.Name,
						didYouMean(n.Name, sortedKeys(c.functions), ""))
				}
				if n.Name == inWindow {
					diags = append(diags, c.checkWindow(n, constant)...)
				}
				if n.Name == "contains" && len(n.Args) == 2 {
					if list, ok := n.Args[0].(*hclsyntax.TupleConsExpr); ok {
						for _, word := range list.Exprs {
							c.checkWord(word, n.Args[1], &diags)
						}
					}
				}
			case *hclsyntax.ForExpr:
				depth++
				if depth > 1 {
					fail(hcl.DiagError, n.OpenRange, "Nested for expression", "A for expression cannot stand within another one.")
				}
				for _, name := range []string{n.KeyVar, n.ValVar} {
					if _, ok := schema[name]; ok || name == pluginObject || isConstRoot(name) {
						fail(hcl.DiagError, n.OpenRange, "Invalid for variable", "%q is an object of facts and cannot be the name of a variable here.", name)
					}
				}
			case *hclsyntax.BinaryOpExpr:
				if n.Op == hclsyntax.OpEqual || n.Op == hclsyntax.OpNotEqual {
					c.checkWord(n.LHS, n.RHS, &diags)
					c.checkWord(n.RHS, n.LHS, &diags)
				}
				op := n.Op
				undo = append(undo, func() { n.Op = op })
				n.Op = checkOp(n)
			}
		},
		exit: func(n hclsyntax.Node) {
			if f, ok := n.(*hclsyntax.ForExpr); ok {
				depth--
				for _, part := range []*hclsyntax.Expression{&f.KeyExpr, &f.ValExpr, &f.CondExpr} {
					if body := *part; body != nil {
						undo = append(undo, func() { *part = body })
						*part = &chargedExpr{body}
					}
				}
			}
		},
	})
	return diags, func() {
		for _, f := range undo {
			f()
		}
	}
}

// checkWord warns where a fact that has a fixed set of words is compared with
// another word.
func (c *checker) checkWord(literal, fact hclsyntax.Expression, diags *hcl.Diagnostics) {
	t, ok := fact.(*hclsyntax.ScopeTraversalExpr)
	if !ok || len(t.Traversal) != 2 {
		return
	}
	def, ok := schema[t.Traversal.RootName()][stepName(t.Traversal[1])]
	if !ok || def.Values == nil {
		return
	}
	tpl, ok := literal.(*hclsyntax.TemplateExpr)
	if !ok || !tpl.IsStringLiteral() {
		return
	}
	v, d := tpl.Value(nil)
	if d.HasErrors() || slices.Contains(def.Values, v.AsString()) {
		return
	}
	name := t.Traversal.RootName() + "." + stepName(t.Traversal[1])
	*diags = append(*diags, &hcl.Diagnostic{
		Severity: hcl.DiagWarning,
		Summary:  "Value never seen",
		Detail: fmt.Sprintf("%s is never %q.%s", name, v.AsString(),
			didYouMean(v.AsString(), def.Values, "It is one of "+strings.Join(def.Values, ", ")+".")),
		Subject: tpl.SrcRange.Ptr(),
	})
}

// checkOp is the operator of n while types are checked.
func checkOp(n *hclsyntax.BinaryOpExpr) *hclsyntax.Operation {
	switch n.Op {
	case hclsyntax.OpLogicalAnd:
		return checkAnd
	case hclsyntax.OpLogicalOr:
		return checkOr
	case hclsyntax.OpEqual, hclsyntax.OpNotEqual:
		return &hclsyntax.Operation{Impl: n.Op.Impl, Type: cty.Bool, ShortCircuit: func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
			lt, rt := l.Type(), r.Type()
			if ld.HasErrors() || rd.HasErrors() || l.IsNull() || r.IsNull() || !lt.IsPrimitiveType() || !rt.IsPrimitiveType() || lt == rt {
				return cty.NilVal, nil
			}
			return cty.UnknownVal(cty.Bool), hcl.Diagnostics{{
				Severity: hcl.DiagError,
				Summary:  "Operands of different types",
				Detail:   fmt.Sprintf("The left side is a %s and the right side a %s: they are never equal.", lt.FriendlyName(), rt.FriendlyName()),
				Subject:  n.SrcRange.Ptr(),
			}}
		}}
	case hclsyntax.OpDivide, hclsyntax.OpModulo:
		return &hclsyntax.Operation{Impl: n.Op.Impl, Type: cty.Number, ShortCircuit: func(l, r cty.Value, ld, rd hcl.Diagnostics) (cty.Value, hcl.Diagnostics) {
			v, diags := divide(l, r, ld, rd)
			for _, d := range diags {
				if d.Subject == nil {
					d.Subject = n.RHS.Range().Ptr()
				}
			}
			return v, diags
		}}
	}
	return n.Op
}

var (
	checkAnd = &hclsyntax.Operation{Impl: stdlib.AndFunc, Type: cty.Bool}
	checkOr  = &hclsyntax.Operation{Impl: stdlib.OrFunc, Type: cty.Bool}
)

// tidy makes a diagnostic of HCL's evaluator one of ours: it drops the
// evaluation context, whose values say nothing, and adds the way out where we
// know it.
func tidy(d *hcl.Diagnostic) *hcl.Diagnostic {
	out := *d
	out.Expression, out.EvalContext, out.Extra = nil, nil, nil
	if d.Summary == "Invalid operand" && strings.Contains(d.Detail, "a number is required") {
		if tpl, ok := d.Expression.(*hclsyntax.TemplateExpr); ok && tpl.IsStringLiteral() {
			if v, diags := tpl.Value(nil); !diags.HasErrors() {
				if _, err := ParseDuration(v.AsString()); err == nil {
					out.Detail += fmt.Sprintf(" Did you mean duration(%q)?", v.AsString())
				}
			}
		}
	}
	return &out
}

func overlapsAny(r *hcl.Range, diags hcl.Diagnostics) bool {
	if r == nil {
		return false
	}
	for _, d := range diags {
		if d.Severity != hcl.DiagError || d.Subject == nil {
			continue
		}
		if d.Subject.Overlaps(*r) || d.Context != nil && d.Context.Overlaps(*r) {
			return true
		}
	}
	return false
}

// didYouMean returns a sentence with the nearest name, with a space before it,
// or else the sentence otherwise.
func didYouMean(given string, names []string, otherwise string) string {
	best, bestDist := "", 3
	for _, n := range names {
		if d := levenshtein.Distance(given, n, nil); d < bestDist && d < len(n) {
			best, bestDist = n, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf(" Did you mean %q?", best)
	case otherwise != "":
		return " " + otherwise
	}
	return ""
}

func dotted(root string, names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = root + "." + n
	}
	return strings.Join(out, ", ")
}

type walker struct {
	enter, exit func(hclsyntax.Node)
}

func (w walker) Enter(n hclsyntax.Node) hcl.Diagnostics { w.enter(n); return nil }
func (w walker) Exit(n hclsyntax.Node) hcl.Diagnostics  { w.exit(n); return nil }

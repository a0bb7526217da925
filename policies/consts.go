package policies

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// maxConst bounds the value of a local or a variable. It is copied to wherever
// it is named, so that values built of values must not grow without bound.
const maxConst = 4 << 10

var variableSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "default"}, {Name: "type"}, {Name: "description"}}}

// decodeConsts evaluates variables and locals: constants, which may refer to
// each other and read no facts.
func (d *decoder) decodeConsts(variables, locals hcl.Blocks, opts Options) {
	d.consts, d.vars = map[string]cty.Value{}, map[string]cty.Value{}
	d.check = newChecker(nil)
	seen := map[string]hcl.Range{}
	for i, b := range variables {
		if i >= maxConsts {
			d.fail(b.DefRange, "Too many variables", "There are more than %d variables.", maxConsts)
			break
		}
		d.unique(seen, "variable", b)
		d.variable(b, opts)
	}
	for _, name := range sortedKeys(opts.Vars) {
		if _, ok := seen[name]; !ok && !d.partial {
			d.diags = append(d.diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  "Unknown variable",
				Detail:   fmt.Sprintf("-var gives a value to %q, and there is no such variable.%s", name, didYouMean(name, sortedKeys(seen), "")),
			})
		}
	}
	d.locals(locals)
}

func (d *decoder) variable(b *hcl.Block, opts Options) {
	name := b.Labels[0]
	content := d.content(b.Body, variableSchema)
	typ := cty.DynamicPseudoType
	if a := content.Attributes["type"]; a != nil {
		t, diags := typeexpr.TypeConstraint(a.Expr)
		d.diags = append(d.diags, diags...)
		if diags.HasErrors() {
			return
		}
		typ = t
	}
	v := cty.NilVal
	where := b.DefRange
	if a := content.Attributes["default"]; a != nil {
		var ok bool
		if v, ok = d.constant(a); !ok {
			d.set("var."+name, cty.DynamicVal, where)
			return
		}
		where = a.Expr.Range()
	}
	if text, given := opts.Vars[name]; given {
		v = given2value(text, typ)
		where = b.DefRange
	}
	if v == cty.NilVal {
		d.fail(b.DefRange, "Variable without a value", "Variable %q has no default. Give it a value with -var %s=VALUE.", name, name)
		d.set("var."+name, cty.DynamicVal, where)
		return
	}
	if typ != cty.DynamicPseudoType {
		c, err := convert.Convert(v, typ)
		if err != nil {
			d.fail(where, "Wrong type", "The value of variable %q does not fit its type: %s.", name, err)
			c = cty.UnknownVal(typ)
		}
		v = c
	}
	d.set("var."+name, v, where)
	d.vars["var."+name] = v
}

// given2value reads what -var gave: an HCL constant, or else the text itself.
func given2value(text string, typ cty.Type) cty.Value {
	if typ == cty.String || len(text) > maxConst {
		return cty.StringVal(text)
	}
	tokens, _ := hclsyntax.LexExpression([]byte(text), "-var", hcl.InitialPos)
	if checkShape(tokens).HasErrors() {
		return cty.StringVal(text)
	}
	e, diags := hclsyntax.ParseExpression([]byte(text), "-var", hcl.InitialPos)
	if diags.HasErrors() {
		return cty.StringVal(text)
	}
	v, diags := e.Value(nil)
	if diags.HasErrors() || !v.IsWhollyKnown() || v.IsNull() {
		return cty.StringVal(text)
	}
	return v
}

func (d *decoder) set(name string, v cty.Value, where hcl.Range) {
	if size(v) > maxConst {
		d.fail(where, "Value too large", "A local value or variable has at most %d bytes.", maxConst)
		v = cty.DynamicVal
	}
	d.consts[name] = v
}

// locals evaluates local values in the order in which they need each other.
func (d *decoder) locals(blocks hcl.Blocks) {
	type local struct {
		attr *hcl.Attribute
		deps []string
	}
	all := map[string]*local{}
	for _, b := range blocks {
		attrs, diags := b.Body.JustAttributes()
		d.diags = append(d.diags, diags...)
		for _, name := range sortedKeys(attrs) {
			a := attrs[name]
			if len(all) >= maxConsts {
				d.fail(a.NameRange, "Too many local values", "There are more than %d local values.", maxConsts)
				return
			}
			if prev := all[name]; prev != nil {
				d.fail(a.NameRange, "Duplicate local value", "The local value %q was declared at %s already.", name, prev.attr.NameRange)
				continue
			}
			l := &local{attr: a}
			for _, t := range a.Expr.Variables() {
				if t.RootName() == "local" && len(t) > 1 {
					l.deps = append(l.deps, stepName(t[1]))
				}
			}
			all[name] = l
		}
	}
	done := map[string]bool{}
	for len(done) < len(all) {
		progress := false
		var round []string
		for _, name := range sortedKeys(all) {
			if done[name] || slices.ContainsFunc(all[name].deps, func(dep string) bool { return all[dep] != nil && !done[dep] }) {
				continue
			}
			round = append(round, name)
		}
		d.check = newChecker(d.consts)
		for _, name := range round {
			progress = true
			done[name] = true
			v, ok := d.constant(all[name].attr)
			if !ok {
				v = cty.DynamicVal
			}
			d.set("local."+name, v, all[name].attr.Expr.Range())
		}
		if !progress {
			var cycle []string
			var at hcl.Range
			for _, name := range sortedKeys(all) {
				if !done[name] {
					cycle = append(cycle, name)
					d.consts["local."+name] = cty.DynamicVal
					at = all[name].attr.NameRange
				}
			}
			d.fail(at, "Local values in a circle", "These need each other, so that none can be evaluated first: %s.", clip(strings.Join(cycle, ", "), 200))
			return
		}
	}
}

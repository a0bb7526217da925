package policies

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// maxConst bounds the value of a local or a variable. It is copied to wherever
// it is named, so that values built of values must not grow without bound.
const maxConst = 4 << 10

var (
	variableSchema = &hcl.BodySchema{
		Attributes: []hcl.AttributeSchema{{Name: "default"}, {Name: "type"}, {Name: "description"}},
		Blocks:     []hcl.BlockHeaderSchema{{Type: "validation"}},
	}
	validationSchema = &hcl.BodySchema{Attributes: []hcl.AttributeSchema{
		{Name: "condition", Required: true}, {Name: "error_message", Required: true},
	}}
)

// given is a value of a variable from outside of the policy files.
type given struct {
	// text is what -var gave; value and where are from a file.
	text  string
	value cty.Value
	where *hcl.Range
}

// varFiles reads the values that files give to variables.
func (l *loader) varFiles(paths []string) map[string]given {
	out := map[string]given{}
	for _, path := range paths {
		src, err := readFile(path)
		if err != nil {
			l.fail(nil, "Cannot read values of variables", "%s.", reason(path, err))
			continue
		}
		body, _ := l.parse(src)
		if body == nil {
			continue
		}
		attrs, diags := body.JustAttributes()
		l.diags = append(l.diags, diags...)
		for _, name := range sortedKeys(attrs) {
			a := attrs[name]
			v, diags := constantValue(a.Expr)
			if diags.HasErrors() {
				l.fail(a.Expr.Range().Ptr(), "Constant required", "A value of a variable is a text, a number, true, false, or a list or object of those. It can name and call nothing.")
				continue
			}
			out[name] = given{value: v, where: a.Expr.Range().Ptr()}
		}
	}
	return out
}

// constantValue evaluates what names and calls nothing.
func constantValue(e hcl.Expression) (cty.Value, hcl.Diagnostics) {
	v, diags := e.Value(nil)
	if !diags.HasErrors() && (v.IsNull() || !v.IsWhollyKnown()) {
		diags = hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "No value"}}
	}
	return v, diags
}

// decodeConsts evaluates variables and locals: constants, which may refer to
// each other and read no facts.
func (d *decoder) decodeConsts(variables, locals hcl.Blocks, opts Options, fromFiles map[string]given) {
	d.consts, d.vars = map[string]cty.Value{}, map[string]cty.Value{}
	d.declared, d.given = map[string]hcl.Range{}, map[string]string{}
	d.setChecker()
	values := fromFiles
	for name, text := range opts.Vars {
		values[name] = given{text: text}
	}
	seen := map[string]hcl.Range{}
	for i, b := range variables {
		if i >= maxConsts {
			d.fail(b.DefRange, "Too many variables", "There are more than %d variables.", maxConsts)
			break
		}
		d.unique(seen, "variable", b)
		d.variable(b, values)
	}
	for _, name := range sortedKeys(values) {
		if _, ok := seen[name]; ok || d.partial {
			continue
		}
		by := "-var"
		if values[name].where != nil {
			by = "This"
		}
		d.diags = append(d.diags, &hcl.Diagnostic{
			Severity: hcl.DiagError,
			Summary:  "Unknown variable",
			Detail:   fmt.Sprintf("%s gives a value to %q, and there is no such variable.%s", by, clip(name, 100), didYouMean(name, sortedKeys(seen), "")),
			Subject:  values[name].where,
		})
	}
	d.setChecker()
	for _, b := range variables {
		d.validations(b)
	}
	d.locals(locals)
}

// setChecker makes the checker know the values that there are now.
func (d *decoder) setChecker() {
	if d.used == nil {
		d.used = map[string]bool{}
	}
	d.check = newChecker(d.consts)
	d.check.used = d.used
}

func (d *decoder) variable(b *hcl.Block, values map[string]given) {
	name := b.Labels[0]
	d.declared["var."+name] = b.LabelRanges[0]
	content := d.content(b.Body, variableSchema)
	typ := cty.DynamicPseudoType
	if a := content.Attributes["type"]; a != nil {
		t, diags := typeexpr.TypeConstraint(a.Expr)
		d.diags = append(d.diags, diags...)
		if diags.HasErrors() {
			d.set("var."+name, cty.DynamicVal, b.DefRange)
			return
		}
		typ = t
	}
	if a := content.Attributes["description"]; a != nil {
		d.stringAttr(a)
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
		v = d.typed(name, v, typ, where)
	}
	if g, ok := values[name]; ok {
		if g.where != nil {
			v, where = g.value, *g.where
		} else {
			v, where = given2value(g.text, typ), b.DefRange
		}
		v = d.typed(name, v, typ, where)
		if g.where != nil {
			g.text = givenText(v, typ)
		}
		d.given[name] = g.text
	}
	if v == cty.NilVal {
		d.fail(b.DefRange, "Variable without a value", "Variable %q has no default. Give it a value with -var %s=VALUE, or in a file that -var-file names.", name, name)
		d.set("var."+name, cty.DynamicVal, where)
		return
	}
	d.set("var."+name, v, where)
	d.vars["var."+name] = v
}

func (d *decoder) typed(name string, v cty.Value, typ cty.Type, where hcl.Range) cty.Value {
	if typ == cty.DynamicPseudoType {
		return v
	}
	c, err := convert.Convert(v, typ)
	if err != nil {
		d.fail(where, "Wrong type", "The value of variable %q does not fit its type: %s.", name, err)
		return cty.UnknownVal(typ)
	}
	return c
}

// validations holds the value of a variable to what its block asks of it.
func (d *decoder) validations(b *hcl.Block) {
	content, _, _ := b.Body.PartialContent(variableSchema) // reported already
	for _, vb := range content.Blocks {
		c := d.content(vb.Body, validationSchema)
		condition, message := c.Attributes["condition"], c.Attributes["error_message"]
		if condition == nil || message == nil {
			continue
		}
		used := d.used["var."+b.Labels[0]]
		v, diags := d.check.check(condition.Expr.(hclsyntax.Expression), true)
		d.used["var."+b.Labels[0]] = used
		d.diags = append(d.diags, diags...)
		text, ok := d.stringAttr(message)
		switch {
		case diags.HasErrors() || !ok || !v.IsKnown() && d.diags.HasErrors():
		case !v.IsKnown() || v.IsNull() || v.Type() != cty.Bool:
			d.fail(condition.Expr.Range(), "Condition required", "A condition is true or false, such as duration(var.%s) > 0.", b.Labels[0])
		case v.False():
			d.fail(condition.Expr.Range(), "Invalid value of a variable", "Variable %q: %s", b.Labels[0], text)
		}
	}
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
	if v, diags := constantValue(e); !diags.HasErrors() {
		return v
	}
	return cty.StringVal(text)
}

// givenText is the text that given2value reads as v.
func givenText(v cty.Value, typ cty.Type) string {
	switch {
	case !v.IsWhollyKnown():
		return "" // an error that was reported
	case typ == cty.String:
		return v.AsString()
	}
	return string(hclwrite.TokensForValue(v).Bytes())
}

func (d *decoder) set(name string, v cty.Value, where hcl.Range) {
	if size(v) > maxConst {
		d.fail(where, "Value too large", "A local value or variable has at most %d bytes.", maxConst)
		v = cty.DynamicVal
	}
	d.consts[name] = v
}

// local is one local value, and those that it needs.
type local struct {
	attr *hcl.Attribute
	deps []string
}

// locals evaluates local values in the order in which they need each other.
func (d *decoder) locals(blocks hcl.Blocks) {
	all := d.declareLocals(blocks)
	d.cycles(all)
	done := map[string]bool{}
	for name := range d.consts {
		if name, ok := strings.CutPrefix(name, "local."); ok {
			done[name] = true // in a cycle
		}
	}
	for len(done) < len(all) {
		var round []string
		for _, name := range sortedKeys(all) {
			if !done[name] && !slices.ContainsFunc(all[name].deps, func(dep string) bool { return all[dep] != nil && !done[dep] }) {
				round = append(round, name)
			}
		}
		d.setChecker()
		for _, name := range round {
			done[name] = true
			v, ok := d.constant(all[name].attr)
			if !ok {
				v = cty.DynamicVal
			}
			d.set("local."+name, v, all[name].attr.Expr.Range())
		}
	}
}

func (d *decoder) declareLocals(blocks hcl.Blocks) map[string]*local {
	all := map[string]*local{}
	for _, b := range blocks {
		attrs, diags := b.Body.JustAttributes()
		d.diags = append(d.diags, diags...)
		for _, name := range sortedKeys(attrs) {
			a := attrs[name]
			if len(all) >= maxConsts {
				d.fail(a.NameRange, "Too many local values", "There are more than %d local values.", maxConsts)
				return all
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
			d.declared["local."+name] = a.NameRange
		}
	}
	return all
}

// cycles reports each circle of local values once, with its way round, and
// gives those in it a value that is not known.
func (d *decoder) cycles(all map[string]*local) {
	const (
		open = 1 + iota
		closed
	)
	state := map[string]int{}
	var path []string
	var visit func(name string)
	visit = func(name string) {
		state[name] = open
		path = append(path, name)
		for _, dep := range all[name].deps {
			switch {
			case all[dep] == nil || state[dep] == closed:
			case state[dep] == open:
				circle := path[slices.Index(path, dep):]
				for _, c := range circle {
					d.consts["local."+c] = cty.DynamicVal
				}
				at := all[circle[0]].attr
				names := circle
				if len(names) > 10 {
					names = append(slices.Clone(names[:9]), fmt.Sprintf("… %d more …", len(names)-9))
				}
				d.fail(at.NameRange, "Local values in a circle", "Each of these needs the next, so that none can be evaluated: local.%s → local.%s.",
					clip(strings.Join(names, " → local."), 1000), dep)
			default:
				visit(dep)
			}
		}
		path = path[:len(path)-1]
		state[name] = closed
	}
	for _, name := range sortedKeys(all) {
		if state[name] == 0 {
			visit(name)
		}
	}
}

// unused warns of values that nothing names. What could not be read may name
// them.
func (d *decoder) unused() {
	if d.partial || d.diags.HasErrors() {
		return
	}
	for _, name := range sortedKeys(d.declared) {
		if !d.used[name] {
			kind, what := "Local value", "local value"
			if strings.HasPrefix(name, "var.") {
				kind, what = "Variable", "variable"
			}
			d.warn(d.declared[name], kind+" not used", "Nothing names the %s %q. Remove it.", what, name)
		}
	}
}

package policies

import (
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// PluginFacts returns the facts of evidence plugins that anything in the policy
// reads, by the name of the plugin. It is nil for a nil policy.
func (p *Policy) PluginFacts() map[string][]string {
	if p == nil {
		return nil
	}
	var out map[string][]string
	add := func(e *expr) {
		if e == nil {
			return
		}
		for _, r := range e.reads {
			name, ok := strings.CutPrefix(r.object, pluginObject+".")
			if !ok || slices.Contains(out[name], r.attr) {
				continue
			}
			if out == nil {
				out = map[string][]string{}
			}
			out[name] = append(out[name], r.attr)
		}
	}
	for _, e := range p.exprs() {
		add(e)
	}
	return out
}

// exprs are all that may read facts; some may be nil.
func (p *Policy) exprs() []*expr {
	var out []*expr
	for _, r := range p.rules {
		out = append(out, r.when, r.reason)
	}
	if b := p.Break; b != nil {
		if b.Freeze != nil {
			out = append(out, b.Freeze.when)
		}
		for _, s := range b.Steps {
			out = append(out, s.when, s.argv)
		}
	}
	return out
}

// typedExpr is an expression that reads facts of plugins, as it was written: what is
// compiled from it has its syntax changed.
type typedExpr struct {
	src    []byte
	consts map[string]cty.Value
	// who begins a sentence about a condition; empty: it is none.
	who string
}

// CheckPlugins checks what reads facts of evidence plugins by the types that the
// plugins declare: it finds what policy files alone do not show, such as a text that
// is compared with a number. What is not declared is not looked at.
func (p *Policy) CheckPlugins(declared map[string]map[string]FactDef) hcl.Diagnostics {
	facts := map[string]cty.Value{}
	for name, read := range p.PluginFacts() {
		attrs := map[string]cty.Value{}
		for _, fact := range read {
			attrs[fact] = cty.DynamicVal
			if def, ok := declared[name][fact]; ok {
				attrs[fact] = cty.UnknownVal(def.Type)
			}
		}
		facts[name] = cty.ObjectVal(attrs)
	}
	var all hcl.Diagnostics
	for _, e := range p.exprs() {
		if e == nil || e.typed == nil {
			continue
		}
		d := &decoder{check: newChecker(e.typed.consts)}
		d.check.base[pluginObject] = cty.ObjectVal(facts)
		d.check.elements[pluginObject] = d.check.base[pluginObject]
		syntax, diags := hclsyntax.ParseExpression(e.typed.src, e.rng.Filename, e.rng.Start)
		if diags.HasErrors() {
			continue // it was parsed before: cannot happen
		}
		v, diags := d.check.check(syntax, false)
		t := v.Type()
		switch {
		case diags.HasErrors() || e.typed.who == "":
		case t != cty.Bool && t != cty.DynamicPseudoType:
			d.fail(e.rng, "Condition required", "This is a %s. A condition is true or false, such as holder.alive == false.", t.FriendlyName())
		default:
			compile := &compiler{consts: e.typed.consts, refs: map[string]*factRef{}, plugins: declared}
			d.reachable(compile.compile(syntax), e.typed.who, e.rng)
		}
		all = append(append(all, diags...), d.diags...)
	}
	return all
}

// FactRange is where the first rule stands that reads the fact called name, or else
// the policy.
func (p *Policy) FactRange(name string) hcl.Range {
	for _, r := range p.rules {
		if slices.Contains(r.when.used, name) {
			return r.when.rng
		}
	}
	return p.Range
}

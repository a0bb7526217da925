package policies

import (
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
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
	for _, r := range p.rules {
		add(r.when)
		add(r.reason)
	}
	if b := p.Break; b != nil {
		if b.Freeze != nil {
			add(b.Freeze.when)
		}
		for _, s := range b.Steps {
			add(s.when)
			add(s.argv)
		}
	}
	return out
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

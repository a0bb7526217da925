package command

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/host"
	"github.com/aim-control/aimlock/policies"
)

// PluginConfig is a plugin block of the config file; package host reads it.
type PluginConfig struct {
	Name  string    `hcl:"name,label"`
	Body  hcl.Body  `hcl:",remain"`
	Range hcl.Range `hcl:",def_range"`
}

// readPlugins reads the plugin blocks of a config file in the folder dir.
func readPlugins(list []PluginConfig, dir string) ([]host.Spec, hcl.Diagnostics) {
	var out []host.Spec
	var diags hcl.Diagnostics
	seen := map[string]hcl.Range{}
	for _, b := range list {
		if first, ok := seen[b.Name]; ok {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Duplicate plugin", Subject: b.Range.Ptr(),
				Detail: "Plugin \"" + b.Name + "\" is there already at " + first.String() + ".",
			})
			continue
		}
		seen[b.Name] = b.Range
		s, more := host.ReadBlock(b.Name, b.Body, dir)
		diags = append(diags, more...)
		s.Range = b.Range
		out = append(out, *s)
	}
	return out, diags
}

// Plugins are those of the config file and of the folder of plugins. None of them
// runs before it is used, and all end with the command.
func (m *Meta) Plugins() *host.Host {
	if m.plugins == nil {
		m.plugins = host.New(host.Config{
			Specs: m.Config.plugins, Dir: first(m.pluginDir, m.Env("AIMLOCK_PLUGIN_DIR"), m.Config.PluginDir),
			LookupEnv: m.LookupEnv, Log: m.Log.Named("plugin"),
		})
	}
	return m.plugins
}

// checkPluginBlocks has the blocks of plugins in a spec checked by those plugins. A
// plugin that cannot be asked is told of, and is no reason to leave a rollout alone
// that is under way.
func (m *Meta) checkPluginBlocks(f *spec.File) error {
	var all hcl.Diagnostics
	for _, b := range f.Plugins {
		diags, err := m.Plugins().CheckBlock(m.ctx, plugin.Kind(b.Kind), b.Name, b.Body, nil, "a spec is kept in Consul")
		if b.Kind == string(plugin.KindTarget) && errors.Is(err, host.ErrUnknown) {
			// Every node would fail by it.
			all = append(all, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Unknown plugin", Subject: b.Range.Ptr(),
				Detail: text.Printable(err.Error()) + ". The nodes' agents need it too.",
			})
			continue
		}
		if err != nil {
			m.Notef("Warning: %s: this block could not be checked: %s\n", b.Range, text.Printable(err.Error()))
		}
		all = append(all, diags...)
	}
	return m.Diagnostics(f.Files, all)
}

// unfenced are warnings about targets that take an older order for a newer one.
func (m *Meta) unfenced(s *orchestrator.Spec) []string {
	var out []string
	for _, c := range s.Configs {
		if c.Target == nil {
			continue
		}
		switch fenced, err := m.Plugins().Fenced(m.ctx, c.Target.Name); {
		case err != nil:
			out = append(out, fmt.Sprintf("whether target %q of config %q is fenced is not known: %v", c.Target.Name, c.Name, err))
		case !fenced:
			out = append(out, fmt.Sprintf("target %q of config %q is not fenced: it does not refuse older orders itself, so only the agents that hand them over do", c.Target.Name, c.Name))
		}
	}
	return out
}

// checkPolicyPlugins has what policies say of plugins checked by those plugins: the
// facts that rules read, and the blocks of steps.
func (m *Meta) checkPolicyPlugins(set *policies.Set) hcl.Diagnostics {
	var all hcl.Diagnostics
	warn := func(at hcl.Range, format string, args ...any) {
		all = append(all, &hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: "Not checked", Subject: &at, Detail: fmt.Sprintf(format, args...)})
	}
	told := map[string]bool{}
	for _, p := range set.Policies {
		checked := map[string]map[string]policies.FactDef{}
		want := p.PluginFacts()
		declared, errs := m.Plugins().Declared(m.ctx, slices.Sorted(maps.Keys(want)))
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if err := errs[name]; err != nil {
				if !told[name] {
					warn(p.Range, "The facts plugin.%s.* could not be checked: %s.", name, text.Printable(err.Error()))
				}
				told[name] = true
				continue
			}
			checked[name] = declared[name]
			for _, fact := range want[name] {
				if _, ok := declared[name][fact]; !ok {
					all = append(all, &hcl.Diagnostic{
						Severity: hcl.DiagError, Summary: "Unknown fact", Subject: p.FactRange("plugin." + name + "." + fact).Ptr(),
						Detail: fmt.Sprintf("Plugin %s declares no fact %q. Its facts are %s.", name, fact, strings.Join(slices.Sorted(maps.Keys(declared[name])), ", ")),
					})
				}
			}
		}
		all = append(all, p.CheckPlugins(checked)...)
		if p.Break == nil {
			continue
		}
		for _, s := range p.Break.Steps {
			if s.Kind != policies.StepPlugin {
				continue
			}
			body := s.PluginBody
			if body == nil {
				body = hcl.EmptyBody()
			}
			diags, err := m.Plugins().CheckBlock(m.ctx, plugin.KindBreaker, s.Plugin, body, s.PluginContext, "policies are kept in Consul when they are applied")
			if err != nil {
				warn(s.Range, "This step could not be checked: %s.", text.Printable(err.Error()))
			}
			for _, d := range diags {
				if d.Subject != nil && d.Subject.Filename == "" {
					d.Subject = s.Range.Ptr()
				}
			}
			all = append(all, diags...)
		}
	}
	return all
}

// pluginFactView is a fact of a plugin that a policy reads.
type pluginFactView struct {
	Fact string `json:"fact"`
	// Type and Doc are what the plugin declares; empty, with the reason in Why, where
	// that is not known.
	Type string `json:"type"`
	Doc  string `json:"doc"`
	Why  string `json:"why,omitempty"`
}

// pluginFacts are those that a policy reads, as their plugins declare them.
func (m *Meta) pluginFacts(p *policies.Policy) []pluginFactView {
	want := p.PluginFacts()
	declared, errs := m.Plugins().Declared(m.ctx, slices.Sorted(maps.Keys(want)))
	var out []pluginFactView
	for _, name := range slices.Sorted(maps.Keys(want)) {
		for _, fact := range slices.Sorted(slices.Values(want[name])) {
			v := pluginFactView{Fact: "plugin." + name + "." + fact}
			if def, ok := declared[name][fact]; ok {
				v.Type, v.Doc = def.Type.FriendlyName(), def.Doc
			} else if v.Why = "the plugin declares no such fact"; errs[name] != nil {
				v.Why = text.Printable(errs[name].Error())
			}
			out = append(out, v)
		}
	}
	return out
}

func (m *Meta) closePlugins() {
	if m.plugins != nil {
		m.plugins.Close()
	}
}

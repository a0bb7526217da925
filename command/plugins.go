package command

import (
	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/plugin/host"
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

func (m *Meta) closePlugins() {
	if m.plugins != nil {
		m.plugins.Close()
	}
}

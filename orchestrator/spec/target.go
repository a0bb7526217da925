package spec

import (
	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/orchestrator"
)

// maxTarget bounds the block of a target in bytes of JSON: every node's order has it.
const maxTarget = 4 << 10

// target reads which plugin writes a config.
func (d *decoder) target(c *hcl.BodyContent) *orchestrator.Target {
	var out *orchestrator.Target
	for n, b := range c.Blocks.OfType("target") {
		if n > 0 {
			d.fail(b.DefRange, "Second target", "A config has one target. Give the other one a config of its own.")
			break
		}
		d.name("target", b)
		out = &orchestrator.Target{Name: b.Labels[0], Config: d.pluginConfig("target", b)}
		if len(out.Config) > maxTarget {
			d.fail(b.DefRange, "Target is too long", "A target may have %d bytes as JSON: put more into the plugin's block in the config file of the agents.", maxTarget)
		}
	}
	return out
}

// targetsAlone refuses a target among several configs: what stands on several
// machines cannot be applied all or none.
func (d *decoder) targetsAlone(c *hcl.BodyContent) {
	if len(d.file.Spec.Configs) < 2 {
		return
	}
	for i, b := range c.Blocks.OfType("config") {
		if d.file.Spec.Configs[i].Target != nil {
			d.fail(b.DefRange, "Target among several configs", "The configs of a rollout are applied all or none, which a target cannot be part of: give config %q a rollout of its own.", b.Labels[0])
		}
	}
}

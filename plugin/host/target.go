package host

import (
	"context"
	"encoding/json"

	"github.com/aim-control/aimlock/plugin"
)

// Apply has the target of a plugin write a config to a node, once: whether a lost call
// was carried out is not known. What is older than what the target has seen is a
// *plugin.StaleError.
func (h *Host) Apply(ctx context.Context, name string, config json.RawMessage, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	i := instanceOf(p, plugin.KindTarget, config, (*plugin.Client).Target)
	return use(ctx, i, "apply", false, func(ctx context.Context, v plugin.Target) (*plugin.Applied, error) {
		return v.Apply(ctx, r)
	})
}

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

// Restore has the target of a plugin bring back what stood before a rollout, once.
func (h *Host) Restore(ctx context.Context, name string, config json.RawMessage, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	i := instanceOf(p, plugin.KindTarget, config, (*plugin.Client).Target)
	return use(ctx, i, "restore", false, func(ctx context.Context, v plugin.Target) (*plugin.Applied, error) {
		return v.Restore(ctx, r)
	})
}

// Read asks the target of a plugin what stands on a node.
func (h *Host) Read(ctx context.Context, name string, config json.RawMessage, r *plugin.ReadRequest) (*plugin.State, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	i := instanceOf(p, plugin.KindTarget, config, (*plugin.Client).Target)
	return use(ctx, i, "read", true, func(ctx context.Context, v plugin.Target) (*plugin.State, error) {
		return v.Read(ctx, r)
	})
}

// Known tells why a plugin cannot be run, without starting it.
func (h *Host) Known(name string) error {
	p, err := h.Plugin(name)
	if err != nil {
		return err
	}
	return p.Check()
}

// Fenced tells whether a target itself refuses older orders. It is started for that
// if it does not run.
func (h *Host) Fenced(ctx context.Context, name string) (bool, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return false, err
	}
	info, err := p.Info(ctx)
	if err != nil {
		return false, err
	}
	ki := info.Kind(plugin.KindTarget)
	return ki != nil && ki.Has(plugin.CapFencing), nil
}

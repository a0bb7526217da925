package host

import (
	"context"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
	"github.com/aim-control/aimlock/plugin"
)

// Gate finds the gate of a plugin, for gates.Config. It does not start it.
func (h *Host) Gate(name string) (gates.Kind, error) {
	p, err := h.Plugin(name)
	if err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return pluginGate{p}, nil
}

type pluginGate struct{ p *Plugin }

var _ gates.Kind = pluginGate{}

// Ask implements gates.Kind.
func (g pluginGate) Ask(ctx context.Context, q gates.Question) gates.Answer {
	i := instanceOf(g.p, plugin.KindGate, q.Gate.Plugin.Config, (*plugin.Client).Gate)
	got, err := use(ctx, i, "ask", true, func(ctx context.Context, v plugin.Gate) (*plugin.Answer, error) {
		return v.Ask(ctx, &plugin.Question{
			Gate: q.Gate.Name, Rollout: q.Rollout, Stage: q.Stage, Epoch: q.Epoch, Token: q.Token,
			Updated: q.Updated, Rest: q.Rest, Dir: q.Dir,
		})
	})
	if err != nil {
		return gates.Answer{Answer: orchestrator.Unknown, Error: true, Why: err.Error()}
	}
	a := gates.Answer{Answer: orchestrator.Unknown, Value: got.Value, Why: got.Why}
	switch got.Verdict {
	case plugin.Pass:
		a.Answer = orchestrator.Pass
	case plugin.Fail:
		a.Answer = orchestrator.Fail
	case plugin.Pending:
		a.Answer = orchestrator.Pending
	default:
		a.Error = got.Retry
	}
	return a
}

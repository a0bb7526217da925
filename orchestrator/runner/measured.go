package runner

import (
	"context"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator"
)

// measuredFrom is how many of a config's last rollouts an estimate rests on.
const measuredFrom = 10

// Measured is how long nodes took in the last rollouts of a spec's configs; of
// none, where nothing was measured yet.
func (r *Runner) Measured(ctx context.Context, spec *orchestrator.Spec) (a orchestrator.Answers, rollouts int, err error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return a, 0, err
	}
	for _, h := range heads { // the newest first
		if h.Answers != nil && sharesConfig(h, spec) && rollouts < measuredFrom {
			a.Merge(*h.Answers)
			rollouts++
		}
	}
	return a, rollouts, nil
}

// AgentsDown names the nodes of a plan whose agents are down now, and those for which
// none of their name is registered. Where no agent at all is to be seen nothing is
// known, and none is named.
func (r *Runner) AgentsDown(ctx context.Context, nodes []string) (down, absent []string, err error) {
	opts := &api.QueryOptions{RequireConsistent: true}
	agents, err := consulkv.Retry(ctx, r.consul.ForScan(), "list the agents", func(ctx context.Context) ([]*api.CatalogService, error) {
		l, _, err := r.consul.Services(ctx, AgentService, opts.WithContext(ctx))
		return l, err
	})
	if err != nil {
		return nil, nil, err
	}
	critical, err := consulkv.Retry(ctx, r.consul.ForScan(), "list critical checks", func(ctx context.Context) (api.HealthChecks, error) {
		l, _, err := r.consul.API().Health().State(api.HealthCritical, opts.WithContext(ctx))
		return l, err
	})
	if err != nil || len(agents) == 0 {
		return nil, nil, err
	}
	v := newVitals(nodes)
	v.setAgents(agents)
	v.setCritical(critical)
	ev, _ := v.judge()
	for _, i := range ev.Down {
		if _, registered := v.on[AgentService+"-"+nodes[i]]; registered {
			down = append(down, nodes[i])
		} else {
			absent = append(absent, nodes[i])
		}
	}
	return down, absent, nil
}

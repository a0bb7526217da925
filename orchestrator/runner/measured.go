package runner

import (
	"context"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator"
)

// measuredFrom is how many of a config's last rollouts an estimate rests on.
const measuredFrom = 10

// Past is what former rollouts tell of one to come.
type Past struct {
	// Answers is how long nodes took in the last Measured rollouts of its configs.
	Answers  orchestrator.Answers
	Measured int
	// RolledBack is the last rollout of its very contents, if that was rolled back.
	RolledBack *orchestrator.Header
}

// Past reads what former rollouts tell of a spec.
func (r *Runner) Past(ctx context.Context, spec *orchestrator.Spec) (p Past, err error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return p, err
	}
	latest := true
	for _, h := range heads { // the newest first
		if h.Answers != nil && sharesConfig(h, spec) && p.Measured < measuredFrom {
			p.Answers.Merge(*h.Answers)
			p.Measured++
		}
		if latest && sameContents(h, spec) {
			if latest = false; h.State == orchestrator.RolledBack {
				p.RolledBack = h
			}
		}
	}
	return p, nil
}

// sameContents reports whether the rollout of h brought what spec has, of every config.
func sameContents(h *orchestrator.Header, spec *orchestrator.Spec) bool {
	return !slices.ContainsFunc(spec.Configs, func(c orchestrator.Config) bool {
		return !slices.ContainsFunc(h.Configs, func(o orchestrator.HeaderConfig) bool { return o.Name == c.Name && o.SHA256 == c.SHA256 })
	})
}

// AgentsDown names the nodes of a plan whose agents are down now, and those for which
// none of their name is registered. Where no agent at all is to be seen nothing is
// known, and none is named.
func (r *Runner) AgentsDown(ctx context.Context, nodes []string) (down, absent []string, err error) {
	agents, err := r.agents(ctx)
	if err != nil {
		return nil, nil, err
	}
	down, absent, _, err = r.agentsDown(ctx, agents, nodes)
	return down, absent, err
}

// agentsDown is AgentsDown of the agents that are registered, and tells whether anything
// is known.
func (r *Runner) agentsDown(ctx context.Context, agents []*api.CatalogService, nodes []string) (down, absent []string, known bool, err error) {
	if len(agents) == 0 {
		return nil, nil, false, nil
	}
	critical, err := consulkv.Retry(ctx, r.consul.ForScan(), "list critical checks", func(ctx context.Context) (api.HealthChecks, error) {
		l, _, err := r.consul.API().Health().State(api.HealthCritical, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
	if err != nil {
		return nil, nil, false, err
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
	return down, absent, true, nil
}

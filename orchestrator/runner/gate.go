package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator"
)

// gateTimeout bounds one question to a gate.
const gateTimeout = 30 * time.Second

// ask puts a gate's question. What cannot be asked is unknown, never pass.
func (r *Runner) ask(ctx context.Context, e orchestrator.AskGate) orchestrator.GateAnswered {
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	out := orchestrator.GateAnswered{Ask: e.Ask, Gate: e.Gate.Name, Answer: orchestrator.Unknown}
	switch e.Gate.Kind {
	case GateConsulChecks:
		out.Answer, out.Why = r.consulChecks(ctx, e.Gate)
	default:
		out.Why = fmt.Sprintf("this version knows no gate of kind %q", e.Gate.Kind)
	}
	return out
}

// GateConsulChecks asks Consul how many instances of a service pass.
const GateConsulChecks = "consul_checks"

func (r *Runner) consulChecks(ctx context.Context, g orchestrator.Gate) (orchestrator.Answer, string) {
	list, err := consulkv.Retry(ctx, r.consul, "read the health of service "+g.Service, func(ctx context.Context) ([]*api.ServiceEntry, error) {
		l, _, err := r.consul.API().Health().Service(g.Service, "", false, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
	if err != nil {
		return orchestrator.Unknown, err.Error()
	}
	if len(list) == 0 {
		return orchestrator.Unknown, fmt.Sprintf("Consul shows no instance of service %q", g.Service)
	}
	passing := 0
	for _, e := range list {
		if e.Checks.AggregatedStatus() == api.HealthPassing {
			passing++
		}
	}
	why := fmt.Sprintf("%d of %d instances of %s pass, and %d percent must", passing, len(list), g.Service, g.MinPassingPercent)
	if passing*100 < g.MinPassingPercent*len(list) {
		return orchestrator.Fail, why
	}
	return orchestrator.Pass, why
}

package agent

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"
)

// The service that an agent registers on its local Consul agent.
const (
	// ServiceName is the service of all agents; its meta "node" is the name
	// under desired/.
	ServiceName = "aimlock-agent"
	// checkTTL is how long after its last pass the check is critical.
	checkTTL = 10 * time.Second
	// passEvery is how often it is passed.
	passEvery = 3 * time.Second
	// deregisterAfter removes the service of a node that does not come back.
	deregisterAfter = 72 * time.Hour
	// callTimeout bounds one call to the local agent.
	callTimeout = 2500 * time.Millisecond
)

// ServiceID is the id of node's service and of its check: several agents may
// stand on one Consul node.
func ServiceID(node string) string { return ServiceName + "-" + node }

// register keeps the service registered and its check passing. A registration
// that is gone (a Consul agent that lost its data) is made again.
func (a *Agent) register(ctx context.Context) {
	id, known := ServiceID(a.cfg.Node), false
	t := time.NewTicker(passEvery)
	defer t.Stop()
	for {
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		var err error
		if known {
			// The text never changes: a check whose status and text stand
			// still goes no further than the local agent.
			q := (&api.QueryOptions{}).WithContext(cctx)
			err = a.cfg.Consul.API().Agent().UpdateTTLOpts(id, "agent of node "+a.cfg.Node+" is running", api.HealthPassing, q)
			known = err == nil
		}
		cancel()
		if !known {
			err = a.registerOnce(ctx, id)
			known = err == nil
		}
		if err != nil {
			a.trouble.is(ctx, a.cfg.Consul.Classify("register service "+id, err))
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) registerOnce(ctx context.Context, id string) error {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a.twin(cctx, id)
	return a.cfg.Consul.API().Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID:   id,
		Name: ServiceName,
		Meta: map[string]string{"node": a.cfg.Node, "version": a.cfg.Version, "instance": a.fence.instance},
		Check: &api.AgentServiceCheck{
			CheckID:                        id,
			Name:                           "aimlock agent",
			TTL:                            checkTTL.String(),
			Status:                         api.HealthPassing,
			DeregisterCriticalServiceAfter: deregisterAfter.String(),
		},
	}, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(cctx))
}

// twin warns of another agent with this one's name on the same Consul agent. Those on
// other ones are seen by whoever resolves the fleet.
func (a *Agent) twin(ctx context.Context, id string) {
	svc, _, err := a.cfg.Consul.API().Agent().Service(id, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil || svc == nil {
		return // there is none, or the registration tells what is wrong
	}
	if other := svc.Meta["instance"]; other != "" && other != a.fence.instance {
		a.cfg.Log.Warn("an agent with another state folder has registered under this name: if it still runs, both carry out the orders of this node; end it, or give each a name of its own", "service", id)
	}
}

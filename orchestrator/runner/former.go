package runner

import (
	"context"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// forgetFormer takes those nodes out of planned of which a machine of the same
// name answered that is no more: the agent that is registered now has another
// state folder than the one that reported, and has not answered itself. Its
// files went with the former machine, whatever the report says.
//
// An agent whose order still stands carries it out again by itself, and then
// there is nothing to do here. Without retry such a node is served once: those
// that the last follow-up has had are left, or a periodic job would never stop.
//
// It reads no answers where no agent says where its state is.
func (r *Runner) forgetFormer(ctx context.Context, look *looked, plans []*orchestrator.Plan, chain []*orchestrator.Header, retry bool, planned map[string]bool) error {
	agents, err := look.agents(ctx)
	if err != nil {
		return err
	}
	now := instances(agents)
	if len(now) == 0 {
		return nil
	}
	served := map[string]bool{}
	if !retry && chain[0].Follows != "" {
		for _, n := range plans[0].Nodes {
			served[n] = true
		}
	}
	for _, c := range plans[0].Spec.Configs {
		list, err := look.answersOf(ctx, c.Name)
		if err != nil {
			return err
		}
		for _, p := range list {
			var a records.Actual
			name := keys.LastSegment(p.Key)
			if !planned[name] || served[name] || now[name] == "" || records.Decode(p.Key, p.Value, &a) != nil {
				continue
			}
			if a.Instance != "" && a.Instance != now[name] {
				delete(planned, name)
			}
		}
	}
	return nil
}

// instances are the state folders of agents, by node.
// Of a node that several agents serve nothing is said, nor of one whose agent is
// older than instances.
func instances(list []*api.CatalogService) map[string]string {
	out := make(map[string]string, len(list))
	for _, s := range list {
		node, id := s.ServiceMeta["node"], s.ServiceMeta["instance"]
		if node == "" || id == "" {
			continue
		}
		if other, there := out[node]; there && other != id {
			id = ""
		}
		out[node] = id
	}
	return out
}

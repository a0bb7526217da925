package runner

import (
	"context"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
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
// It returns what it has read in actual/, by config; nil where it read nothing.
func (r *Runner) forgetFormer(ctx context.Context, plans []*orchestrator.Plan, chain []*orchestrator.Header, retry bool, planned map[string]bool) (answers map[string]api.KVPairs, err error) {
	now, err := r.instances(ctx)
	if err != nil || len(now) == 0 {
		return nil, err
	}
	answers = map[string]api.KVPairs{}
	served := map[string]bool{}
	if !retry && chain[0].Follows != "" {
		for _, n := range plans[0].Nodes {
			served[n] = true
		}
	}
	for _, c := range plans[0].Spec.Configs {
		list, err := r.scan(ctx, readAnswers, r.keys.ActualAll(c.Name), every)
		if err != nil {
			return nil, err
		}
		answers[c.Name] = list
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
	return answers, nil
}

// instances are the state folders of the agents that are registered, by node.
// Of a node that several agents serve nothing is said, nor of one whose agent is
// older than instances.
func (r *Runner) instances(ctx context.Context) (map[string]string, error) {
	list, err := consulkv.Retry(ctx, r.consul.ForScan(), "list agents", func(ctx context.Context) ([]*api.CatalogService, error) {
		l, _, err := r.consul.Services(ctx, AgentService, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
	if err != nil {
		return nil, err
	}
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
	return out, nil
}

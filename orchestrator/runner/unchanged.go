package runner

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// unchanged finds those nodes of a new plan that have all of it already: of each
// config the last order that stands for the node asks for the very same (content,
// destination, mode, commands and all), the node has answered that order with
// success, no drift was seen since, and the machine is the one that answered.
// epoch is that of the hold, or nil where nobody holds.
//
// Where a config has secrets nobody but the nodes can tell, and they are asked.
// answers are what stands in actual/, by config.
func (r *Runner) unchanged(ctx context.Context, plan *orchestrator.Plan, epoch *uint64, answers []api.KVPairs) (orchestrator.IndexSet, error) {
	configs := plan.Spec.Configs
	if slices.ContainsFunc(configs, func(c orchestrator.Config) bool { return len(c.Secrets) > 0 }) {
		return nil, nil
	}
	index := plan.Index()
	have := make([]map[int]*records.Actual, len(configs))
	for ci := range configs {
		have[ci] = map[int]*records.Actual{}
		for _, p := range answers[ci] {
			i, ours := index[keys.LastSegment(p.Key)]
			// Nearly always a rollout brings something new: nothing is decoded then.
			if !ours || ci > 0 && have[ci-1][i] == nil || !strings.Contains(string(p.Value), plan.Content(i, ci).SHA256) {
				continue
			}
			var a records.Actual
			if records.Decode(p.Key, p.Value, &a) == nil && a.Result == records.ResultApplied && a.SHA256 == plan.Content(i, ci).SHA256 &&
				a.Drift == nil && a.Waiting == "" && (epoch == nil || a.Epoch == *epoch) {
				have[ci][i] = &a
			}
		}
	}
	if len(have[len(configs)-1]) == 0 {
		return nil, nil
	}
	agents, err := r.agents(ctx)
	if err != nil {
		return nil, err
	}
	machines := instances(agents)
	same := have[len(configs)-1]
	for ci, c := range configs {
		orders, err := r.scan(ctx, "read the orders", r.keys.DesiredAll(c.Name), func(h *consulkv.Head) bool {
			return same[index[keys.LastSegment(string(h.Key))]] != nil
		})
		if err != nil {
			return nil, err
		}
		found := make(map[int]bool, len(orders))
		for _, p := range orders {
			name := keys.LastSegment(p.Key)
			i, ours := index[name]
			var d records.Desired
			if !ours || same[i] == nil || records.Decode(p.Key, p.Value, &d) != nil {
				continue
			}
			a := have[ci][i]
			want := r.desired(ctx, plan, i, ci, d.Order)
			want.Rollout, want.Attempt, want.After = d.Rollout, d.Attempt, d.After
			now := machines[name]
			found[i] = a.Order == d.Order && (a.Rollout == "" || a.Rollout == d.Rollout) && (now == "" || a.Instance == "" || now == a.Instance) && bytes.Equal(records.Encode(want), records.Encode(&d))
		}
		for i := range same {
			if !found[i] {
				delete(same, i)
			}
		}
	}
	out := make(orchestrator.IndexSet, 0, len(same))
	for i := range same {
		out = append(out, i)
	}
	slices.Sort(out)
	return out, nil
}

// unchangedNow is unchanged for who only looks.
func (r *Runner) unchangedNow(ctx context.Context, plan *orchestrator.Plan) (orchestrator.IndexSet, error) {
	answers := make([]api.KVPairs, len(plan.Spec.Configs))
	for ci, c := range plan.Spec.Configs {
		var err error
		if answers[ci], err = r.scan(ctx, readAnswers, r.keys.ActualAll(c.Name), every); err != nil {
			return nil, err
		}
	}
	return r.unchanged(ctx, plan, nil, answers)
}

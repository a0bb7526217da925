package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Drifted is a node where somebody else changed a file.
type Drifted struct {
	Node   string `json:"node"`
	Config string `json:"config"`
	records.Drift
}

// MaxDrifted bounds how many nodes Drift names.
const MaxDrifted = 100

// Drift finds the nodes of a rollout that report a changed file, as of their
// last answers, by names; all is how many there are, of which at most MaxDrifted
// are returned. What a node said of another rollout's order does not count, unless
// it is one that had all of it and was given none.
func (r *Runner) Drift(ctx context.Context, h *orchestrator.Header) (some []Drifted, all int, err error) {
	return r.drift(ctx, h, nil)
}

// DriftOf is Drift of the rollout of an outcome. It reads nothing again that the
// call has read already.
func (r *Runner) DriftOf(ctx context.Context, out *Outcome) (some []Drifted, all int, err error) {
	return r.drift(ctx, &out.Header, out.answers)
}

func (r *Runner) drift(ctx context.Context, h *orchestrator.Header, answers map[string]api.KVPairs) (some []Drifted, all int, err error) {
	var had map[string]bool // the nodes that had all of it before this rollout
	for _, c := range h.Configs {
		list, read := answers[c.Name]
		if !read {
			if list, err = r.scan(ctx, readAnswers, r.keys.ActualAll(c.Name), every); err != nil {
				return nil, 0, err
			}
		}
		for _, p := range list {
			// Almost none has one: it is decoded only then.
			if !strings.Contains(string(p.Value), `"drift"`) {
				continue
			}
			var a records.Actual
			if records.Decode(p.Key, p.Value, &a) != nil || a.Drift == nil {
				continue
			}
			if a.Rollout != h.ID && had == nil {
				if had, err = r.unchangedOf(ctx, h); err != nil {
					return nil, 0, err
				}
			}
			if a.Rollout != h.ID && !had[keys.LastSegment(p.Key)] {
				continue
			}
			all++
			some = append(some, Drifted{Node: keys.LastSegment(p.Key), Config: c.Name, Drift: *a.Drift})
		}
	}
	slices.SortFunc(some, func(a, b Drifted) int { return strings.Compare(a.Node+"\x00"+a.Config, b.Node+"\x00"+b.Config) })
	return some[:min(len(some), MaxDrifted)], all, nil
}

// driftedIn are the nodes that report a changed file of a config, by names, whatever
// rollout their last order is of.
func driftedIn(config string, answers api.KVPairs) []Drifted {
	var out []Drifted
	for _, p := range answers {
		var a records.Actual
		if strings.Contains(string(p.Value), `"drift"`) && records.Decode(p.Key, p.Value, &a) == nil && a.Drift != nil {
			out = append(out, Drifted{Node: keys.LastSegment(p.Key), Config: config, Drift: *a.Drift})
		}
	}
	slices.SortFunc(out, func(a, b Drifted) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// unknownContents finds who has a content that Consul does not have, by revision. have
// is the checksum of each node of the plan, and sums has that of each revision. Of a
// config with secrets the content is on the nodes alone, and nobody is found.
func (r *Runner) unknownContents(ctx context.Context, plan *orchestrator.Plan, ci int, have []string, sums map[string]string) (map[string][]string, error) {
	c := plan.Spec.Configs[ci]
	if len(c.Secrets) > 0 || len(sums) == 0 || len(sums) == 1 && sums[c.Revision] != "" {
		return nil, nil
	}
	folders, err := r.consul.Keys(ctx, r.keys.ConfigFolder(c.Name), "/")
	if err != nil {
		return nil, err
	}
	known := map[string]bool{"": true}
	for i := range plan.Nodes {
		known[plan.Content(i, ci).SHA256] = true // it may be published only when it begins
	}
	for _, f := range folders {
		known[keys.LastSegment(strings.TrimSuffix(f, "/"))] = true
	}
	revision := map[string]string{}
	for rev, sum := range sums {
		revision[sum] = rev
	}
	out := map[string][]string{}
	for i, sum := range have {
		if rev := revision[sum]; !known[sum] && rev != "" {
			out[rev] = append(out[rev], plan.Nodes[i])
		}
	}
	return out, nil
}

// PutBack says how what a rollout left comes back to a node where somebody else
// changed it. start is the command that starts a rollout.
func PutBack(start string) string {
	return fmt.Sprintf("undo it on the node, or write drift = \"restore\" into the config in the spec and `%s`, which gives each node a new order", start)
}

// unchangedOf names the nodes of a rollout that had all of it before. Where its
// plan is not kept any more, nobody is known.
func (r *Runner) unchangedOf(ctx context.Context, h *orchestrator.Header) (map[string]bool, error) {
	out := map[string]bool{}
	plan, err := r.plan(ctx, h)
	if errors.Is(err, orchestrator.ErrPlanDamaged) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for _, i := range plan.Unchanged {
		out[plan.Nodes[i]] = true
	}
	return out, nil
}

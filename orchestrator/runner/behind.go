package runner

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// epoch is the one that stands. What is no number counts as 0: whoever acquires a
// lock says so.
func (r *Runner) epoch(ctx context.Context) (uint64, error) {
	p, err := r.consul.Get(ctx, r.keys.Epoch())
	if err != nil || p == nil {
		return 0, err
	}
	n, _ := strconv.ParseUint(string(p.Value), 10, 64)
	return n, nil
}

// ahead returns an error that wraps ErrRestored where nodes have answered an order
// that is newer than every rollout of its config: for who would find nothing to do.
// The newest rollout of a config is never deleted. answers are by config.
//
// Where the epoch was raised since, it returns those nodes: what they have is not
// what Consul remembers to have given them.
func (r *Runner) ahead(ctx context.Context, spec *orchestrator.Spec, heads []*orchestrator.Header, answers map[string]api.KVPairs) (nodes []string, err error) {
	told := aheadOf(spec, heads, answers)
	if len(told) == 0 {
		return nil, nil
	}
	// One may have begun since they were read, and before the answers were.
	if heads, err = r.Headers(ctx); err != nil {
		return nil, err
	}
	epoch, err := r.epoch(ctx)
	if err != nil {
		return nil, err
	}
	told = slices.DeleteFunc(aheadOf(spec, heads, answers), func(w witness) bool {
		if w.mark.Epoch < epoch {
			nodes = append(nodes, w.node)
		}
		return w.mark.Epoch < epoch
	})
	if len(told) > 0 {
		return nil, errRestored(told)
	}
	return nodes, nil
}

func aheadOf(spec *orchestrator.Spec, heads []*orchestrator.Header, answers map[string]api.KVPairs) (told []witness) {
	for _, c := range spec.Configs {
		if c.Target != nil {
			continue // a machine behind a node may have orders from elsewhere
		}
		newest := orchestrator.Order{}
		for _, h := range heads {
			o := orchestrator.Order{Epoch: h.Epoch, Token: h.Token}
			if newest.Less(o) && slices.ContainsFunc(h.Configs, func(hc orchestrator.HeaderConfig) bool { return hc.Name == c.Name }) {
				newest = o
			}
		}
		for _, p := range answers[c.Name] {
			var a struct{ orchestrator.Order }
			if records.Decode(p.Key, p.Value, &a) == nil && (a.Epoch > newest.Epoch || a.Epoch == newest.Epoch && a.Token > newest.Token) {
				told = append(told, witness{node: keys.LastSegment(p.Key), config: c.Name, mark: a.Order, stood: newest, newest: true})
			}
		}
	}
	return told
}

// behind says, for who only looks, what drive.recover would: what the nodes of a
// plan tell of orders that Consul has lost; "" for nothing.
func (r *Runner) behind(ctx context.Context, plan *orchestrator.Plan) (string, error) {
	lost, err := r.lost(ctx, plan)
	if err != nil || len(lost) == 0 {
		return "", err
	}
	return fmt.Sprintf("it would not begin: %v", errRestored(lost)), nil
}

// lost returns those who would have a drive of the plan say that Consul has lost
// orders; none where it would begin.
//
// Where somebody is at work meanwhile, an answer may be read whose order was not:
// it counts where it is as new at a second look.
func (r *Runner) lost(ctx context.Context, plan *orchestrator.Plan) ([]witness, error) {
	lost, _, err := r.lostOf(ctx, plan)
	return lost, err
}

// lostOf is lost, with what was read of the plan's configs.
func (r *Runner) lostOf(ctx context.Context, plan *orchestrator.Plan) ([]witness, *standing, error) {
	st, err := r.standing(ctx, plan, true, 0)
	if err != nil || len(st.witnesses) == 0 {
		return nil, st, err
	}
	epoch, err := r.epoch(ctx)
	if err != nil {
		return nil, nil, err
	}
	again, err := r.standing(ctx, plan, true, 0)
	if err != nil {
		return nil, nil, err
	}
	again.witnesses = slices.DeleteFunc(again.witnesses, func(w witness) bool {
		return !slices.ContainsFunc(st.witnesses, func(v witness) bool { return v.node == w.node && v.config == w.config && v.mark == w.mark })
	})
	return again.told(orchestrator.Order{Epoch: epoch}, plan.Spec.Failure.MaxFailed), st, nil
}

// Orders is what the answers of nodes tell of the orders that stand in Consul.
type Orders struct {
	// Configs is how many have answers; Read of them were read.
	Configs, Read int
	// Lost says which nodes have accepted an order that Consul has lost since the
	// epoch began, of the first config of which some have; "" for none.
	Lost string
	// Drifted are nodes where somebody else changed a file, of the configs that were
	// read, MaxDrifted at most; DriftedAll is how many there are.
	Drifted    []Drifted
	DriftedAll int
}

// Orders looks for orders that Consul has lost, whatever rollout they are of, as
// after a restore of Consul before `aimlock recover`. It reads the orders and answers
// of one config at a time, and ends at the first that tells of a loss. After an error
// it says how far it came.
func (r *Runner) Orders(ctx context.Context) (o Orders, err error) {
	folders, err := r.consul.Keys(ctx, r.keys.ActualRoot(), "/")
	if err != nil {
		return o, err
	}
	var configs []string
	for _, f := range folders {
		if name, isFolder := strings.CutSuffix(f, "/"); isFolder {
			configs = append(configs, keys.LastSegment(name))
		}
	}
	o.Configs = len(configs)
	for _, c := range configs {
		// Of a plan without nodes all who answer are witnesses of other plans.
		lost, st, err := r.lostOf(ctx, &orchestrator.Plan{Spec: orchestrator.Spec{Configs: []orchestrator.Config{{Name: c}}}})
		if err != nil {
			return o, err
		}
		o.Read++
		list := driftedIn(c, st.answers[0])
		o.DriftedAll += len(list)
		o.Drifted = append(o.Drifted, list[:min(len(list), MaxDrifted-len(o.Drifted))]...)
		if len(lost) > 0 {
			o.Lost = theirWord(lost)
			break
		}
	}
	return o, nil
}

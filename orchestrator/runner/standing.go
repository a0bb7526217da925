package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// standing is what stands in Consul of a rollout besides its plan and header.
type standing struct {
	given   []orchestrator.Given
	reports []orchestrator.Report
	prev    previous
	seen    seen
	// after are the orders that stand, by config and node.
	after after
	// witnesses are nodes that have accepted an order that Consul does not have,
	// or not any more; those of other plans too.
	witnesses []witness
	// entries is how many answers there are, of nodes outside of the plan too.
	entries int
	// answers are the entries themselves, by config, of a fresh rollout.
	answers []api.KVPairs
}

// after are the orders that stand, by config and node: what the next ones come after.
type after [][]stands

// stands is the order that stands for a node, and what stood before it as far as
// this drive gave it.
type stands struct {
	orchestrator.Order
	before orchestrator.Order
	// unknown: what stands cannot be read. The next order says nothing of it.
	unknown bool
}

// give makes o the order that stands, and returns what it comes after.
func (a after) give(config, node int, o orchestrator.Order) *orchestrator.Order {
	s := &a[config][node]
	before := s.Order
	known := !s.unknown
	*s = stands{Order: o, before: before}
	if !known {
		return nil
	}
	return &before
}

// witness is a node that has accepted an order which Consul has lost.
type witness struct {
	node, config string
	// mark is what it has accepted, stood what stood for it: zero where nothing did.
	mark, stood orchestrator.Order
	// rollout gave it, as the node says; at is where the node stands in the plan, or
	// -1, and ci the config.
	rollout string
	at, ci  int
	// target: the node tells of a machine behind it, which may take orders from
	// elsewhere.
	target bool
	// newest: stood is that of the newest rollout of the config.
	newest bool
	// twin: mark stands for another entry than the one that was accepted.
	twin bool
}

// ErrRestored: nodes have accepted orders that Consul does not have, or that no
// hold up to the present one can have given.
var ErrRestored = errors.New("Consul has lost orders, was restored to an older state, or began anew, as `aimlock dev` does: nothing more is assigned; run `aimlock recover`")

// restored returns an error that wraps ErrRestored where a node tells of an order
// that Consul has lost since the epoch of the hold began. One honest node is
// proof, and what would be decided on such a Consul was decided before: nothing is
// weighed against a budget. Only targets, which others may give orders to, are
// left to it.
func (s *standing) restored(hold orchestrator.Order, budget int) error {
	if told := s.told(hold, budget); len(told) > 0 {
		return errRestored(told)
	}
	return nil
}

// told are the witnesses of that.
func (s *standing) told(hold orchestrator.Order, budget int) (told []witness) {
	targets := 0
	for _, w := range s.witnesses {
		if w.mark.Epoch < hold.Epoch {
			continue
		}
		if w.target {
			targets++
		}
		told = append(told, w)
	}
	if len(told) == 0 || len(told) == targets && targets <= budget {
		return nil
	}
	return told
}

func errRestored(told []witness) error {
	return fmt.Errorf("%s: %w", theirWord(told), ErrRestored)
}

// theirWord names the first few of those who tell of it.
func theirWord(told []witness) string {
	const most = 3
	slices.SortFunc(told, func(a, b witness) int { return strings.Compare(a.node+"/"+a.config, b.node+"/"+b.config) })
	var some []string
	for _, w := range told[:min(len(told), most)] {
		stood := "Consul has none for it"
		switch {
		case w.twin:
			stood = "in Consul it is another one"
		case w.newest:
			stood = fmt.Sprintf("the newest rollout in Consul is of token %d of epoch %d", w.stood.Token, w.stood.Epoch)
		case !w.stood.IsZero():
			stood = fmt.Sprintf("Consul has %s for it", w.stood)
		}
		some = append(some, fmt.Sprintf("%s has accepted order %s of %s, and %s", text.Printable(w.node), w.mark, w.config, stood))
	}
	more := ""
	if n := len(told) - most; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	return strings.Join(some, "; ") + more
}

// stood is what is read of an order that stands.
type stood struct {
	orchestrator.Order
	After   *orchestrator.Order `json:"after"`
	Rollout string              `json:"rollout"`
	Action  string              `json:"action"`
	Attempt int                 `json:"attempt"`
	Target  *struct{}           `json:"target"`
	damaged bool
}

// standing reads the orders that stand in Consul, and the answers of the nodes. Of
// a fresh rollout none is given yet. epoch is that of the hold; 0: who only looks.
func (r *Runner) standing(ctx context.Context, plan *orchestrator.Plan, fresh bool, epoch uint64) (*standing, error) {
	out := &standing{prev: previous{}, seen: newSeen(plan)}
	index := plan.Index()
	for ci, c := range plan.Spec.Configs {
		var orders, answers api.KVPairs
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) {
			orders, err = r.scan(gctx, "read the orders", r.keys.DesiredAll(c.Name), every)
			return err
		})
		g.Go(func() (err error) {
			answers, err = r.scan(gctx, readAnswers, r.keys.ActualAll(c.Name), every)
			return err
		})
		if err := g.Wait(); err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, err
		}
		out.entries += len(answers)
		if fresh {
			out.answers = append(out.answers, answers)
		}
		if err := r.survey(out, plan, index, ci, orders, answers, fresh, epoch); err != nil {
			return nil, err
		}
	}
	return out, r.absolve(ctx, out)
}

// absolve takes those off the witnesses whose order somebody deleted or wrote over
// by hand, although Consul went back nowhere: the answer tells what the next order
// comes after. It is so where none stands and Consul knows the rollout that gave
// it; and where an older one stands, and Consul knows that the hold which gave the
// newer one brought its rollout to success: a snapshot that has that end has all of
// its orders, which were given before. Another end proves nothing: who takes a
// rollout's place writes it unread.
func (r *Runner) absolve(ctx context.Context, out *standing) error {
	if len(out.witnesses) == 0 {
		return nil
	}
	heads, err := r.Headers(ctx)
	if err != nil {
		return err
	}
	known, done := map[string]bool{}, map[orchestrator.Order]bool{}
	for _, h := range heads {
		known[h.ID] = true
		if h.State == orchestrator.Succeeded {
			done[orchestrator.Order{Epoch: h.Epoch, Token: h.Token}] = true
		}
	}
	out.witnesses = slices.DeleteFunc(out.witnesses, func(w witness) bool {
		if w.twin || w.stood.IsZero() && !known[w.rollout] || !w.stood.IsZero() && !done[orchestrator.Order{Epoch: w.mark.Epoch, Token: w.mark.Token}] {
			return false
		}
		if w.at >= 0 {
			out.after[w.ci][w.at].Order = w.mark
		}
		return true
	})
	return nil
}

// survey takes the orders and answers of one config. Orders are read before the
// answers to them can be newer: a node that answers meanwhile answers an order that
// stood.
func (r *Runner) survey(out *standing, plan *orchestrator.Plan, index map[string]int, ci int, orders, answers api.KVPairs, fresh bool, epoch uint64) error {
	given := make(map[string]*stood, len(orders))
	out.after = append(out.after, make([]stands, len(plan.Nodes)))
	for _, p := range orders {
		d, name := &stood{}, keys.LastSegment(p.Key)
		i, ours := index[name]
		err := records.Decode(p.Key, p.Value, d)
		switch _, newer := errors.AsType[*records.ErrNewer](err); {
		case err != nil && (newer || ours && !fresh):
			return err
		case err != nil:
			r.log.Warn("an order that stands cannot be read", "rollout", plan.ID, "node", name, "config", plan.Spec.Configs[ci].Name, "error", err)
			d.damaged = true
		}
		given[name] = d
		if ours {
			out.after[ci][i] = stands{Order: d.Order, unknown: d.damaged}
		}
	}
	void := map[string]bool{}
	for _, p := range answers {
		name := keys.LastSegment(p.Key)
		i, ours := index[name]
		if !ours {
			i = -1
		}
		rep, said, ok := r.answer(p, plan.ID, i, ci, out.prev)
		mark := said.mark
		d := given[name]
		if d == nil {
			d = &stood{}
		}
		twin := said.twin(rep, d.Order, d.Rollout, d.Target != nil)
		ignorant := twin || rep.Result == orchestrator.ResultRefused && rep.Order == d.Order && d.After != nil && d.After.Less(mark)
		if lost := d.Less(mark) && !d.damaged; lost || ignorant {
			w := witness{node: name, config: plan.Spec.Configs[ci].Name, mark: mark, stood: d.Order, target: d.Target != nil, rollout: said.rollout, at: i, ci: ci, twin: twin}
			if !lost && d.After != nil {
				w.stood = *d.After
			}
			out.witnesses = append(out.witnesses, w)
			// Since then the epoch was raised: it takes the next order.
			void[name] = ignorant && d.Epoch < epoch
		}
		if !ours {
			continue
		}
		out.seen[ci][i] = p.ModifyIndex
		if ok && !fresh && !void[name] {
			out.reports = append(out.reports, rep)
		}
	}
	if fresh {
		return nil
	}
	for _, p := range orders {
		name := keys.LastSegment(p.Key)
		if i, ours := index[name]; ours {
			if d := given[name]; d.Rollout == plan.ID {
				out.given = append(out.given, orchestrator.Given{
					Node: i, Config: ci, Order: d.Order, Restore: d.Action == records.ActionRestore, Attempt: d.Attempt, Void: void[name],
				})
			}
		}
	}
	return nil
}

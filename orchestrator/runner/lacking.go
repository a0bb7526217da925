package runner

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// lacking are the nodes of a fleet that do not tell that they have the revision which a
// chain of finished rollouts brought.
type lacking struct {
	fleet, have int
	// away have an order that stands, and no agent that is up, as far as is known; late
	// have one and an agent.
	away, late []string
	// failed and undone, which went back from it, are left so by a tick.
	failed, undone []string
	// back were unreachable and got no order, and their agents are up now: they are to
	// be served. gone are the same without an agent that is up.
	back, gone []string
	// none are the others that have no order of it.
	none []string
}

// seat is where a node stands in the newest plan of a chain that has it.
type seat struct {
	plan, node int // node is -1 where that plan only tells of it
	served     *orchestrator.Served
}

func (s *seat) wants(plans []*orchestrator.Plan, ci int) string {
	p := plans[s.plan]
	switch {
	case s.node >= 0:
		return p.Content(s.node, ci).Revision()
	case ci < len(s.served.Contents):
		return s.served.Contents[ci].Revision()
	}
	return p.Spec.Configs[ci].Revision
}

// lacking finds them among the nodes that have a seat in the chain. The orders and
// agents of nodes are asked for only where some lack it.
func (r *Runner) lacking(ctx context.Context, look *looked, chain []*orchestrator.Header, plans []*orchestrator.Plan, fleet []orchestrator.Node, retry bool) (*lacking, error) {
	l := &lacking{fleet: len(fleet)}
	seats, index := seatsOf(plans), make(map[string]int, len(fleet))
	for i, n := range fleet {
		index[n.Name] = i
	}
	configs := plans[0].Spec.Configs
	has := make([]int, len(fleet)) // of how many configs
	for ci, c := range configs {
		list, err := look.answersOf(ctx, c.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			name := keys.LastSegment(p.Key)
			i, ours := index[name]
			var a struct{ Revision string }
			if s := seats[name]; ours && s != nil && records.Decode(p.Key, p.Value, &a) == nil && a.Revision == s.wants(plans, ci) {
				has[i]++
			}
		}
	}
	var open []string
	for i, n := range fleet {
		s := seats[n.Name]
		switch {
		case has[i] == len(configs):
			l.have++
		case s == nil || chain[s.plan].Skipped.Has(s.node):
			l.none = append(l.none, n.Name)
		case !retry && chain[s.plan].Failed.Has(s.node):
			l.failed = append(l.failed, n.Name)
		case !retry && chain[s.plan].RolledBack.Has(s.node):
			l.undone = append(l.undone, n.Name)
		default:
			open = append(open, n.Name)
		}
	}
	if len(open) == 0 {
		return l, nil
	}
	return l, r.sortOut(ctx, look, l, chain, plans, seats, open, retry)
}

// sortOut finds out what those wait for who were given it and do not have it.
func (r *Runner) sortOut(ctx context.Context, look *looked, l *lacking, chain []*orchestrator.Header, plans []*orchestrator.Plan, seats map[string]*seat, open []string, retry bool) error {
	stands, err := r.ordersStand(ctx, plans, seats, open)
	if err != nil {
		return err
	}
	agents, err := look.agents(ctx)
	if err != nil {
		return err
	}
	down, absent, known, err := r.agentsDown(ctx, agents, open)
	if err != nil {
		return err
	}
	dead := map[string]bool{}
	for _, n := range slices.Concat(down, absent) {
		dead[n] = true
	}
	for _, n := range open {
		s := seats[n]
		h, up := chain[s.plan], known && !dead[n]
		switch {
		case stands[n] && up:
			l.late = append(l.late, n)
		case stands[n]:
			l.away = append(l.away, n)
		case h.Unreachable.Has(s.node) && (retry || h.State == orchestrator.Succeeded || h.State == orchestrator.Failed):
			if up {
				l.back = append(l.back, n)
			} else {
				l.gone = append(l.gone, n)
			}
		default:
			l.none = append(l.none, n)
		}
	}
	return nil
}

// ordersStand tells which nodes have orders that stand for all that they shall have.
func (r *Runner) ordersStand(ctx context.Context, plans []*orchestrator.Plan, seats map[string]*seat, nodes []string) (map[string]bool, error) {
	configs := plans[0].Spec.Configs
	var ks []string
	for _, n := range nodes {
		for _, c := range configs {
			ks = append(ks, r.keys.Desired(c.Name, n))
		}
	}
	pairs, err := r.getMany(ctx, "read the orders", ks)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(nodes))
	for i, n := range nodes {
		out[n] = true
		for ci := range configs {
			var d records.Desired
			p := pairs[i*len(configs)+ci]
			if p.ModifyIndex == 0 || records.Decode(p.Key, p.Value, &d) != nil || d.Action == records.ActionRestore || d.Revision != seats[n].wants(plans, ci) {
				out[n] = false
			}
		}
	}
	return out, nil
}

// seatsOf has the nodes of plans, the newest first.
func seatsOf(plans []*orchestrator.Plan) map[string]*seat {
	out := map[string]*seat{}
	for pi, p := range plans {
		for i, n := range p.Nodes {
			if out[n] == nil {
				out[n] = &seat{plan: pi, node: i}
			}
		}
		for i := range p.Before {
			if s := &p.Before[i]; out[s.Node] == nil {
				out[s.Node] = &seat{plan: pi, node: -1, served: s}
			}
		}
	}
	return out
}

// text says for who has nothing to do how many of the fleet have the revision, and what
// becomes of the others. start is the command that starts a rollout.
func (l *lacking) text(start string) string {
	if l.have == l.fleet {
		return "every node of the fleet has this revision: nothing to do"
	}
	var why []string
	say := func(nodes []string, one, many string) {
		switch len(nodes) {
		case 0:
		case 1:
			why = append(why, text.Some(nodes)+" "+one)
		default:
			why = append(why, text.Some(nodes)+" "+many)
		}
	}
	say(l.away, "has its order, and takes it when its agent is back", "have their orders, and take them when their agents are back")
	say(l.late, "has its order, and has not answered it yet though its agent is up", "have their orders, and have not answered them yet though their agents are up")
	again := ", and a tick does not try again: `" + start + "` does"
	say(l.failed, "failed"+again, "failed"+again)
	say(l.undone, "went back from it"+again, "went back from it"+again)
	const later = " of it: the next start or tick gives it once the agent is up"
	say(l.gone, "has no order"+later, "have no orders"+later)
	say(l.none, "has no order of it", "have no order of it")
	verb := "have"
	if l.have == 1 {
		verb = "has"
	}
	return fmt.Sprintf("%d of %s of the fleet %s this revision: %s; nothing to do here", l.have, text.Count(l.fleet, "node"), verb, strings.Join(why, "; "))
}

package runner

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/selector"
)

// job is what a Start has to do.
type job struct {
	plan   *orchestrator.Plan
	resume *orchestrator.Header // nil: new
	// older are unfinished rollouts of the same configs, whose place this one
	// takes.
	older []*orchestrator.Header
	note  string
	// past is what note comes to once the rollout has succeeded; "": the same.
	past string
	now  time.Time
	// contents are what a new plan's templates came to.
	contents contents
	// seen are the rollouts that had ended when this process first looked.
	seen map[string]bool
}

// history is what Consul knows of rollouts, as far as it concerns one spec.
type history struct {
	heads  []*orchestrator.Header
	resume *orchestrator.Header   // the unfinished one of this name and content
	older  []*orchestrator.Header // other unfinished ones of its configs
	last   *orchestrator.Header   // the newest of this name and content that has ended
	called *orchestrator.Header   // the newest that was aborted before it began, if that was after last
	ended  map[string]bool
}

func (r *Runner) history(ctx context.Context, spec *orchestrator.Spec) (*history, error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return nil, err
	}
	hy := &history{heads: heads, ended: map[string]bool{}}
	for _, h := range heads { // the newest first
		same := h.Name == spec.Name && h.Hash == spec.Hash
		switch {
		case h.FinishedAt != nil:
			hy.ended[h.ID] = true
			switch {
			case !same || hy.last != nil:
			case !neverBegan(h):
				hy.last = h
			case h.State == orchestrator.Aborted && hy.called == nil:
				hy.called = h
			}
		case same && hy.resume == nil:
			hy.resume = h
		case sharesConfig(h, spec):
			hy.older = append(hy.older, h)
		}
	}
	return hy, nil
}

// decide finds out which rollout the input is. A non-nil Outcome means that
// there is nothing to do. seen is nil at the first look, and what the job of
// that has seen afterwards: where two copies are started at once, the second
// must not begin what the first has ended meanwhile.
func (r *Runner) decide(ctx context.Context, in *Input, wait until, seen map[string]bool) (*job, *Outcome, error) {
	hy, err := r.history(ctx, &in.Spec)
	if err != nil {
		return nil, nil, err
	}
	j := &job{older: hy.older, seen: seen}
	if seen == nil {
		j.seen = hy.ended
	}
	last := hy.last
	if hy.called != nil && wait == untilIdle && hy.resume == nil {
		last = hy.called
	}
	switch {
	case hy.resume != nil:
		j.resume, j.note = hy.resume, "this process goes on with what another had begun"
		if j.plan, err = r.plan(ctx, hy.resume); unreadable(err) {
			err = fmt.Errorf("%w (`%s` ends it where it stands; the next start begins anew)", err, r.typed("abort", hy.resume.ID))
		}
		return j, nil, err
	case last != nil && seen != nil && !seen[last.ID]:
		return nil, &Outcome{ID: last.ID, Header: *last, Converged: true, Note: "another orchestrator brought it to its end"}, nil
	case last != nil && wait == untilIdle && unwanted(last.State) && last.Follows == "":
		return nil, &Outcome{ID: last.ID, Header: *last, Converged: true,
			Note: "a tick does not begin this content again: change it, or run `" + r.typed("start") + "`"}, nil
	}
	// Only now, because a rollout is resumed whatever the fleet is by then.
	fleet, err := in.Fleet.Nodes(ctx, r.consul)
	if err != nil {
		return nil, nil, err
	}
	j.now = time.Now().UTC()
	id := freshID(ctx, in.Spec.Name, j.now)
	if last == nil || !newest(hy.heads, &in.Spec, last) || last.State != orchestrator.Succeeded && last.Follows == "" {
		return j, nil, in.newPlan(j, id, fleet)
	}
	if len(in.Templates) > 0 {
		// Nodes whose content changed go through the stages like any others.
		if err := in.newPlan(j, id, fleet); err != nil {
			return nil, nil, err
		}
		moved, err := r.rendersAnew(ctx, j.plan, hy.chain(last))
		if err != nil {
			return nil, nil, err
		}
		if moved > 0 {
			j.note = fmt.Sprintf("%s comes to another content than in %s for %s: the metadata has changed", templates(&in.Spec), last.ID, text.Count(moved, "node"))
			return j, nil, nil
		}
	}
	joiners, lack, answers, err := r.joiners(ctx, hy, hy.chain(last), fleet, wait != untilIdle)
	if err != nil {
		return nil, nil, err
	}
	if len(joiners) == 0 {
		return nil, &Outcome{ID: last.ID, Header: *last, Converged: true, Note: lack.text(r.typed("start")), answers: answers}, nil
	}
	j.note = fmt.Sprintf("the revision of %s is still to go to %s", last.ID, text.Count(len(joiners), "node"))
	j.past = fmt.Sprintf("it brought the revision of %s to nodes that had none of it", last.ID)
	if err := in.newFollowUp(j, id, last.ID, joiners); err != nil {
		return nil, nil, err
	}
	return j, nil, r.shorten(ctx, j.plan, hy.chain(last), len(in.Templates) > 0)
}

// longChain is from how many follow-ups on the next one tells of them, so that a
// fleet in which nodes come and go for years does not make every tick read them
// all, nor keep them.
const longChain = 10

// shorten lets a new follow-up tell of those before it, where they are many.
func (r *Runner) shorten(ctx context.Context, plan *orchestrator.Plan, chain []*orchestrator.Header, rendered bool) error {
	if len(chain) <= longChain {
		return nil
	}
	last := len(chain) - 1
	plans, err := r.plans(ctx, chain[:last])
	if err != nil {
		return err
	}
	told := map[string]bool{}
	for _, p := range plans { // the newest first: what a node was given last counts
		for i, n := range p.Nodes {
			if told[n] {
				continue
			}
			told[n] = true
			s := orchestrator.Served{Node: n}
			for ci := range p.Spec.Configs {
				if rendered {
					s.Contents = append(s.Contents, p.Content(i, ci))
				}
			}
			plan.Before = append(plan.Before, s)
		}
		for _, s := range p.Before {
			if !told[s.Node] {
				told[s.Node] = true
				plan.Before = append(plan.Before, s)
			}
		}
	}
	plan.Root = chain[last].ID
	return nil
}

// newPlan plans a rollout, selectors included.
func newPlan(id string, spec orchestrator.Spec, fleet []orchestrator.Node, at time.Time) (*orchestrator.Plan, error) {
	match, err := selector.Of(&spec)
	if err != nil {
		return nil, err
	}
	return orchestrator.NewPlan(id, spec, fleet, at, orchestrator.Selecting(match))
}

// unwanted are the ends after which a content is not begun again by itself.
func unwanted(s orchestrator.Status) bool {
	return s == orchestrator.RolledBack || s == orchestrator.Aborted || s == orchestrator.Failed
}

func sharesConfig(h *orchestrator.Header, spec *orchestrator.Spec) bool {
	return slices.ContainsFunc(h.Configs, func(c orchestrator.HeaderConfig) bool {
		return slices.ContainsFunc(spec.Configs, func(o orchestrator.Config) bool { return o.Name == c.Name })
	})
}

// newest reports whether no rollout of the same configs came after last: then
// what last left is what the fleet shall have.
func newest(heads []*orchestrator.Header, spec *orchestrator.Spec, last *orchestrator.Header) bool {
	for _, h := range heads {
		if h.ID == last.ID {
			return true
		}
		if sharesConfig(h, spec) && !neverBegan(h) {
			return false
		}
	}
	return true
}

// before is the rollout that comes before h in its chain: what it follows, or
// what all follow that it tells of.
func before(h *orchestrator.Header) string { return cmp.Or(h.Root, h.Follows) }

// chain is a rollout and all that it follows, the newest first, without those of
// which a newer one tells.
func (hy *history) chain(last *orchestrator.Header) []*orchestrator.Header {
	out := []*orchestrator.Header{last}
	for _, h := range hy.heads {
		if h.ID == before(out[len(out)-1]) {
			out = append(out, h)
		}
	}
	return out
}

// joiners are the nodes of the fleet that are in no plan of a chain: they came
// later. A chain whose stages do not reach its whole fleet has none, because
// nothing says that it should reach more. With retry, nodes are joiners too
// that failed to apply their order or had it taken back: a person who starts a
// rollout again wants that, a periodic job would never stop. Who was skipped
// stays skipped. Joiners are, too, those who had a newer order that a restore of Consul
// took away, once the epoch was raised; and who was unreachable and got no order, as in a
// rollout that reached nobody, once the agent is up.
//
// An unreachable node whose order stands is none: its agent carries that out by itself.
// It is among those that the fleet still lacks.
func (r *Runner) joiners(ctx context.Context, hy *history, chain []*orchestrator.Header, fleet []orchestrator.Node, retry bool) ([]orchestrator.Node, *lacking, map[string]api.KVPairs, error) {
	plans, err := r.plans(ctx, chain)
	if err != nil {
		return nil, nil, nil, err
	}
	look, planned := r.look(), map[string]bool{}
	for _, p := range plans {
		if p.Ends[len(p.Ends)-1] < len(p.Nodes) {
			lack, err := r.lacking(ctx, look, chain, plans, fleet, retry)
			return nil, lack, look.answers, err
		}
		for _, n := range p.Nodes {
			planned[n] = true
		}
		for _, s := range p.Before {
			planned[s.Node] = true
		}
	}
	if retry {
		for _, c := range plans[0].Spec.Configs {
			if err := r.forgetUnserved(ctx, c.Name, chain, plans, planned); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	if err := r.forgetFormer(ctx, look, plans, chain, retry, planned); err != nil {
		return nil, nil, nil, err
	}
	lost, err := r.ahead(ctx, &plans[0].Spec, hy.heads, look.answers)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, name := range lost {
		delete(planned, name)
	}
	lack, err := r.lacking(ctx, look, chain, plans, fleet, retry)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, name := range lack.back {
		delete(planned, name)
	}
	late := slices.DeleteFunc(slices.Clone(fleet), func(n orchestrator.Node) bool { return planned[n.Name] })
	match, err := selector.Of(&plans[0].Spec)
	if err != nil {
		return nil, nil, nil, err
	}
	list, err := orchestrator.Reached(&plans[0].Spec, late, orchestrator.Selecting(match))
	return list, lack, look.answers, err
}

// forgetUnserved takes those nodes out of planned whose order stands and was
// given by one of the chain, but was not applied or is one to go back.
func (r *Runner) forgetUnserved(ctx context.Context, config string, chain []*orchestrator.Header, plans []*orchestrator.Plan, planned map[string]bool) error {
	ids := map[string]bool{}
	for _, h := range chain {
		ids[h.ID] = true
	}
	// Those of which a plan only tells came after the rollout that they follow.
	told, root := map[string]bool{}, chain[len(chain)-1]
	for _, p := range plans {
		for _, s := range p.Before {
			told[s.Node] = true
		}
	}
	ours := func(name string, d *records.Desired) bool {
		return ids[d.Rollout] || told[name] && (orchestrator.Order{Epoch: root.Epoch, Token: root.Token, Seq: math.MaxUint64}).Less(d.Order)
	}
	desired, err := r.scan(ctx, "read the orders", r.keys.DesiredAll(config), every)
	if err != nil {
		return err
	}
	given := map[string]orchestrator.Order{}
	for _, p := range desired {
		var d records.Desired
		if err := records.Decode(p.Key, p.Value, &d); err != nil {
			return err
		}
		switch name := keys.LastSegment(p.Key); {
		case !ours(name, &d):
		case d.Action == records.ActionRestore:
			delete(planned, name)
		default:
			given[name] = d.Order
		}
	}
	actual, err := r.scan(ctx, readAnswers, r.keys.ActualAll(config), every)
	if err != nil {
		return err
	}
	for _, p := range actual {
		rep, _, ok := r.answer(p, "", 0, 0, previous{})
		name := keys.LastSegment(p.Key)
		if ok && (rep.Result == orchestrator.ResultFailed || rep.Result == orchestrator.ResultRefused) && rep.Order == given[name] && !rep.Order.IsZero() {
			delete(planned, name)
		}
	}
	return nil
}

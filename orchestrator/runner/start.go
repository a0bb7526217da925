package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Start runs a rollout to its end: it resumes the unfinished one of the same
// name and content, or begins a new one, or serves those nodes that a finished
// one of the same content has not reached. It waits for the locks as the spec
// says.
//
// The error wraps locksmith's: a *RefusedError where a lock was not given,
// ErrLost or ErrRequested where it was lost or asked for while working. What
// was done until then stands, and the next Start goes on.
func (r *Runner) Start(ctx context.Context, in Input) (*Outcome, error) {
	return r.run(ctx, in, untilEnd)
}

// Tick does what can be done now and returns. Where another process holds the
// lock it does nothing, and says so in Outcome.Busy.
func (r *Runner) Tick(ctx context.Context, in Input) (*Outcome, error) {
	return r.run(ctx, in, untilIdle)
}

// job is what a Start has to do.
type job struct {
	plan   *orchestrator.Plan
	resume *orchestrator.Header // nil: new
	// older are unfinished rollouts of the same configs, whose place this one
	// takes.
	older []*orchestrator.Header
	note  string
}

func (r *Runner) run(ctx context.Context, in Input, wait until) (*Outcome, error) {
	// Looked at before the lock as well, so that a rollout with nothing to do
	// takes no lock. The decision that counts is made under the lock.
	j, done, err := r.decide(ctx, &in)
	if err != nil || done != nil {
		return done, err
	}
	h, out, err := r.acquire(ctx, &in.Spec, j.plan.ID, wait)
	if h == nil {
		return out, err
	}
	defer func() {
		if rerr := release(ctx, h); rerr != nil && err == nil && !Lost(rerr) {
			r.log.Warn("releasing the locks", "error", rerr)
		}
	}()
	id := j.plan.ID
	if j, done, err = r.decide(ctx, &in); err != nil || done != nil {
		return done, err
	}
	if j.resume == nil {
		// The holder record names the id made before the lock was taken.
		j.plan.ID = id
	}
	out, err = r.drive(ctx, h, &in, j, wait)
	return out, err
}

// acquire takes the locks of all configs in one transaction. A nil Hold with a
// nil error: somebody else is at work, and a tick leaves it to them.
func (r *Runner) acquire(ctx context.Context, spec *orchestrator.Spec, id string, wait until) (Hold, *Outcome, error) {
	req := locksmith.Request{
		Operation: "rollout " + spec.Name, RolloutID: id, AllocID: r.alloc,
		TTL: spec.Lock.TTL, Wait: spec.Lock.Wait, Try: wait != untilEnd, Notify: r.notify,
		// Every participant checks the order: the agents' fence.
		Quiesce: 0,
	}
	for _, c := range spec.Configs {
		req.Names = append(req.Names, c.Name)
	}
	h, err := r.locks.Acquire(ctx, req)
	if err == nil {
		return h, nil, nil
	}
	if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok && wait == untilIdle {
		return nil, &Outcome{ID: id, Busy: ref.Status, Note: fmt.Sprintf("lock %s is %s: left to its holder", ref.Status.Name, ref.Status.State)}, nil
	}
	return nil, nil, err
}

// decide finds out which rollout the input is. A non-nil Outcome means that
// there is nothing to do.
func (r *Runner) decide(ctx context.Context, in *Input) (*job, *Outcome, error) {
	fleet, err := in.Fleet.Nodes(ctx, r.consul)
	if err != nil {
		return nil, nil, err
	}
	heads, err := r.Headers(ctx)
	if err != nil {
		return nil, nil, err
	}
	j := &job{}
	var last *orchestrator.Header // the newest of this name and content that has ended
	for _, h := range heads {
		same := h.Name == in.Spec.Name && h.Hash == in.Spec.Hash
		switch {
		case h.FinishedAt == nil && same && j.resume == nil:
			j.resume = h
		case h.FinishedAt == nil && sharesConfig(h, &in.Spec):
			j.older = append(j.older, h)
		case same && last == nil && h.FinishedAt != nil:
			last = h
		}
	}
	now := time.Now().UTC()
	if j.resume != nil {
		j.note = "resumed"
		j.plan, err = r.plan(ctx, j.resume)
		return j, nil, err
	}
	id := newID(in.Spec.Name, now, rand.Text())
	if last != nil && last.State == orchestrator.Succeeded && newest(heads, &in.Spec, last) {
		joiners, err := r.joiners(ctx, in, fleet)
		if err != nil {
			return nil, nil, err
		}
		if len(joiners) == 0 {
			return nil, &Outcome{ID: last.ID, Header: *last, Converged: true, Note: "every node of the fleet has this revision: nothing to do"}, nil
		}
		j.note = fmt.Sprintf("%d nodes have not got the revision of %s", len(joiners), last.ID)
		j.plan, err = orchestrator.NewFollowUp(id, last.ID, in.Spec, joiners, now)
		return j, nil, err
	}
	j.plan, err = orchestrator.NewPlan(id, in.Spec, fleet, now)
	return j, nil, err
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
		if sharesConfig(h, spec) {
			return false
		}
	}
	return true
}

// joiners are the nodes of the fleet that were given another revision or none,
// or could not apply this one.
func (r *Runner) joiners(ctx context.Context, in *Input, fleet []orchestrator.Node) ([]orchestrator.Node, error) {
	missing := map[string]bool{}
	for _, c := range in.Spec.Configs {
		desired, err := r.consul.List(ctx, r.keys.DesiredAll(c.Name))
		if err != nil {
			return nil, err
		}
		given := map[string]orchestrator.Order{}
		for _, p := range desired {
			var d records.Desired
			if err := records.Decode(p.Key, p.Value, &d); err != nil {
				return nil, err
			}
			if d.SHA256 == c.SHA256 && d.Action != records.ActionRestore && d.Destination == c.Destination {
				given[keys.LastSegment(p.Key)] = d.Order
			}
		}
		actual, err := r.consul.List(ctx, r.keys.ActualAll(c.Name))
		if err != nil {
			return nil, err
		}
		for _, p := range actual {
			var a records.Actual
			if records.Decode(p.Key, p.Value, &a) == nil && a.Result == records.ResultFailed && a.Order == given[a.Node] {
				delete(given, a.Node)
			}
		}
		for _, n := range fleet {
			if _, ok := given[n.Name]; !ok {
				missing[n.Name] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(fleet), func(n orchestrator.Node) bool { return !missing[n.Name] }), nil
}

// drive makes the rollout's state, new or recovered, and runs it.
func (r *Runner) drive(ctx context.Context, h Hold, in *Input, j *job, wait until) (*Outcome, error) {
	if err := r.supersede(ctx, h, j); err != nil {
		return nil, err
	}
	d := &drive{r: r, h: h, plan: j.plan, wait: wait, prev: previous{}}
	if j.resume == nil {
		if err := r.writeContents(ctx, h, in); err != nil {
			return nil, err
		}
		d.state = orchestrator.NewState(j.plan)
		d.header = d.state.Header()
		d.header.Epoch, d.header.Token = h.Epoch(), h.Token()
		if err := r.writePlan(ctx, h, j.plan, &d.header); err != nil {
			return nil, err
		}
	} else {
		d.header = *j.resume
		given, reports, prev, err := r.given(ctx, j.plan)
		if err != nil {
			return nil, err
		}
		if d.state, err = orchestrator.Recover(j.plan, *j.resume, given, reports); err != nil {
			return nil, err
		}
		d.prev = prev
		// The contents may not all have been written when the last one died.
		if err := r.writeContents(ctx, h, in); err != nil {
			return nil, err
		}
	}
	d.chunks = d.header.PlanChunks
	err := d.run(ctx)
	out := &Outcome{ID: j.plan.ID, Header: d.present(), Converged: d.finished, Note: j.note}
	return out, err
}

// supersede ends unfinished rollouts of the same configs. This hold has their
// locks, so nobody drives them.
func (r *Runner) supersede(ctx context.Context, h Hold, j *job) error {
	for _, old := range j.older {
		if old.PlanChunks == 0 {
			continue
		}
		plan, err := r.plan(ctx, old)
		if err != nil {
			return err
		}
		given, reports, _, err := r.given(ctx, plan)
		if err != nil {
			return err
		}
		head := *old
		state, err := orchestrator.Recover(plan, head, given, reports)
		if err != nil {
			return err
		}
		state, effects := orchestrator.Step(state, orchestrator.Supersede{By: j.plan.ID}, time.Now().UTC())
		for _, e := range effects {
			if p, ok := e.(orchestrator.Persist); ok {
				head = p.Header
				head.PlanChunks = old.PlanChunks
				if err := r.writeHeader(ctx, h, &head); err != nil {
					return err
				}
			}
		}
		r.tell(Progress{Kind: orchestrator.TellStatus, Text: fmt.Sprintf("rollout %s (%s) is superseded", old.ID, state.Status()), Header: head})
	}
	return nil
}

package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Show reads how a rollout stands, with the counts as the nodes' answers give
// them now. It changes nothing.
func (r *Runner) Show(ctx context.Context, id string) (*orchestrator.Header, error) {
	h, err := r.header(ctx, id)
	if errors.Is(err, ErrNotFound) {
		w, qerr := r.Waits(ctx, id)
		switch {
		case qerr != nil:
			return nil, qerr
		case w != nil:
			return w.Header(), nil
		}
		h, err = r.header(ctx, id) // it may have begun just now
	}
	if err != nil {
		return nil, err
	}
	return r.live(ctx, h)
}

// PlanOf reads the plan of a rollout.
func (r *Runner) PlanOf(ctx context.Context, h *orchestrator.Header) (*orchestrator.Plan, error) {
	return r.plan(ctx, h)
}

// Waits returns what is known of a rollout that has not begun and waits for its
// turn, or nil if it does not.
func (r *Runner) Waits(ctx context.Context, id string) (*Waiting, error) {
	p, err := r.consul.Get(ctx, r.keys.Queued(id))
	if err != nil || p == nil {
		return nil, err
	}
	heads, err := r.Headers(ctx)
	if err != nil {
		return nil, err
	}
	list, err := r.Queue(ctx, heads)
	for _, w := range list {
		if w.ID == id {
			return w, err
		}
	}
	return nil, err
}

// live brings a header's counts up to date: they are persisted at decisions
// only.
func (r *Runner) live(ctx context.Context, h *orchestrator.Header) (*orchestrator.Header, error) {
	if h.FinishedAt != nil || h.PlanChunks == 0 {
		return h, nil
	}
	plan, err := r.plan(ctx, h)
	if err != nil {
		return nil, err
	}
	return r.liveOf(ctx, plan, h)
}

// liveOf is live by a plan that was read.
func (r *Runner) liveOf(ctx context.Context, plan *orchestrator.Plan, h *orchestrator.Header) (*orchestrator.Header, error) {
	st, err := r.standing(ctx, plan, false, 0)
	if err != nil {
		return nil, err
	}
	s, err := orchestrator.Recover(plan, *h, st.given, st.reports)
	if errors.Is(err, orchestrator.ErrDataLost) {
		// It is shown as it was written; whoever drives it says what is wrong.
		return h, nil
	}
	if err != nil {
		return nil, err
	}
	out := s.Header()
	out.PlanChunks, out.UpdatedAt = h.PlanChunks, h.UpdatedAt
	out.Answers, out.Events, out.Flying = h.Answers, h.Events, nil
	if len(h.Flying) > 0 {
		index := plan.Index()
		for _, f := range h.Flying {
			// Since it was written some have answered.
			if i, ok := index[f.Node]; ok && s.Flying(i) {
				out.Flying = append(out.Flying, f)
			}
		}
	}
	out.BegunBy, out.BegunWith = h.BegunBy, h.BegunWith
	return &out, nil
}

// Find returns the rollout that a person means: an id, or a name, of which the
// unfinished and else the newest one is meant. Empty means the only unfinished
// one, or else the newest of all.
func (r *Runner) Find(ctx context.Context, ref string) (string, error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return "", err
	}
	best := ""
	var open []string
	for _, h := range heads {
		if h.ID == ref {
			return h.ID, nil
		}
		if ref != "" && h.Name != ref {
			continue
		}
		if best == "" {
			best = h.ID
		}
		if h.FinishedAt == nil {
			open = append(open, h.ID)
		}
	}
	if len(open) == 0 {
		// One that has not begun is meant only where none is unfinished.
		list, err := r.queue(ctx)
		if err != nil {
			return "", err
		}
		for _, w := range list {
			if w.ID == ref {
				return w.ID, nil
			}
			if ref == "" || w.Name == ref {
				open = append(open, w.ID)
			}
		}
	}
	switch {
	case len(open) == 1:
		return open[0], nil
	case len(open) > 1:
		return "", fmt.Errorf("%d rollouts are unfinished: name one of %s", len(open), strings.Join(open, ", "))
	case best != "":
		return best, nil
	case ref != "":
		return "", fmt.Errorf("rollout %q: %w; `%s` shows them", ref, ErrNotFound, r.flags.Looking("rollout list"))
	}
	return "", fmt.Errorf("%w: there is none yet", ErrNotFound)
}

// Preview is what a rollout would do.
type Preview struct {
	Plan *orchestrator.Plan
	// Resumes is the unfinished rollout that would go on; empty for a new one.
	Resumes string
	// Supersedes are unfinished rollouts whose place it would take.
	Supersedes []string
	// Unfinished are those.
	Unfinished []*orchestrator.Header
	// WaitsFor is the rollout that it would wait for, as its spec says conflict =
	// "queue", and WaitsForState that one's state; Waits says so for people.
	WaitsFor      string
	WaitsForState orchestrator.Status
	Waits         string
	// NothingToDo: a start would begin nothing. Note says how many nodes have it.
	NothingToDo bool
	Note        string
	// Now are the contents, by config, that most of the nodes have now which have
	// another one than the plan's; where there are no such nodes, the plan's. Nil
	// where there is none or it is not known.
	Now map[string][]byte
	// Revisions counts, for each config, how many nodes of the plan have which
	// revision; "" is none.
	Revisions map[string]map[string]int
	// Drifted are, by config, the nodes of the plan where somebody else changed the
	// file since the order that brought its revision.
	Drifted map[string][]Drifted
	// Unknown are, by config and revision, the nodes with a content that Consul does
	// not have: no rollout on record brought it.
	Unknown map[string]map[string][]string
	// Renderings are what the configs with templates come to, by config, those
	// of most nodes first.
	Renderings map[string][]Rendering
	// Behind says what nodes tell of orders that Consul has lost; "" for nothing.
	Behind string
}

// Preview says what Start would do. It changes nothing.
func (r *Runner) Preview(ctx context.Context, in Input) (*Preview, error) {
	j, done, err := r.decide(ctx, &in, untilEnd, nil)
	if err != nil {
		return nil, err
	}
	p := &Preview{Now: map[string][]byte{}, Revisions: map[string]map[string]int{}, Drifted: map[string][]Drifted{}, Unknown: map[string]map[string][]string{}}
	if done != nil {
		p.NothingToDo, p.Note = true, done.Note
		fleet, err := in.Fleet.Nodes(ctx, r.consul)
		if err != nil {
			return nil, err
		}
		j = &job{now: time.Now().UTC()}
		if err := in.newPlan(j, done.ID, fleet); err != nil {
			return nil, err
		}
		p.Plan = j.plan
	} else {
		p.Plan, p.Note = j.plan, j.note
		if j.resume != nil {
			p.Resumes = j.resume.ID
		}
		if err := r.foreseeOthers(ctx, &in, j, p); err != nil {
			return nil, err
		}
	}
	if p.Resumes == "" && !p.NothingToDo {
		same, err := r.unchangedNow(ctx, p.Plan)
		if err != nil {
			return nil, err
		}
		p.Plan.SetUnchanged(same)
	}
	if p.Behind, err = r.behind(ctx, p.Plan); err != nil {
		return nil, err
	}
	if p.Renderings, err = r.renderings(ctx, p.Plan, j.contents); err != nil {
		return nil, err
	}
	return p, r.compare(ctx, p, in.Contents)
}

// foreseeOthers says what becomes of the rollouts that a new one finds unfinished, or
// of the new one.
func (r *Runner) foreseeOthers(ctx context.Context, in *Input, j *job, p *Preview) error {
	if in.Spec.Conflict != orchestrator.ConflictQueue || j.resume != nil {
		for _, o := range j.older {
			p.Supersedes, p.Unfinished = append(p.Supersedes, o.ID), append(p.Unfinished, o)
		}
		return nil
	}
	b, err := r.before(ctx, in, nil, j)
	if err != nil || b == nil {
		return err
	}
	p.WaitsFor, p.WaitsForState = b.id, orchestrator.Waiting
	if b.head != nil {
		p.WaitsForState = b.head.State
	}
	p.Waits, err = r.waitText(ctx, b, &in.Spec)
	return err
}

// compare finds what the plan's nodes have now. contents are of the plan's configs that
// are no templates.
func (r *Runner) compare(ctx context.Context, p *Preview, contents map[string][]byte) error {
	index := p.Plan.Index()
	for ci, c := range p.Plan.Spec.Configs {
		list, err := r.scan(ctx, readAnswers, r.keys.ActualAll(c.Name), every)
		if err != nil {
			return err
		}
		count, sums := map[string]int{}, map[string]string{}
		known, have := 0, make([]string, len(p.Plan.Nodes))
		for _, kv := range list {
			var a records.Actual
			node, ours := index[keys.LastSegment(kv.Key)]
			if !ours || records.Decode(kv.Key, kv.Value, &a) != nil {
				continue
			}
			known++
			count[a.Revision]++
			sums[a.Revision], have[node] = a.SHA256, a.SHA256
		}
		count[""] += len(p.Plan.Nodes) - known
		if count[""] == 0 {
			delete(count, "")
		}
		p.Revisions[c.Name] = count
		p.Drifted[c.Name] = driftedIn(c.Name, slices.DeleteFunc(slices.Clone(list), func(kv *api.KVPair) bool {
			_, ours := index[keys.LastSegment(kv.Key)]
			return !ours
		}))
		if p.Unknown[c.Name], err = r.unknownContents(ctx, p.Plan, ci, have, sums); err != nil {
			return err
		}
		if err := r.nowOf(ctx, p.Plan, ci, p.Renderings[c.Name], have); err != nil {
			return err
		}
		// Of a template any content may be one of the plan's.
		most, template := "", len(p.Renderings[c.Name]) > 0
		for rev, n := range count {
			if rev != "" && (rev != c.Revision || template) && (most == "" || n > count[most] || n == count[most] && rev < most) {
				most = rev
			}
		}
		if most == "" && count[""] == 0 {
			most = c.Revision
		}
		if most == "" || sums[most] == "" {
			continue
		}
		content := contents[c.Name]
		if template || sums[most] != c.SHA256 || content == nil {
			if content, err = r.content(ctx, c.Name, sums[most]); err != nil {
				return err
			}
		}
		if content != nil {
			p.Now[c.Name] = content
		}
	}
	return nil
}

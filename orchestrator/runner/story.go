package runner

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Story is all that is known of one rollout.
type Story struct {
	Header *orchestrator.Header
	// Plan is nil where it is not there (any more), or cannot be read.
	Plan *orchestrator.Plan
	// Classes says where each node of the plan stands, by index.
	Classes []orchestrator.Class
	Events  []records.RolloutEvent
	// Failures are nodes that failed or could not be reached, in the order of
	// the plan; at most failuresKept.
	Failures []NodeFailure
	// MoreFailures is how many are left out of Failures.
	MoreFailures int
	// Breaks are those of the rollout's locks in its time, and of holds that
	// drove it, in the order in which they were begun.
	Breaks []records.Break
}

// NodeFailure is what is known of a node that did not apply its order.
type NodeFailure struct {
	Node  string
	Stage string
	Class orchestrator.Class
	// Why is in the node's own words, its output included: foreign text.
	Why string
	At  time.Time
}

// failuresKept bounds the failures of a story.
const failuresKept = 1000

// Story reads all that is known of a rollout. It changes nothing.
func (r *Runner) Story(ctx context.Context, id string) (*Story, error) {
	h, err := r.header(ctx, id)
	if err != nil {
		return nil, err
	}
	s := &Story{Header: h}
	if h.PlanChunks > 0 && !h.PlanDropped {
		if s.Plan, err = r.plan(ctx, h); err != nil {
			if !unreadable(err) {
				return nil, err
			}
			r.log.Warn("the plan cannot be read", "rollout", id, "error", err)
		}
	}
	if s.Plan != nil {
		if err := r.classes(ctx, s); err != nil {
			return nil, err
		}
	}
	if s.Events, err = r.Events(ctx, id, 0); err != nil {
		return nil, err
	}
	if s.Breaks, err = r.breaks(ctx, h); err != nil {
		return nil, err
	}
	return s, r.failures(ctx, s)
}

// classes says where each node stands: of a rollout that has ended by its
// header, of another by the answers as of now.
func (r *Runner) classes(ctx context.Context, s *Story) error {
	s.Classes = make([]orchestrator.Class, len(s.Plan.Nodes))
	if h := s.Header; h.FinishedAt != nil {
		rest := orchestrator.ClassApplied
		if h.Counts[rest] == 0 {
			// It may have been ended unread, with its nodes where they were.
			rest = orchestrator.ClassSkipped
		}
		for i := range s.Classes {
			s.Classes[i] = rest
		}
		for class, set := range map[orchestrator.Class]orchestrator.IndexSet{
			orchestrator.ClassFailed: h.Failed, orchestrator.ClassUnreachable: h.Unreachable, orchestrator.ClassSkipped: h.Skipped,
			orchestrator.ClassRolledBack: h.RolledBack, orchestrator.ClassSuperseded: h.SupersededNodes,
		} {
			for _, i := range set {
				if i >= 0 && i < len(s.Classes) {
					s.Classes[i] = class
				}
			}
		}
		return nil
	}
	st, err := r.standing(ctx, s.Plan, false, 0)
	if err != nil {
		return err
	}
	state, err := orchestrator.Recover(s.Plan, *s.Header, st.given, st.reports)
	if errors.Is(err, orchestrator.ErrDataLost) {
		return nil // whoever drives it says so; all are shown as pending
	}
	if err != nil {
		return err
	}
	for i := range s.Classes {
		s.Classes[i] = state.Class(i)
	}
	s.Header.Counts, s.Header.InFlight = state.Counts(), state.InFlight()
	return nil
}

// failures finds what the nodes that failed have said: in their own answers
// while those are still about this rollout, else in the log.
func (r *Runner) failures(ctx context.Context, s *Story) error {
	said := map[string]NodeFailure{}
	for _, p := range s.Header.Problems {
		said[p.Node] = NodeFailure{Why: p.Why, At: p.At}
	}
	for _, e := range s.Events {
		if e.Kind == records.EventNode && e.Node != "" {
			why := e.Text
			for _, class := range []orchestrator.Class{orchestrator.ClassFailed, orchestrator.ClassUnreachable} {
				// The log's lines begin with the class, which is told beside it here.
				why = strings.TrimPrefix(why, class.String()+": ")
			}
			said[e.Node] = NodeFailure{Why: why, At: e.At, Stage: e.Stage}
		}
	}
	var nodes []int
	for i, c := range s.Classes {
		if c != orchestrator.ClassFailed && c != orchestrator.ClassUnreachable {
			continue
		}
		if len(nodes) == failuresKept {
			s.MoreFailures++
			continue
		}
		nodes = append(nodes, i)
	}
	var ks []string
	for _, i := range nodes {
		if s.Classes[i] == orchestrator.ClassFailed {
			for _, c := range s.Plan.Spec.Configs {
				ks = append(ks, r.keys.Actual(c.Name, s.Plan.Nodes[i]))
			}
		}
	}
	pairs, err := r.getMany(ctx, "read the nodes' answers", ks)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		var a records.Actual
		if p.ModifyIndex == 0 || records.Decode(p.Key, p.Value, &a) != nil || a.Rollout != s.Header.ID || a.Result != records.ResultFailed {
			continue
		}
		node := keys.LastSegment(p.Key)
		f := said[node]
		f.Why = why(&a)
		said[node] = f
	}
	for _, i := range nodes {
		f := said[s.Plan.Nodes[i]]
		f.Node, f.Class = s.Plan.Nodes[i], s.Classes[i]
		if st := s.Plan.StageOf(i); f.Stage == "" && st >= 0 {
			f.Stage = s.Plan.Spec.Stages[st].Name
		}
		s.Failures = append(s.Failures, f)
	}
	return nil
}

// breaks reads the breaks of a rollout's locks that are about it: of holds that
// drove it, or in its time.
func (r *Runner) breaks(ctx context.Context, h *orchestrator.Header) ([]records.Break, error) {
	var out []records.Break
	for _, c := range h.Configs {
		list, err := r.consul.List(ctx, r.keys.Breaks(c.Name))
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			var b records.Break
			if err := records.Decode(p.Key, p.Value, &b); err != nil {
				r.log.Warn("a break's record cannot be read", "lock", c.Name, "rollout", h.ID, "error", err)
				continue
			}
			ours := b.Holder != nil && b.Holder.RolloutID == h.ID
			during := !b.StartedAt.Before(h.CreatedAt) && (h.FinishedAt == nil || b.StartedAt.Before(*h.FinishedAt))
			if ours || during {
				out = append(out, b)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b records.Break) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Token, b.Token), cmp.Compare(a.Attempt, b.Attempt))
	})
	return out, nil
}

// StageTime is when a stage was at work, as far as the log tells.
type StageTime struct {
	Began, Baked, Ended time.Time
}

// StageTimes finds in a rollout's log when its stages were at work.
func StageTimes(h *orchestrator.Header, events []records.RolloutEvent) []StageTime {
	out := make([]StageTime, len(h.Stages))
	at := -1
	for _, e := range events {
		i := slices.IndexFunc(h.Stages, func(s orchestrator.HeaderStage) bool { return s.Name == e.Stage })
		if i < 0 {
			continue
		}
		if i > at {
			if at >= 0 {
				out[at].Ended = e.At
			}
			at, out[i].Began = i, e.At
		}
		if i == at && e.State == orchestrator.Baking && out[i].Baked.IsZero() {
			out[i].Baked = e.At
		}
	}
	if at >= 0 && h.FinishedAt != nil {
		out[at].Ended = *h.FinishedAt
	}
	return out
}

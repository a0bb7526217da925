package ui

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

// detailPatience bounds the reading of one detail.
const detailPatience = 30 * time.Second

// lockDetail is one lock: what `aimlock lock explain -json` says, and its rules.
type lockDetail struct {
	lockView
	Evidence []records.Evidence `json:"evidence"`
	// Decisive is how many of Evidence the deciding rule read, from the first.
	Decisive int         `json:"decisive"`
	Rules    []ruleView  `json:"rules"`
	Cause    string      `json:"cause"`
	Timeline []eventView `json:"timeline"`
	// Permitted is why a HOT lock is not broken now; empty: it may be, or it is
	// not HOT.
	Refused string `json:"refused,omitempty"`
	// Rollout is the one that its holder names, or its last holder did.
	Rollout string `json:"rollout,omitempty"`
}

type ruleView struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	When  string `json:"when"`
	Value string `json:"value"`
	Why   string `json:"why,omitempty"`
}

// eventView is an event, and the words that the command line has for it.
type eventView struct {
	locksmith.Event
	Text string `json:"text"`
}

// shownEvents bounds a story on the page; the command line has all of it.
const shownEvents = 200

// lock finds what is to be said of one lock, if that is another state than told.
func (s *Server) lockDetail(ctx context.Context, name, told string) (string, any, error) {
	row, ready := s.board.row(name)
	if !ready {
		return told, nil, nil
	}
	state := "free"
	if row != nil {
		state = fmt.Sprint(row.rev, row.st.Token != nil, row.st.State)
	}
	if state == told {
		return told, nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, detailPatience)
	defer cancel()
	var v *locksmith.Verdict
	if row != nil {
		v = row.v
	}
	c := s.cfg.Locks
	if v == nil {
		var err error
		if v, err = c.NewObserver(name, nil).Observe(ctx); err != nil {
			return "", nil, err
		}
	}
	st := c.Status(v)
	out := lockDetail{Evidence: append([]records.Evidence{}, st.Evidence...), Decisive: st.Decisive, Rules: []ruleView{}, Timeline: []eventView{}}
	st.Evidence = nil
	if rec := v.Snapshot.Holder; rec != nil {
		out.Rollout = rec.RolloutID
	}
	var permit *locksmith.Permit
	if v.State == locksmith.Hot {
		var err error
		if permit, err = c.Permit(ctx, v); err != nil {
			return "", nil, err
		}
		if !permit.OK {
			out.Refused = permit.Why
		}
	}
	st.Next = v.Named(c.Next(v, permit))
	out.lockView = lockView{Status: st, Gravity: locksmith.Gravity(st.State), Ago: max(0, time.Since(v.At).Seconds())}
	for _, r := range v.Judgement.Results {
		view := ruleView{Kind: r.Rule.Kind(), Name: r.Rule.Name, When: r.Rule.When, Value: triWord(r.Value)}
		if r.Value == policies.Unknown {
			view.Why = r.Why
		}
		out.Rules = append(out.Rules, view)
	}
	story, err := c.Story(ctx, v, "", nil)
	if err != nil {
		return "", nil, err
	}
	out.Cause = story.Cause
	for _, e := range story.Events[max(0, len(story.Events)-shownEvents):] {
		out.Timeline = append(out.Timeline, eventView{e, e.Text()})
	}
	return state, out, nil
}

func triWord(t policies.Tri) string {
	switch t {
	case policies.True:
		return "holds"
	case policies.False:
		return "no"
	}
	return "unknown"
}

// tale is one rollout's story, which all who look at it share.
type tale struct {
	mu   sync.Mutex
	rev  uint64
	view *rolloutDetail
	// next is before when it is not read again: reading takes a tenth of the time.
	next time.Time
}

// rolloutDetail is one rollout with its nodes.
type rolloutDetail struct {
	View   any         `json:"view"`
	Stages []stageView `json:"stages"`
	// Nodes are their names, and Classes a letter for each; both are empty where
	// the plan is not kept any more.
	Nodes    []string               `json:"nodes"`
	Classes  string                 `json:"classes"`
	Failures []failureView          `json:"failures"`
	More     int                    `json:"failures_more"`
	Events   []records.RolloutEvent `json:"events"`
	Breaks   []breakView            `json:"breaks"`
}

type stageView struct {
	Name string `json:"name"`
	// From and End are indexes of Nodes.
	From int `json:"from"`
	End  int `json:"end"`
}

type failureView struct {
	Node  string    `json:"node"`
	Stage string    `json:"stage"`
	Class string    `json:"class"`
	Why   string    `json:"why"`
	At    time.Time `json:"at,omitzero"`
}

type breakView struct {
	Lock    string    `json:"lock"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	Rule    string    `json:"rule"`
	Reason  string    `json:"reason"`
	Outcome string    `json:"outcome"`
}

// letters are the classes, one for each.
var letters = map[orchestrator.Class]byte{
	orchestrator.ClassPending: 'p', orchestrator.ClassApplied: 'a', orchestrator.ClassFailed: 'f', orchestrator.ClassUnreachable: 'u',
	orchestrator.ClassSkipped: 's', orchestrator.ClassRolledBack: 'r', orchestrator.ClassSuperseded: 'x',
}

// shownFailures bounds the failures that are shown with their output: the others
// are found in the grid, and in the report.
const shownFailures = 50

// shownLog bounds a rollout's log on the page.
const shownLog = 200

func (s *Server) rolloutDetail(ctx context.Context, id, told string) (string, any, error) {
	rev, listed := s.board.rolloutRev(id)
	if !listed {
		return told, nil, nil
	}
	if state := fmt.Sprint(rev); state == told {
		return told, nil, nil
	}
	t := s.board.tale(id)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.view == nil || t.rev != rev {
		if err := wait(ctx, time.Until(t.next)); err != nil {
			return "", nil, err
		}
		rctx, cancel := context.WithTimeout(ctx, detailPatience)
		defer cancel()
		begun := time.Now()
		story, err := s.cfg.Rollouts.Story(rctx, id)
		if errors.Is(err, runner.ErrNotFound) {
			return "", nil, fmt.Errorf("rollout %s has not begun, or is not kept any more", id)
		}
		if err != nil {
			return "", nil, err
		}
		t.rev, t.view = rev, s.viewRollout(story)
		t.next = time.Now().Add(max(time.Second, 10*time.Since(begun)))
	}
	return fmt.Sprint(t.rev), t.view, nil
}

// tale finds or makes the place of a rollout's story.
func (b *board) tale(id string) *tale {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.stories[id]
	if t == nil {
		t = &tale{}
		b.stories[id] = t
	}
	return t
}

func (s *Server) viewRollout(story *runner.Story) *rolloutDetail {
	h := story.Header
	out := &rolloutDetail{
		View: s.cfg.Rollout(h), Stages: []stageView{}, Nodes: []string{}, Failures: []failureView{}, More: story.MoreFailures,
		Events: []records.RolloutEvent{}, Breaks: []breakView{},
	}
	for _, st := range h.Stages {
		out.Stages = append(out.Stages, stageView{st.Name, st.From, st.End})
	}
	if story.Plan != nil {
		out.Nodes = append(out.Nodes, story.Plan.Nodes...)
		classes := make([]byte, len(story.Classes))
		for i, c := range story.Classes {
			classes[i] = letters[c]
		}
		out.Classes = string(classes)
	}
	for i, f := range story.Failures {
		if i == shownFailures {
			out.More += len(story.Failures) - i
			break
		}
		out.Failures = append(out.Failures, failureView{f.Node, f.Stage, f.Class.String(), f.Why, f.At})
	}
	for _, e := range slices.Backward(story.Events) {
		if e.Text != "" && len(out.Events) < shownLog {
			out.Events = append(out.Events, e)
		}
	}
	for _, b := range story.Breaks {
		out.Breaks = append(out.Breaks, breakView{b.Lock, b.StartedAt, b.By, b.Rule, b.Reason, records.OutcomeText(b.Outcome)})
	}
	return out
}

// policiesDetail is what this process judges by, and what is applied.
type policiesDetail struct {
	Hash    string       `json:"hash"`
	Shipped bool         `json:"shipped"`
	Files   []sourceView `json:"files"`
	// Active is null where nothing was ever applied.
	Active    *records.PolicyVersion   `json:"active"`
	Why       string                   `json:"why,omitempty"`
	Suspended *records.PolicySuspended `json:"suspended"`
}

type sourceView struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func (s *Server) policiesDetail(ctx context.Context, _, told string) (string, any, error) {
	ctx, cancel := context.WithTimeout(ctx, detailPatience)
	defer cancel()
	set := s.cfg.Policies
	out := policiesDetail{Hash: set.Hash, Shipped: set.Builtin, Files: []sourceView{}}
	for _, name := range slices.Sorted(maps.Keys(set.Files)) {
		out.Files = append(out.Files, sourceView{name, string(set.Files[name].Bytes)})
	}
	var err error
	if out.Active, out.Why, err = s.cfg.Locks.ActivePolicies(ctx); err != nil {
		return "", nil, err
	}
	if out.Suspended, err = s.cfg.Locks.Suspended(ctx); err != nil {
		return "", nil, err
	}
	return told, out, nil
}

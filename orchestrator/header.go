package orchestrator

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// HeaderVersion is the version of the header's encoding.
const HeaderVersion = 1

// Header is what is persisted of a rollout besides its plan, at rollouts/<id>:
// what cannot be read back from the orders that were given and answered. Only
// the holder of the rollout's locks writes it. It stays small whatever the
// fleet's size: nodes are in it as sets of indexes.
type Header struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Name    string `json:"name"`
	// Hash of the spec and its contents: a rollout is resumed by the same.
	Hash  string `json:"hash"`
	State Status `json:"state"`
	// Stage is the name of the present or last stage.
	Stage      string         `json:"stage"`
	StageIndex int            `json:"stage_index"`
	Stages     []HeaderStage  `json:"stages"`
	Configs    []HeaderConfig `json:"configs"`
	Counts     Counts         `json:"counts"`
	Total      int            `json:"total"`
	InFlight   int            `json:"in_flight"`
	// Epoch and Token of the last hold that drove it.
	Epoch uint64 `json:"epoch"`
	Token uint64 `json:"token"`
	// PlanChunks is how many chunks the plan has; 0: it is not planned yet.
	PlanChunks int `json:"plan_chunks"`

	CreatedAt   time.Time  `json:"created_at"`
	StartedAt   *time.Time `json:"started_at"`
	FinishedAt  *time.Time `json:"finished_at"`
	UpdatedAt   time.Time  `json:"updated_at"`
	BakingSince *time.Time `json:"baking_since,omitempty"`
	// Baked is a lower bound of how long the present stage has baked, in
	// nanoseconds: what the clocks of those who drove it have counted. It, and
	// not BakingSince, which is for people, ends a bake.
	Baked time.Duration `json:"baked,omitempty"`
	// BakeMarks are for the runner: by host and boot, the reading of that
	// host's own clock at which the present bake would have begun, so that time
	// counts that passed there while nobody held the lock.
	BakeMarks map[string]float64 `json:"bake_marks,omitempty"`
	Promoted  bool               `json:"promoted,omitempty"`
	Paused    *PauseInfo         `json:"paused,omitempty"`
	// Pauses is how often the rollout was paused until now; while it is, the number
	// of this pause, which an order may name as the one that it is about.
	Pauses uint64 `json:"pauses,omitempty"`
	// Reason says why the state is what it is.
	Reason string `json:"reason,omitempty"`

	// Confirmed is a lower bound of the nodes whose order stands in Consul.
	// Where Consul holds fewer, it has lost data.
	Confirmed int `json:"confirmed"`
	// The exceptional nodes, by index in the plan.
	Failed      IndexSet `json:"failed"`
	Unreachable IndexSet `json:"unreachable"`
	Skipped     IndexSet `json:"skipped"`
	Budget      Budget   `json:"budget"`
	// Retrying is how many nodes have failed and are tried again.
	Retrying int `json:"retrying,omitempty"`
	// Elapsed is how much of the spec's Deadline is used as of UpdatedAt.
	Elapsed time.Duration `json:"elapsed,omitempty"`
	// ElapsedMarks are to Elapsed what BakeMarks are to Baked.
	ElapsedMarks map[string]float64 `json:"elapsed_marks,omitempty"`
	// RestoreFailed is how many nodes could not be rolled back.
	RestoreFailed int `json:"restore_failed,omitempty"`
	// Command is the last operator's command that was taken.
	Command *CommandSeen `json:"command,omitempty"`
	// Commands are the last ones taken, the newest last, so that of several
	// operators each finds what became of his own.
	Commands []CommandSeen `json:"commands,omitempty"`
	// Gates are those of the present stage, if they are asked or were, and the
	// last ones of the stages before it.
	Gates []GateStatus `json:"gates,omitempty"`
	// Problems are the last failures, for people.
	Problems []Problem `json:"problems,omitempty"`
	Follows  string    `json:"follows,omitempty"`
	// Root is that of the plan: what stands between it and this one need not be
	// read.
	Root         string `json:"root,omitempty"`
	SupersededBy string `json:"superseded_by,omitempty"`
	// BegunBy is who began it; empty where it is not known.
	BegunBy string `json:"begun_by,omitempty"`
	// BegunWith is the file of its spec, on the machine where it was begun.
	BegunWith string `json:"begun_with,omitempty"`
	// Conflict is what its spec says about unfinished rollouts of its configs.
	Conflict string `json:"conflict,omitempty"`
	// QueuedAt is the Raft index at which a rollout joined the queue that was
	// ended there: it never began, and has no Token to be sorted by.
	QueuedAt uint64 `json:"queued_at,omitempty"`
	// Traceparent is the span of the process that began it, as W3C's Trace Context
	// writes it: whoever goes on with it goes on with its trace. Empty: it is not
	// traced.
	Traceparent string `json:"traceparent,omitempty"`
	// PlanDropped: the plan's chunks were deleted, long after the end.
	PlanDropped bool `json:"plan_dropped,omitempty"`

	// Of a rollout that has ended: the nodes that neither the sets above nor
	// these name have applied it.
	RolledBack      IndexSet `json:"rolled_back,omitempty"`
	SupersededNodes IndexSet `json:"superseded_nodes,omitempty"`

	// The rest is filled in by who drives the rollout, for people.

	// Flying are those in flight for longest, at most FlyingShown.
	Flying []Flight `json:"flying,omitempty"`
	// Answers tells how long nodes took.
	Answers *Answers `json:"answers,omitempty"`
	// Events is the number of the last event in the rollout's log.
	Events uint64 `json:"events,omitempty"`
}

// FlyingShown bounds the nodes in flight that a header names.
const FlyingShown = 20

// HeaderStage is one stage of a header: nodes [From, End) of the plan.
type HeaderStage struct {
	Name string `json:"name"`
	From int    `json:"from"`
	End  int    `json:"end"`
	// Done is how many of them had their turn and stand by it: those applied,
	// failed and unreachable. Who was skipped had none, and who went back stands
	// where it was.
	Done int `json:"done"`
	// Counts are its nodes by class.
	Counts Counts `json:"counts"`
}

// Left is how many of its nodes are still to have their turn.
func (hs *HeaderStage) Left() int { return max(0, hs.End-hs.From-hs.Done-hs.Counts[ClassSkipped]) }

// HeaderConfig names a config and what becomes of it.
type HeaderConfig struct {
	Name        string `json:"name"`
	Revision    string `json:"revision"`
	SHA256      string `json:"sha256"`
	Destination string `json:"destination"`
	// Renderings is how many contents a template came to; Revision and SHA256
	// are those of the content that most nodes get.
	Renderings int `json:"renderings,omitempty"`
}

// Cause is what paused a rollout.
type Cause string

// Causes.
const (
	CauseOperator Cause = "operator"
	CauseFailure  Cause = "failure"
	CauseGate     Cause = "gate"
	// CausePromotion: the stage is done, and an operator is to promote it.
	CausePromotion Cause = "promotion"
	// CauseDeadline: the rollout's deadline has passed.
	CauseDeadline Cause = "deadline"
)

// Way is the operator's command that lets a rollout go on which is paused for
// this cause.
func (c Cause) Way() Verb {
	if c == CausePromotion {
		return Promote
	}
	return Resume
}

// PromoteWords is the command, without the rollout's name, that promotes one
// stage and no other, as a shell takes it.
func PromoteWords(stage string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:/", r)
	}
	if stage == "" || strings.HasPrefix(stage, "-") || strings.ContainsFunc(stage, func(r rune) bool { return !plain(r) }) {
		stage = "'" + strings.ReplaceAll(stage, "'", `'\''`) + "'"
	}
	return "promote -stage " + stage
}

// WayOn is the command, without the rollout's name, that lets a paused rollout go
// on from this very pause and from no later one.
func (h *Header) WayOn() string {
	switch {
	case h.Paused != nil && h.Paused.Cause.Way() == Promote:
		return PromoteWords(h.Stage)
	case h.Paused != nil && h.Pauses > 0:
		return fmt.Sprintf("%s -pause %d", Resume, h.Pauses)
	}
	return string(Resume) // written by an aimlock that did not number them
}

// AtWork reports whether somebody should be bringing the rollout forward now: it has
// not ended, is not paused, and waits neither for its turn nor for its window. A start
// that waits for the window has let go of the locks.
func (h *Header) AtWork() bool {
	return h.FinishedAt == nil && !h.State.Terminal() && h.State != Paused && h.State != Waiting
}

// PauseInfo says why a rollout is paused.
type PauseInfo struct {
	Cause Cause     `json:"cause"`
	Why   string    `json:"why"`
	At    time.Time `json:"at"`
}

// Budget is the use of the failure budget. Failed only grows: over stages,
// retries and restarts.
type Budget struct {
	Failed              int `json:"failed"`
	ForgivenFailed      int `json:"forgiven_failed,omitempty"`
	ForgivenUnreachable int `json:"forgiven_unreachable,omitempty"`
	// Stages is what is forgiven of each stage; nil: nothing.
	Stages []StageForgiven `json:"stages,omitempty"`
}

// StageForgiven is what an operator has forgiven of a stage's own budget.
type StageForgiven struct {
	Failed      int `json:"failed,omitempty"`
	Unreachable int `json:"unreachable,omitempty"`
}

// CommandSeen is what became of an operator's command.
type CommandSeen struct {
	N    uint64 `json:"n"`
	Verb Verb   `json:"verb"`
	By   string `json:"by"`
	// Accessor is the public id of the ACL token that the operator used.
	Accessor string    `json:"accessor,omitempty"`
	At       time.Time `json:"at"`
	OK       bool      `json:"ok"`
	Result   string    `json:"result"`
}

// commandsKept bounds the header: more operators at once are told that their
// command was taken, and not what became of it.
const commandsKept = 10

// Taken returns what became of command n, or nil where that is not known: it
// was not taken, or so many were taken since that it is forgotten.
func (h *Header) Taken(n uint64) *CommandSeen {
	for i := range h.Commands {
		if h.Commands[i].N == n {
			return &h.Commands[i]
		}
	}
	if h.Command != nil && h.Command.N == n {
		return h.Command
	}
	return nil
}

// Took notes what became of a command.
func (h *Header) Took(c CommandSeen) {
	h.Command = &c
	h.Commands = appendSeen(h.Commands, c)
}

func appendSeen(list []CommandSeen, c CommandSeen) []CommandSeen {
	if len(list) >= commandsKept {
		list = list[len(list)-commandsKept+1:]
	}
	return append(slices.Clone(list), c)
}

// Problem is one node's failure, for people.
type Problem struct {
	Node  string    `json:"node"`
	Class string    `json:"class"`
	Why   string    `json:"why"`
	At    time.Time `json:"at"`
}

// Header returns what is to be persisted of the state.
func (s *State) Header() Header {
	h := NewHeader(s.plan.ID, s.plan.Spec, s.createdAt)
	h.State, h.Reason = s.status, s.reason
	h.StageIndex, h.Stage = s.stage, s.plan.Spec.Stages[s.stage].Name
	for i := range h.Stages {
		from, end := s.plan.Stage(i)
		c := s.stages[i]
		h.Stages[i].From, h.Stages[i].End, h.Stages[i].Counts = from, end, c
		h.Stages[i].Done = c[ClassApplied] + c[ClassFailed] + c[ClassUnreachable]
	}
	h.Counts, h.Total, h.InFlight = s.counts, len(s.nodes), s.inFlight
	h.Epoch, h.Token = s.hold.Epoch, s.hold.Token
	h.StartedAt, h.FinishedAt, h.BakingSince = ptr(s.startedAt), ptr(s.finishedAt), ptr(s.bakingSince)
	h.UpdatedAt = s.now
	h.Promoted, h.Paused, h.Pauses, h.Command = s.promoted, s.pause, s.pauses, s.command
	h.Commands, h.Baked = slices.Clone(s.commands), s.baking()
	h.Confirmed, h.Budget, h.RestoreFailed = s.nConfirmed, s.budget, s.restoreFailed
	h.Budget.Stages, h.Retrying, h.Elapsed = s.forgiven(), s.doubt, s.elapsed
	h.Problems, h.Gates = slices.Clone(s.problems), s.gateStatuses()
	h.Follows, h.Root, h.SupersededBy = s.plan.Follows, s.plan.Root, s.superseded
	if s.Finished() || s.counts[ClassFailed]+s.counts[ClassUnreachable]+s.counts[ClassSkipped] > 0 {
		for i := range s.nodes {
			switch s.nodes[i].class {
			case ClassRolledBack:
				if s.Finished() {
					h.RolledBack = append(h.RolledBack, i)
				}
			case ClassSuperseded:
				if s.Finished() {
					h.SupersededNodes = append(h.SupersededNodes, i)
				}
			case ClassFailed:
				h.Failed = append(h.Failed, i)
			case ClassUnreachable:
				h.Unreachable = append(h.Unreachable, i)
			case ClassSkipped:
				h.Skipped = append(h.Skipped, i)
			}
		}
	}
	return h
}

// NewHeader is the header of a rollout that is not planned yet.
func NewHeader(id string, spec Spec, at time.Time) Header {
	h := Header{
		Version: HeaderVersion, ID: id, Name: spec.Name, Hash: spec.Hash, State: Waiting,
		CreatedAt: at, UpdatedAt: at, Conflict: spec.Conflict,
	}
	for _, st := range spec.Stages {
		h.Stages = append(h.Stages, HeaderStage{Name: st.Name})
	}
	for _, c := range spec.Configs {
		h.Configs = append(h.Configs, HeaderConfig{c.Name, c.Revision, c.SHA256, c.Destination, c.Renderings})
	}
	return h
}

// End ends the rollout of a header without its plan: where that, or the orders
// that were given, cannot be read any more. Its nodes stay where they are.
func (h *Header) End(state Status, why string, at time.Time) {
	rest := ClassSkipped
	if state == Superseded {
		rest = ClassSuperseded
	}
	h.State, h.Reason = state, why
	h.Counts[rest] += h.Counts[ClassPending]
	h.Counts[ClassPending], h.InFlight = 0, 0
	h.FinishedAt, h.UpdatedAt, h.Paused = &at, at, nil
}

func ptr(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func val(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// Given is an order of this rollout that stands in Consul, for one config of
// one node.
type Given struct {
	Node, Config int
	Order        Order
	Restore      bool
	// Attempt is that of the Assign; 0 is the first.
	Attempt int
	// Void: the node refused it because Consul had lost the one before it, and the
	// epoch was raised since. The node has its turn again.
	Void bool
}

// ErrDataLost is returned where Consul holds less than was written to it.
var ErrDataLost = errors.New("Consul has lost orders of this rollout, or was restored to an older state: nothing is assigned; run `aimlock recover`")

// Recover makes the state of a rollout out of what is persisted: its plan, its
// header, the orders of this rollout that stand in desired/, and the answers
// in actual/ (those to other orders are ignored). Its first event must be
// Acquired. It returns an error that wraps ErrDataLost rather than to assign
// from a gap.
func Recover(plan *Plan, h Header, given []Given, reports []Report) (*State, error) {
	if err := h.fits(plan); err != nil {
		return nil, err
	}
	s := NewState(plan)
	s.status, s.stage, s.reason = h.State, h.StageIndex, h.Reason
	s.hold = Order{Epoch: h.Epoch, Token: h.Token}
	s.startedAt, s.finishedAt, s.bakingSince = val(h.StartedAt), val(h.FinishedAt), val(h.BakingSince)
	s.promoted, s.pause, s.pauses, s.command = h.Promoted, h.Paused, h.Pauses, h.Command
	s.commands, s.baked = slices.Clone(h.Commands), h.Baked
	s.budget, s.restoreFailed, s.superseded = h.Budget, h.RestoreFailed, h.SupersededBy
	s.problems = slices.Clone(h.Problems)
	s.recoverGates(h.Gates)
	s.elapsed = h.Elapsed
	for i, f := range h.Budget.Stages {
		if i < len(s.perStage) {
			s.perStage[i].forgivenFailed, s.perStage[i].forgivenUnreachable = f.Failed, f.Unreachable
		}
	}
	if err := s.recoverOrders(given, h.Confirmed); err != nil {
		return nil, err
	}
	all := uint64(1)<<len(plan.Spec.Configs) - 1
	for _, i := range h.Failed {
		s.setClass(i, ClassFailed)
		if !s.nodes[i].restore {
			s.nodes[i].got = all
		}
	}
	for _, i := range h.Unreachable {
		s.setClass(i, ClassUnreachable)
	}
	for _, i := range h.Skipped {
		s.setClass(i, ClassSkipped)
	}
	s.now = h.UpdatedAt // for the problems found now; the clock starts at the first Step
	counted := s.restoreFailed
	s.restoreFailed = 0
	for _, r := range reports {
		s.report(r)
	}
	// A failed restore that was counted before is the same one now.
	s.restoreFailed = max(s.restoreFailed, counted)
	for i := range s.nodes {
		n := &s.nodes[i]
		open := n.class == ClassPending || n.restore && n.class != ClassUnreachable
		if !n.order.IsZero() && n.got != all && open && !s.Finished() {
			n.flying = true
			s.inFlight++
			if n.again() {
				s.doubts(i, 1)
			}
		}
	}
	if s.status == RollingBack {
		for i := range s.nodes {
			if n := &s.nodes[i]; !n.order.IsZero() && !n.restore {
				s.land(i)
				s.toRestore = append(s.toRestore, i)
			}
		}
	}
	s.effects, s.dirty, s.now = nil, false, time.Time{}
	return s, nil
}

// recoverOrders takes the orders that stand. A node has an order when all its
// configs have: they are written in one transaction.
func (s *State) recoverOrders(given []Given, confirmed int) error {
	seen := make(map[int]uint64, len(given))
	var void []int
	all := uint64(1)<<len(s.plan.Spec.Configs) - 1
	for _, g := range given {
		if g.Node < 0 || g.Node >= len(s.nodes) || g.Config < 0 || g.Config >= len(s.plan.Spec.Configs) || g.Order.IsZero() {
			continue
		}
		n := &s.nodes[g.Node]
		if !n.order.IsZero() && n.order != g.Order {
			return fmt.Errorf("node %s has orders %s and %s of one rollout: %w", s.plan.Nodes[g.Node], n.order, g.Order, ErrDataLost)
		}
		n.order, n.restore = g.Order, g.Restore
		if !g.Restore {
			n.tries = uint8(min(max(g.Attempt, 1), MaxAttempts))
		}
		seen[g.Node] |= 1 << g.Config
		if g.Void {
			void = append(void, g.Node)
		}
	}
	for _, i := range slices.Sorted(maps.Keys(seen)) {
		if seen[i] != all {
			return fmt.Errorf("node %s has orders for some of its configs only: %w", s.plan.Nodes[i], ErrDataLost)
		}
		s.nodes[i].confirmed = true
		s.nConfirmed++
	}
	for _, i := range void {
		s.nodes[i].order, s.nodes[i].restore, s.nodes[i].tries = Order{}, false, 0
	}
	if s.nConfirmed < confirmed {
		return fmt.Errorf("orders were given to %s, and Consul holds %d: %w", countNodes(confirmed), s.nConfirmed, ErrDataLost)
	}
	return nil
}

// fits refuses a header that does not belong to the plan.
func (h *Header) fits(plan *Plan) error {
	bad := func(what string) error { return fmt.Errorf("header of rollout %s: %s: %w", h.ID, what, ErrPlanDamaged) }
	switch {
	case h.Version > HeaderVersion:
		return fmt.Errorf("rollout %s was written by a newer aimlock (version %d, this one reads up to %d): upgrade this aimlock", h.ID, h.Version, HeaderVersion)
	case h.ID != plan.ID || h.Hash != plan.Spec.Hash:
		return bad("it belongs to another plan")
	case h.StageIndex < 0 || h.StageIndex >= len(plan.Ends):
		return bad("it names a stage that is not there")
	case h.State == Paused && h.Paused == nil:
		return bad("it is paused without a reason")
	}
	for _, set := range []IndexSet{h.Failed, h.Unreachable, h.Skipped} {
		if len(set) > 0 && (set[0] < 0 || set[len(set)-1] >= len(plan.Nodes)) {
			return bad("it names nodes that are not there")
		}
	}
	return nil
}

package orchestrator

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is where a rollout stands.
type Status string

// Statuses. The last five are terminal: no status follows them.
const (
	// Waiting: for the lock, or for the window.
	Waiting Status = "waiting"
	// Running: nodes get their turn.
	Running Status = "running"
	// Baking: the stage's nodes are done and it is watched, or its gates are
	// being asked.
	Baking Status = "baking"
	// Paused: nothing more is assigned until an operator says so.
	Paused Status = "paused"
	// RollingBack: every node that got an order gets the order to go back.
	RollingBack Status = "rolling_back"

	Succeeded Status = "succeeded"
	// Failed: it ended without reaching what it should: nothing was applied,
	// or a node could not be rolled back.
	Failed     Status = "failed"
	RolledBack Status = "rolled_back"
	Aborted    Status = "aborted"
	Superseded Status = "superseded"
)

// Terminal reports whether no status follows.
func (s Status) Terminal() bool {
	switch s {
	case Succeeded, Failed, RolledBack, Aborted, Superseded:
		return true
	}
	return false
}

// Class is where a node stands in a rollout. Every node is in exactly one.
type Class uint8

// Classes of nodes. When a rollout has ended, none is pending.
const (
	ClassPending Class = iota
	ClassApplied
	ClassFailed
	ClassUnreachable
	ClassSkipped
	ClassRolledBack
	ClassSuperseded
	classes
)

var classNames = [classes]string{"pending", "applied", "failed", "unreachable", "skipped", "rolled_back", "superseded"}

func (c Class) String() string {
	if c < classes {
		return classNames[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// Counts is how many nodes are in each class. Its JSON is an object with all
// classes by name.
type Counts [classes]int

// countsJSON fixes names and order of a Counts' JSON.
type countsJSON struct {
	Applied     int `json:"applied"`
	Failed      int `json:"failed"`
	Unreachable int `json:"unreachable"`
	Skipped     int `json:"skipped"`
	RolledBack  int `json:"rolled_back"`
	Superseded  int `json:"superseded"`
	Pending     int `json:"pending"`
}

// MarshalJSON implements json.Marshaler.
func (c Counts) MarshalJSON() ([]byte, error) {
	return json.Marshal(countsJSON{
		c[ClassApplied], c[ClassFailed], c[ClassUnreachable], c[ClassSkipped],
		c[ClassRolledBack], c[ClassSuperseded], c[ClassPending],
	})
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *Counts) UnmarshalJSON(b []byte) error {
	var j countsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*c = Counts{
		ClassApplied: j.Applied, ClassFailed: j.Failed, ClassUnreachable: j.Unreachable, ClassSkipped: j.Skipped,
		ClassRolledBack: j.RolledBack, ClassSuperseded: j.Superseded, ClassPending: j.Pending,
	}
	return nil
}

// Words names the classes that have nodes, but for those left out.
func (c Counts) Words(out ...Class) string {
	var parts []string
	for _, class := range []Class{ClassApplied, ClassFailed, ClassUnreachable, ClassSkipped, ClassRolledBack, ClassSuperseded, ClassPending} {
		if n := c[class]; n > 0 && !slices.Contains(out, class) {
			parts = append(parts, fmt.Sprintf("%d %s", n, class))
		}
	}
	return strings.Join(parts, ", ")
}

// Total is how many nodes are counted.
func (c Counts) Total() int {
	n := 0
	for _, x := range c {
		n += x
	}
	return n
}

// Bounds that are not the author's to set.
const (
	// RestoreParallel bounds the nodes that go back at the same time: wide,
	// because a rollback must be fast, and not open, because every one of
	// them reloads its programs.
	RestoreParallel = 1000
	// Grace is how long a node's agent may be down before the node counts as
	// unreachable: a restart of an agent is no failure.
	Grace = 5 * time.Second
	// DefaultNodeDeadline is for specs that set none.
	DefaultNodeDeadline = 2 * time.Minute
)

// node is what is known of one node.
type node struct {
	// order is the last one that this rollout gave it; zero: none yet.
	order Order
	// since is when order was given, or confirmed, in Unix nanoseconds.
	since int64
	// got has a bit for each config whose answer to order is in.
	got   uint64
	class Class
	// tries is how often the node was given its order, not counting restores.
	tries   uint8
	restore bool // order is a restore
	// flying: in flight. Invariant: flying nodes have an order.
	flying bool
	// confirmed: an order of this rollout is known to stand in Consul.
	confirmed bool
	// deferred: its turn has come, but its agent is down for less than Grace.
	deferred bool
	// ready: its turn has come before, and its agent is up now.
	ready bool
	// waiting: it failed, and is given its order again. Invariant: waiting
	// nodes are pending, have an order and are not flying.
	waiting bool
}

// at is a node and a time in Unix nanoseconds.
type at struct {
	node int
	when int64
}

// State is how far a rollout is. The zero value is of no use: make one by
// NewState or Recover. It belongs to the one who calls Step.
type State struct {
	plan   *Plan
	status Status
	// stage is the present one. Invariant: all before it are done.
	stage int
	// hold is the epoch and token of the present hold and the last Seq used.
	hold Order
	held bool
	// open tells whether the window is; without a window it always is.
	open bool

	nodes  []node
	counts Counts
	// stages is how many nodes of each stage are in each class.
	stages []Counts
	// next is the first node of the plan whose turn has not come yet.
	// Invariant: next <= the end of the present stage.
	next     int
	inFlight int
	// flights has every flying node once with its present since; entries
	// whose time is not the node's any more are stale.
	flights []at
	// down is when each node whose agent is down was first seen so, and
	// graces the same in the order of time, stale entries as in flights.
	down      map[int]int64
	graces    []at
	nDeferred int
	readies   []int // nodes with ready set, and stale ones
	nReady    int

	// waits has every waiting node once, by the number of its attempts, each
	// in the order of the time at which it is due.
	waits    [][]at
	nWaiting int
	// whys are the last errors of the waiting nodes.
	whys map[int]string
	// doubt is how many nodes have failed and may still succeed: those that
	// wait for another attempt and those in flight with one.
	doubt int

	// toRestore are the nodes that a rollback has still to reach.
	toRestore     []int
	restoreFailed int
	stuck         []int // those of them that this process knows

	bakingSince time.Time
	// baked is how long the stage had baked at bakeFrom; a zero bakeFrom means
	// that no time is counted: nobody holds the rollout yet.
	baked    time.Duration
	bakeFrom time.Time
	promoted bool
	// ask numbers the questions to gates; gates are those of the present stage,
	// nil when none was asked yet, and pastGates the last ones of others.
	ask       int
	gates     []*gate
	pastGates []GateStatus

	pause      *PauseInfo
	pauses     uint64 // how many there were, this one included
	reason     string
	budget     Budget
	perStage   []stageUse
	command    *CommandSeen
	commands   []CommandSeen
	superseded string
	problems   []Problem

	// elapsed is how much of the rollout's deadline is used as of clockAt.
	elapsed time.Duration
	clockAt time.Time

	// unconfirmed is how many Assign and Restore effects are not confirmed.
	unconfirmed int
	nConfirmed  int

	createdAt, startedAt, finishedAt time.Time

	// Of the Step in progress.
	now     time.Time
	dirty   bool
	effects []Effect
}

// NewState is a rollout that has not begun.
func NewState(plan *Plan) *State {
	s := &State{
		plan: plan, status: Waiting, open: plan.Spec.Window == nil,
		nodes: make([]node, len(plan.Nodes)), stages: make([]Counts, len(plan.Ends)),
		down: map[int]int64{}, createdAt: plan.CreatedAt, perStage: make([]stageUse, len(plan.Ends)),
	}
	s.counts[ClassPending] = len(plan.Nodes)
	for i := range s.stages {
		from, end := plan.Stage(i)
		s.stages[i][ClassPending] = end - from
	}
	s.markUnchanged()
	s.dirty = false
	return s
}

// Status returns where the rollout stands.
func (s *State) Status() Status { return s.status }

// Stage returns the index of the present stage.
func (s *State) Stage() int { return s.stage }

// Counts returns how many nodes are in each class.
func (s *State) Counts() Counts { return s.counts }

// InFlight returns how many nodes are in flight.
func (s *State) InFlight() int { return s.inFlight }

// Finished reports whether Finish was emitted.
func (s *State) Finished() bool { return !s.finishedAt.IsZero() }

// Hold returns the present hold's epoch and token and the last Seq used.
func (s *State) Hold() Order { return s.hold }

// Class returns the class of a node.
func (s *State) Class(node int) Class { return s.nodes[node].class }

// Order returns the last order that this rollout gave a node, and whether it
// is a restore.
func (s *State) Order(node int) (o Order, restore bool) {
	return s.nodes[node].order, s.nodes[node].restore
}

// Flying reports whether a node is in flight.
func (s *State) Flying(node int) bool { return s.nodes[node].flying }

// AppendFlying appends the nodes in flight to buf, in no particular order.
func (s *State) AppendFlying(buf []int) []int {
	for _, f := range s.flights {
		if n := &s.nodes[f.node]; n.flying && n.since == f.when {
			buf = append(buf, f.node)
		}
	}
	return buf
}

// AppendLate appends to buf the nodes that count as unreachable and have an
// order: their answer may still come, and counts.
func (s *State) AppendLate(buf []int) []int {
	if s.counts[ClassUnreachable] == 0 {
		return buf
	}
	for i := range s.nodes {
		if n := &s.nodes[i]; n.class == ClassUnreachable && !n.order.IsZero() {
			buf = append(buf, i)
		}
	}
	return buf
}

// Baked returns until when the present stage bakes; zero if it does not, or if
// nobody holds the rollout.
func (s *State) Baked() time.Time {
	if s.status != Baking || s.promoted || s.bakeFrom.IsZero() {
		return time.Time{}
	}
	return s.bakeFrom.Add(s.plan.Spec.Stages[s.stage].Bake - s.baked)
}

// baking is how long the present stage has baked, as far as that was counted.
// Only time under a hold counts here, by the clock of the one who holds: what a
// clock of another machine said never does.
func (s *State) baking() time.Duration {
	if s.bakingSince.IsZero() {
		return 0
	}
	if s.bakeFrom.IsZero() {
		return s.baked
	}
	return s.baked + max(0, s.now.Sub(s.bakeFrom))
}

// Idle reports whether nothing can happen now without time passing, a window
// opening or an operator: nothing is in flight, no order is unconfirmed, no
// gate is being asked and no node waits for its agent or its next attempt.
func (s *State) Idle() bool {
	retrying := s.nWaiting > 0 && (s.status == Running || s.status == Baking)
	return s.inFlight == 0 && s.unconfirmed == 0 && s.asking() == 0 && s.nDeferred == 0 &&
		len(s.toRestore) == 0 && !retrying
}

// Backlog reports whether nodes wait for a place in the window: of the present
// stage, or to go back.
func (s *State) Backlog() bool {
	switch s.status {
	case RollingBack:
		return len(s.toRestore) > 0
	case Running, Baking:
		return s.nReady > 0 || s.next < s.plan.Ends[s.stage]
	}
	return false
}

// setClass moves a node to a class and keeps all counts.
func (s *State) setClass(i int, c Class) {
	n := &s.nodes[i]
	if n.class == c {
		return
	}
	st := s.plan.StageOf(i)
	if st >= 0 {
		s.stages[st][n.class]--
		s.stages[st][c]++
		s.perStage[st].count(n.class, -1)
		s.perStage[st].count(c, 1)
	}
	for _, x := range [2]Class{n.class, c} {
		if x == ClassFailed || x == ClassUnreachable || x == ClassSkipped {
			s.dirty = true
		}
	}
	s.counts[n.class]--
	s.counts[c]++
	over := c == ClassApplied || c == ClassSkipped || n.class == ClassUnreachable
	n.class = c
	if over && len(s.problems) > 0 {
		// What it had before is over; the log has it.
		s.problems = slices.DeleteFunc(s.problems, func(p Problem) bool { return p.Node == s.plan.Nodes[i] })
	}
}

// land ends a node's flight.
func (s *State) land(i int) {
	if n := &s.nodes[i]; n.flying {
		n.flying = false
		s.inFlight--
		if n.again() {
			s.doubts(i, -1)
		}
	}
}

// launch puts a node in flight, or renews its deadline.
func (s *State) launch(i int) {
	n := &s.nodes[i]
	if !n.flying {
		n.flying = true
		s.inFlight++
		if n.again() {
			s.doubts(i, 1)
		}
	}
	n.since = max(s.now.UnixNano(), n.since+1) // never the same twice
	s.flights = append(s.flights, at{i, n.since})
}

func (s *State) undefer(i int) {
	if n := &s.nodes[i]; n.deferred {
		n.deferred = false
		s.nDeferred--
	}
}

func (s *State) unready(i int) {
	if n := &s.nodes[i]; n.ready {
		n.ready = false
		s.nReady--
	}
}

func (s *State) tell(kind TellKind, node int, format string, args ...any) {
	t := Tell{Kind: kind, Text: fmt.Sprintf(format, args...)}
	if node >= 0 {
		t.Node = s.plan.Nodes[node]
	}
	if s.stage < len(s.plan.Spec.Stages) {
		t.Stage = s.plan.Spec.Stages[s.stage].Name
	}
	s.effects = append(s.effects, t)
}

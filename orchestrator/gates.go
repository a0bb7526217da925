package orchestrator

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Gate is a named question that is put to the outside about a stage: again and
// again, until one of its limits decides. It is made by package
// orchestrator/spec; package orchestrator/gates asks it.
type Gate struct {
	Name string `json:"name"`
	// Kind is one of GateKinds.
	Kind string `json:"kind"`
	// Interval is from one answer to the next question. Default 10 s.
	Interval time.Duration `json:"interval,omitempty"`
	// Timeout bounds one question. Default 30 s.
	Timeout time.Duration `json:"timeout,omitempty"`
	// SuccessLimit is how many passes the gate needs; 0 is 1.
	SuccessLimit int `json:"success_limit,omitempty"`
	// FailureLimit is how many fails are still tolerated, and UnknownLimit how
	// many answers that are neither pass nor fail.
	FailureLimit int `json:"failure_limit,omitempty"`
	UnknownLimit int `json:"unknown_limit,omitempty"`
	// ConsecutiveErrorLimit is how many questions in a row may fail to be
	// answered at all. They do not count for UnknownLimit. 0 is
	// DefaultGateErrors, and what is below it is none.
	ConsecutiveErrorLimit int `json:"consecutive_error_limit,omitempty"`
	// During is DuringBake for a gate that is asked from the begin of the bake
	// on; empty for one that is asked when the bake is over.
	During string `json:"during,omitempty"`
	// Wait is how long an answer of Pending is waited for before it is unknown.
	// Default 15 minutes.
	Wait time.Duration `json:"wait,omitempty"`

	// Service, MinPassingPercent and Filter are for consul_checks.
	Service           string `json:"service,omitempty"`
	MinPassingPercent int    `json:"min_passing_percent,omitempty"`
	Filter            string `json:"filter,omitempty"`
	// Compare: the nodes that have the revision are held against those that are
	// still to come.
	Compare bool `json:"compare,omitempty"`

	HTTP            *GateHTTP            `json:"http,omitempty"`
	Prometheus      *GatePrometheus      `json:"prometheus,omitempty"`
	Exec            *GateExec            `json:"exec,omitempty"`
	NomadDeployment *GateNomadDeployment `json:"nomad_deployment,omitempty"`
	Plugin          *GatePlugin          `json:"plugin,omitempty"`
}

// Kinds of gates.
const (
	GateConsulChecks    = "consul_checks"
	GateKindHTTP        = "http"
	GateKindPrometheus  = "prometheus"
	GateKindExec        = "exec"
	GateKindNomadDeploy = "nomad_deployment"
	GateKindPlugin      = "plugin"
)

// GateHTTP asks a web server.
type GateHTTP struct {
	URL    string `json:"url"`
	Method string `json:"method,omitempty"`
	// Headers may hold ${env.NAME}: a variable of the orchestrator's environment,
	// put in when the question is asked.
	Headers map[string]string `json:"headers,omitempty"`
	// Status are the codes that are expected; none: 200 to 299.
	Status []int `json:"status,omitempty"`
	// Body is a condition over status, body and json, as it was written.
	Body   string `json:"body,omitempty"`
	CAFile string `json:"ca_file,omitempty"`
}

// GatePrometheus asks a Prometheus an instant query.
type GatePrometheus struct {
	Address string `json:"address"`
	// Query may hold ${canary} and ${rest}: regular expressions of the names of
	// the nodes that have the revision, and of those still to come.
	Query string `json:"query"`
	// Threshold is a condition over value and labels, as it was written.
	Threshold string `json:"threshold"`
	// Reduce makes one value of several samples: min, max, avg or sum. Without
	// it the threshold must hold for each.
	Reduce string `json:"reduce,omitempty"`
	// MaxAge is how old a sample may be.
	MaxAge  time.Duration     `json:"max_age"`
	Headers map[string]string `json:"headers,omitempty"`
	CAFile  string            `json:"ca_file,omitempty"`
}

// GateExec runs a program on the orchestrator's machine.
type GateExec struct {
	Command []string `json:"command"`
	// Env is added to its environment; values may hold ${env.NAME}.
	Env map[string]string `json:"env,omitempty"`
}

// GateNomadDeployment looks at the last deployment of a Nomad job.
type GateNomadDeployment struct {
	Job       string `json:"job"`
	Namespace string `json:"namespace,omitempty"`
	Region    string `json:"region,omitempty"`
}

// GatePlugin asks a plugin. Config is its block as JSON.
type GatePlugin struct {
	Name   string          `json:"name"`
	Config json.RawMessage `json:"config,omitempty"`
}

// DuringBake is Gate.During for a gate that watches the whole bake.
const DuringBake = "bake"

// Defaults of gates.
const (
	DefaultGateInterval = 10 * time.Second
	DefaultGateTimeout  = 30 * time.Second
	DefaultGateWait     = 15 * time.Minute
	DefaultGateErrors   = 4
)

// Deadline is the bound of one question.
func (g *Gate) Deadline() time.Duration { return positive(g.Timeout, DefaultGateTimeout) }

func (g *Gate) tolerates() int {
	if g.ConsecutiveErrorLimit == 0 {
		return DefaultGateErrors
	}
	return max(g.ConsecutiveErrorLimit, 0)
}

func (g *Gate) needs() int { return max(g.SuccessLimit, 1) }

func positive(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// GateState is where a gate stands.
type GateState string

// States of gates.
const (
	// GateWaiting: it was not asked yet.
	GateWaiting GateState = "waiting"
	// GateMeasuring: none of its limits has decided yet.
	GateMeasuring GateState = "measuring"
	GatePassed    GateState = "passed"
	GateFailed    GateState = "failed"
	GateUnknown   GateState = "unknown"
	// GateOverruled: an operator took it as passed.
	GateOverruled GateState = "overruled"
	// GateStopped: the rollout has ended before it was decided.
	GateStopped GateState = "stopped"
)

// GateStatus is how far a gate of a stage has come. It is persisted at each
// answer, so that the next holder goes on counting.
type GateStatus struct {
	Stage string    `json:"stage"`
	Name  string    `json:"name"`
	Kind  string    `json:"kind"`
	State GateState `json:"state"`
	// Passed, Failed and Unknown count the answers since it was begun, and
	// Errors the last ones in a row that could not be had.
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Unknown int `json:"unknown"`
	Errors  int `json:"errors"`
	// Needs is how many passes it needs.
	Needs int `json:"needs"`
	// Last is the last answer, with its value and why, and At when it came.
	Last  Answer     `json:"last,omitempty"`
	Value string     `json:"value,omitempty"`
	Why   string     `json:"why,omitempty"`
	At    *time.Time `json:"at,omitempty"`
	// PendingFrom is how long the stage had baked at the first of the pending
	// answers that it gives: the bake's clock is the one that holders share.
	PendingFrom time.Duration `json:"pending_from,omitempty"`
}

// LastWords is the last answer of a gate and what it rests on, for people. What was
// measured is left out where the reason says it, as it does of every program.
func (g *GateStatus) LastWords() string {
	words := string(g.Last)
	if g.Value != "" && !strings.Contains(g.Why, g.Value) && (g.Kind != GateKindExec || g.Why == "") {
		words += " (" + g.Value + ")"
	}
	if g.Why != "" {
		words += ": " + g.Why
	}
	return words
}

// Bounds of what is kept of gates.
const (
	maxGateValue = 100
	maxGateWhy   = 300
	// pastGates bounds what the header has of the gates of stages that are done.
	pastGates = 32
)

// gate is a gate of the present stage at work.
type gate struct {
	spec Gate
	GateStatus
	// ask is the number of the question that is open; 0: none is.
	ask int
	// next is when the next question is due.
	next time.Time
}

func (g *gate) decided() bool {
	return g.State == GatePassed || g.State == GateFailed || g.State == GateUnknown || g.State == GateOverruled
}

// beginGates makes the gates of the present stage, if that was not done yet.
func (s *State) beginGates() {
	if s.gates != nil {
		return
	}
	st := s.plan.Spec.Stages[s.stage]
	for _, name := range st.Gate {
		s.gates = append(s.gates, s.newGate(st.Name, name))
	}
	s.dirty = true
}

func (s *State) newGate(stage, name string) *gate {
	g := &gate{GateStatus: GateStatus{Stage: stage, Name: name, State: GateWaiting, Needs: 1}}
	i := slices.IndexFunc(s.plan.Spec.Gates, func(g Gate) bool { return g.Name == name })
	if i < 0 {
		g.State, g.Last, g.Why = GateUnknown, Unknown, "the spec does not define it"
		return g
	}
	g.spec = s.plan.Spec.Gates[i]
	g.Kind, g.Needs = g.spec.Kind, g.spec.needs()
	return g
}

// gatesPass asks the gates of the stage that is baking, each when it is due,
// and reports whether the bake is over and all have passed. One that failed
// does at once what the failure block says. One that is unknown pauses, when
// the questions that are open are answered: another gate may have failed.
//
// Invariant: it is true only if every gate has had its SuccessLimit of passes
// in this stage, no more fails and unknowns than its limits, and no open
// question.
func (s *State) gatesPass(baked bool) bool {
	if len(s.plan.Spec.Stages[s.stage].Gate) == 0 {
		return baked
	}
	s.beginGates()
	var unknown *gate
	for _, g := range s.gates {
		if g.State == GateFailed {
			s.then(CauseGate, fmt.Sprintf("gate %q failed%s", g.Name, because(g.Why)))
			return false
		}
		if g.State == GateUnknown && unknown == nil {
			unknown = g
		}
	}
	if unknown != nil {
		if s.asking() == 0 {
			s.pauseFor(CauseGate, fmt.Sprintf("gate %q is unknown%s", unknown.Name, because(unknown.Why)))
		}
		return false
	}
	all := baked
	for _, g := range s.gates {
		watches := g.spec.During == DuringBake
		switch {
		case g.ask != 0:
			all = false
		case baked && g.Passed >= g.spec.needs() && (!watches || g.Last == Pass):
			// What watches the bake is decided by its end, and not while its last
			// answer was another one.
			if g.State != GatePassed {
				g.State, s.dirty = GatePassed, true
			}
		case !baked && !watches:
			all = false
		default:
			all = false
			if g.next.After(s.now) {
				continue
			}
			s.ask++
			g.ask, g.State = s.ask, GateMeasuring
			s.effects = append(s.effects, AskGate{Ask: g.ask, Gate: g.spec, Stage: g.Stage})
		}
	}
	return all
}

// measured takes an answer. One to a question that is not open is ignored.
func (s *State) measured(ev GateAnswered) {
	i := slices.IndexFunc(s.gates, func(g *gate) bool { return g.ask != 0 && g.ask == ev.Ask && g.Name == ev.Gate })
	if i < 0 {
		return
	}
	g := s.gates[i]
	last, interval := g.Last, positive(g.spec.Interval, DefaultGateInterval)
	g.ask, g.next = 0, s.now.Add(interval)
	g.Last, g.At, s.dirty = ev.Answer, ptr(s.now), true
	g.Value, g.Why = clip(ev.Value, maxGateValue), clip(ev.Why, maxGateWhy)
	if !ev.Error || g.Last == Pass || g.Last == Fail {
		g.Errors = 0
	}
	switch g.Last {
	case Pass:
		if g.Passed++; g.Passed >= g.spec.needs() && g.spec.During != DuringBake {
			g.State = GatePassed
		}
	case Fail:
		if g.Failed++; g.Failed > g.spec.FailureLimit {
			g.State = GateFailed
		}
	case Pending:
		wait := positive(g.spec.Wait, DefaultGateWait)
		if last != Pending {
			g.PendingFrom = s.baking()
		}
		if s.baking()-g.PendingFrom < wait {
			break
		}
		g.Last = Unknown
		g.Why = clip(fmt.Sprintf("after %s of waiting%s", wait, because(g.Why)), maxGateWhy)
		s.unknownAnswer(g)
	default:
		g.Last = Unknown
		if !ev.Error {
			s.unknownAnswer(g)
			break
		}
		if g.Errors++; g.Errors > g.spec.tolerates() {
			g.State = GateUnknown
		} else {
			// What could not be asked is asked again sooner.
			g.next = s.now.Add(min(interval, time.Second<<min(g.Errors-1, 20)))
		}
	}
	// Answers that repeat themselves are not told.
	if g.decided() || g.Last != last || g.Errors > 0 {
		s.tell(TellGate, -1, "gate %q: %s%s%s", g.Name, g.Last, g.tally(), because(g.Why))
	}
}

func (s *State) unknownAnswer(g *gate) {
	if g.Unknown++; g.Unknown > g.spec.UnknownLimit {
		g.State = GateUnknown
	}
}

// tally says how far a gate is from its limit; nothing where the one answer
// decides.
func (g *gate) tally() string {
	switch n := g.spec.needs(); {
	case g.Last == Pass && n > 1:
		return fmt.Sprintf(" (%d of %d)", min(g.Passed, n), n)
	case g.Last == Fail && g.spec.FailureLimit > 0:
		return fmt.Sprintf(" (%d, and failure_limit is %d)", g.Failed, g.spec.FailureLimit)
	case g.Last == Unknown && g.Errors > 0 && g.spec.tolerates() > 0:
		return fmt.Sprintf(" (error %d in a row, and consecutive_error_limit is %d)", g.Errors, g.spec.tolerates())
	case g.Last == Unknown && g.Errors == 0 && g.spec.UnknownLimit > 0:
		return fmt.Sprintf(" (%d, and unknown_limit is %d)", g.Unknown, g.spec.UnknownLimit)
	}
	return ""
}

// asking is how many questions are open.
func (s *State) asking() int {
	n := 0
	for _, g := range s.gates {
		if g.ask != 0 {
			n++
		}
	}
	return n
}

// overruleGates: an operator takes them as passed.
func (s *State) overruleGates() {
	if len(s.plan.Spec.Stages[s.stage].Gate) > 0 {
		s.beginGates()
	}
	for _, g := range s.gates {
		if g.ask = 0; g.State != GatePassed {
			g.State = GateOverruled
		}
	}
}

// closeGates ends those of a stage that is done.
func (s *State) closeGates() {
	for _, g := range s.gates {
		s.pastGates = append(s.pastGates, g.GateStatus)
	}
	if n := len(s.pastGates) - pastGates; n > 0 {
		s.pastGates = slices.Delete(s.pastGates, 0, n)
	}
	s.gates = nil
}

// gateStatuses are the gates for the header.
func (s *State) gateStatuses() []GateStatus {
	out := slices.Clone(s.pastGates)
	for _, g := range s.gates {
		st := g.GateStatus
		if s.Finished() && !g.decided() {
			st.State = GateStopped
		}
		out = append(out, st)
	}
	return out
}

// recoverGates takes what the last holder had measured. Each answer was
// persisted before anything rested on it; a question that was open then is
// asked again.
func (s *State) recoverGates(list []GateStatus) {
	st := s.plan.Spec.Stages[s.stage]
	for _, h := range list {
		if h.Stage != st.Name || !slices.Contains(st.Gate, h.Name) {
			s.pastGates = append(s.pastGates, h)
			continue
		}
		g := s.newGate(st.Name, h.Name)
		h.Kind, h.Needs = g.Kind, g.Needs
		if g.State != GateUnknown {
			g.GateStatus = h
		}
		s.gates = append(s.gates, g)
	}
	if len(s.gates) != len(st.Gate) {
		s.gates = nil // of another version: all anew
	}
}

// gatesWake tells when the next question is due.
func (s *State) gatesWake(earlier func(int64)) {
	if s.status != Baking || s.promoted {
		return
	}
	baked := s.Baked()
	if baked.After(s.now) {
		earlier(baked.UnixNano())
	}
	for _, g := range s.gates {
		if g.State == GateUnknown {
			return // it pauses when the open questions are answered
		}
	}
	for _, g := range s.gates {
		due := g.next
		if g.spec.During != DuringBake && due.Before(baked) {
			due = baked
		}
		if g.ask == 0 && !g.decided() && due.After(s.now) {
			earlier(due.UnixNano())
		}
	}
}

// AppendUpdated appends the nodes that have this rollout's revision, and
// AppendRest those that were not given an order yet: what a gate compares. Those
// that failed, or are in flight or lost, are neither.
func (s *State) AppendUpdated(buf []int) []int {
	for i := range s.nodes {
		if s.nodes[i].class == ClassApplied {
			buf = append(buf, i)
		}
	}
	return buf
}

// AppendRest is the other half of AppendUpdated.
func (s *State) AppendRest(buf []int) []int {
	for i := range s.nodes {
		if n := &s.nodes[i]; n.order.IsZero() && n.class != ClassApplied {
			buf = append(buf, i)
		}
	}
	return buf
}

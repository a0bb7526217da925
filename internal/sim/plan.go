package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// Plan is what a seed decides beforehand: who there is, and what goes wrong when.
// Events are independent of each other, so that any of them can be left out.
type Plan struct {
	Nodes, Orchestrators, Guards int
	// Ticks: the second orchestrator is a periodic job.
	Ticks bool
	// Holders are the locks that each of the holders takes.
	Holders []string
	// Freeze: the policy does not break where many sessions were lost.
	Freeze bool
	// Manual: nothing is broken without an approval. Gate: the first stage of a rollout
	// has a gate of a plugin.
	Manual, Gate bool
	// Group: a rollout has two configs, which a node takes both or none.
	Group bool
	// Then is what a rollout does that fails.
	Then   string
	Length time.Duration
	Events []Event
}

// Event is one thing that happens.
type Event struct {
	At   time.Duration
	Kind string
	Who  string
	For  time.Duration
	// N is a number whose meaning depends on the kind.
	N int
}

func (e Event) String() string {
	s := fmt.Sprintf("%8.3fs %s", e.At.Seconds(), e.Kind)
	if e.Who != "" {
		s += " " + e.Who
	}
	if e.For > 0 {
		s += " for " + e.For.Round(time.Millisecond).String()
	}
	if e.N > 0 {
		s += fmt.Sprintf(" (%d)", e.N)
	}
	return s
}

// Lines are the plan for people.
func (p *Plan) Lines() []string {
	out := []string{fmt.Sprintf("  %d nodes, %d orchestrators, %d locksmiths, holders of %s", p.Nodes, p.Orchestrators, p.Guards, strings.Join(p.Holders, ", "))}
	for _, e := range p.Events {
		out = append(out, "  "+e.String())
	}
	return out
}

// Without is the plan without some of its events.
func (p *Plan) Without(from, to int) *Plan {
	q := *p
	q.Events = append(slices.Clone(p.Events[:from]), p.Events[to:]...)
	return &q
}

// Kinds of events.
const (
	evGoal     = "new content"
	evCrash    = "kill"            // at the N-th of its effects after At
	evPower    = "power cut of"    // the same, and what was not synced is lost
	evPause    = "stop"            // SIGSTOP, and later SIGCONT
	evCut      = "no network for"  // N 1: connections are refused, else unanswered
	evFlaky    = "bad network for" // answers lost, requests dropped, late, twice
	evLeader   = "another leader"  // N 1: the lock-delays are forgotten
	evNoLeader = "no leader"
	evSessions = "all sessions end"
	evDiskFull = "disk full on"
	evLocks    = "lock files are removed on"
	evPut      = "an outsider rewrites lock"
	evDelete   = "an outsider deletes lock"
	evSilence  = "an operator silences lock"
	evSuspend  = "an operator suspends breaking"
	evCommand  = "an operator says" // Who is the verb
	evRequest  = "an operator asks to let go of lock"
	evApprove  = "an operator lets lock be broken"
	evBreak    = "an operator breaks lock"
	evRestore  = "Consul is restored"      // to what it was For before, and recovered
	evClock    = "the wall clock jumps of" // N is one of clockJumps
	evHeldUp   = "the next break is under way that ends a hold of lock"
	evIntent   = "the next intent is under way to break lock"
	evHang     = "stop whoever holds lock" // now, or next
)

// NewPlan makes the plan of a seed. harder adds to it, and leaves the rest as it is.
func NewPlan(seed uint64, harder bool) *Plan {
	r := rand.New(rand.NewPCG(seed, 0x51b))
	p := &Plan{
		Nodes: 3, Orchestrators: 1 + r.IntN(5)/3, Guards: max(0, r.IntN(10)-7), Ticks: r.IntN(2) == 0,
		Holders: []string{"job-a", "job-a"}, Then: orchestrator.ThenPause, Length: 10*time.Second + time.Duration(r.IntN(10))*time.Second,
	}
	if r.IntN(4) == 0 {
		p.Holders = append(p.Holders, "job-b", "job-b")
	}
	p.Freeze = r.IntN(6) == 0
	if r.IntN(3) == 0 {
		p.Then = orchestrator.ThenRollback
	}
	who := p.actors()
	nodes := who[:p.Nodes]
	at := func() time.Duration { return time.Second + time.Duration(r.Int64N(int64(p.Length-2*time.Second))) }
	long := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	for i := range 1 + r.IntN(3) {
		p.Events = append(p.Events, Event{At: at(), Kind: evGoal, N: i + 2})
	}
	for range 2 + r.IntN(7) {
		e := Event{At: at(), Who: who[r.IntN(len(who))]}
		switch r.IntN(20) {
		case 0, 1:
			e.Kind, e.For, e.N = evCrash, long(500*time.Millisecond, 12*time.Second), r.IntN(12)
		case 2, 3:
			e.Kind, e.For = evPause, long(time.Second, 25*time.Second)
		case 4:
			e.Kind, e.For = evCut, long(time.Second, 30*time.Second)
			e.N = r.IntN(2)
		case 5, 6:
			e.Kind, e.For = evFlaky, long(5*time.Second, 30*time.Second)
		case 7:
			e.Kind, e.Who, e.N = evLeader, "", r.IntN(2)
		case 8:
			e.Kind, e.Who, e.For = evNoLeader, "", long(time.Second, 15*time.Second)
		case 9:
			e.Kind, e.Who = evSessions, ""
		case 10:
			e.Kind, e.Who, e.For, e.N = evPower, nodes[r.IntN(len(nodes))], long(time.Second, 20*time.Second), r.IntN(12)
		case 11:
			e.Kind, e.Who, e.For = evDiskFull, nodes[r.IntN(len(nodes))], long(time.Second, 20*time.Second)
		case 12:
			e.Kind, e.Who, e.For = evLocks, nodes[r.IntN(len(nodes))], long(4*time.Second, 15*time.Second)
		case 13:
			e.Kind, e.Who = evPut, p.lock(r)
		case 14:
			e.Kind, e.Who = evDelete, p.lock(r)
		case 15:
			e.Kind, e.Who, e.For = evSilence, p.lock(r), long(5*time.Second, 30*time.Second)
		case 16:
			e.Kind, e.Who, e.For = evSuspend, "", long(5*time.Second, 20*time.Second)
		case 17:
			e.Kind, e.Who = evCommand, string(verbs[r.IntN(len(verbs))])
		case 18:
			e.Kind, e.Who, e.For = evFlaky, who[p.Nodes+r.IntN(len(who)-p.Nodes)], long(10*time.Second, 30*time.Second)
		case 19:
			// Whoever hangs under a lock wakes when others are about to break it.
			e.Kind, e.Who, e.For = evPause, fmt.Sprintf("job%d", 1+r.IntN(len(p.Holders))), long(8*time.Second, 20*time.Second)
		}
		p.Events = append(p.Events, e)
	}
	if r.IntN(8) == 0 {
		p.Events = append(p.Events, Event{At: p.Length/2 + long(0, p.Length/3), Kind: evRestore, For: long(time.Second, p.Length/3)})
	}
	p.byHand(rand.New(rand.NewPCG(seed, 0x51c)), at)
	if harder {
		p.heldUp(rand.New(rand.NewPCG(seed, 0x51d)))
		p.wrongClocks(rand.New(rand.NewPCG(seed, 0x51e)), who)
		if p.Group = rand.New(rand.NewPCG(seed, 0x51f)).IntN(4) == 0; p.Group {
			p.halfDone(rand.New(rand.NewPCG(seed, 0x520)), nodes)
		}
		if r := rand.New(rand.NewPCG(seed, 0x521)); r.IntN(4) == 0 {
			p.crowd(r)
		}
	}
	slices.SortStableFunc(p.Events, func(a, b Event) int { return int(a.At - b.At) })
	return p
}

// byHand adds what people and plugins do.
func (p *Plan) byHand(r *rand.Rand, at func() time.Duration) {
	p.Gate = r.IntN(4) == 0
	n := r.IntN(3)
	if p.Manual = !p.Freeze && r.IntN(6) == 0; p.Manual {
		n += 3
	}
	for range n {
		kind := []string{evRequest, evApprove, evApprove, evBreak}[r.IntN(4)]
		p.Events = append(p.Events, Event{At: at(), Kind: kind, Who: p.lock(r), For: 5*time.Second + time.Duration(r.Int64N(int64(20*time.Second)))})
	}
}

// heldUp has breaks take long on their way, so that a holder that hung comes to itself
// between the last look at it and the break.
func (p *Plan) heldUp(r *rand.Rand) {
	for range r.IntN(3) {
		at := time.Second + time.Duration(r.Int64N(int64(p.Length-2*time.Second)))
		p.Events = append(p.Events, Event{At: at, Kind: evHeldUp, Who: p.lock(r), For: time.Second + time.Duration(r.Int64N(int64(8*time.Second)))})
	}
}

// crowd has more locks hang at one moment than the budget allows to break, and their
// intents be under way together: all of them rest on the same budget.
func (p *Plan) crowd(r *rand.Rand) {
	at := time.Second + time.Duration(r.Int64N(int64(p.Length/3)))
	for _, lock := range []string{"job-a", "job-b", "job-c", "job-d"} {
		if !slices.Contains(p.Holders, lock) {
			p.Holders = append(p.Holders, lock, lock)
		}
		p.Events = append(p.Events,
			Event{At: at, Kind: evHang, Who: lock, For: 20*time.Second + time.Duration(r.Int64N(int64(15*time.Second)))},
			Event{At: at, Kind: evIntent, Who: lock, For: 3*time.Second + time.Duration(r.Int64N(int64(3*time.Second)))})
	}
}

// halfDone has a node end between the writes of one order for several configs, and fail
// at the next.
func (p *Plan) halfDone(r *rand.Rand, nodes []string) {
	goals := []time.Duration{0}
	for _, e := range p.Events {
		if e.Kind == evGoal {
			goals = append(goals, e.At)
		}
	}
	for range 1 + r.IntN(2) {
		node, at := nodes[r.IntN(len(nodes))], goals[r.IntN(len(goals))]
		kind := []string{evCrash, evPower}[r.IntN(2)]
		p.Events = append(p.Events, Event{At: min(at+time.Duration(r.Int64N(int64(5*time.Second))), p.Length-time.Second), Kind: kind, Who: node,
			For: 500*time.Millisecond + time.Duration(r.Int64N(int64(5*time.Second))), N: r.IntN(40)})
		if r.IntN(2) == 0 {
			p.Events = append(p.Events, Event{At: min(at+time.Duration(r.Int64N(int64(12*time.Second))), p.Length-time.Second), Kind: evDiskFull, Who: node,
				For: time.Second + time.Duration(r.Int64N(int64(10*time.Second)))})
		}
	}
}

// clockJumps are how far a clock is off after a jump: forth or back, little or much.
var clockJumps = []time.Duration{
	-24 * time.Hour, -time.Hour, -40 * time.Second, -time.Second, time.Second, 40 * time.Second, time.Hour, 24 * time.Hour,
}

func (p *Plan) configs() []string {
	if p.Group {
		return []string{configName, secondName}
	}
	return []string{configName}
}

// wrongClocks has the wall clocks of some be wrong from the start on, and jump.
func (p *Plan) wrongClocks(r *rand.Rand, who []string) {
	for range r.IntN(4) {
		at := time.Duration(r.Int64N(int64(p.Length))) * time.Duration(r.IntN(2))
		p.Events = append(p.Events, Event{At: at, Kind: evClock, Who: who[r.IntN(len(who))], N: r.IntN(len(clockJumps))})
	}
}

var verbs = []orchestrator.Verb{orchestrator.Pause, orchestrator.Resume, orchestrator.Abort, orchestrator.Rollback, orchestrator.Promote}

func (p *Plan) lock(r *rand.Rand) string {
	locks := append([]string{configName}, p.Holders...)
	return locks[r.IntN(len(locks))]
}

func (p *Plan) actors() []string {
	var out []string
	for i := range p.Nodes {
		out = append(out, fmt.Sprintf("n%d", i+1))
	}
	for i := range p.Orchestrators {
		out = append(out, fmt.Sprintf("orch%d", i+1))
	}
	for i := range p.Guards {
		out = append(out, fmt.Sprintf("smith%d", i+1))
	}
	for i := range p.Holders {
		out = append(out, fmt.Sprintf("job%d", i+1))
	}
	return out
}

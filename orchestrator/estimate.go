package orchestrator

import "time"

// Estimate is about how long a rollout takes, from how long nodes took before.
// It is for people: nothing is decided by it.
type Estimate struct {
	// Known: how long nodes take was measured. Without it Nodes is 0.
	Known bool
	// Nodes is the time in which nodes are in flight, Bakes the sum of the
	// bakes.
	Nodes, Bakes time.Duration
	// Gates is how many gates are asked after a bake, and Asking the least time
	// that takes: one that needs several passes asks at its interval.
	Gates  int
	Asking time.Duration
	// Manual is how many stages wait for an operator's promotion.
	Manual int
}

// Total is the sum of what is known.
func (e Estimate) Total() time.Duration { return e.Nodes + e.Bakes + e.Asking }

func (e *Estimate) stage(st *Stage, left int, gates []Gate, a *Answers, bake time.Duration) {
	if a != nil {
		e.Nodes += a.Time(left, st.MaxParallel)
	}
	e.Bakes += bake
	if st.Promote != "" {
		e.Manual++
	}
	longest := time.Duration(0)
	for _, name := range st.Gate {
		for i := range gates {
			if g := &gates[i]; g.Name == name && g.During == "" {
				e.Gates++
				longest = max(longest, time.Duration(max(0, g.SuccessLimit-1))*g.Interval)
			}
		}
	}
	e.Asking += longest
}

// EstimateNew estimates a rollout of a plan that has not begun. a may be nil.
func EstimateNew(p *Plan, a *Answers) Estimate {
	e := Estimate{Known: a != nil && a.N > 0}
	for i := range p.Spec.Stages {
		st := &p.Spec.Stages[i]
		from, end := p.Stage(i)
		left := end - from - p.UnchangedIn(i)
		if from == end || len(p.Unchanged) == p.Ends[len(p.Ends)-1] {
			continue // nothing to be watched
		}
		e.stage(st, left, p.Spec.Gates, a, st.Bake)
	}
	return e
}

// EstimateRest estimates what is left of a rollout as of now, from the header
// and its spec. Of one that has ended nothing is left.
func EstimateRest(h *Header, spec *Spec, a *Answers, now time.Time) Estimate {
	stages := spec.Stages
	e := Estimate{Known: a != nil && a.N > 0}
	if h.FinishedAt != nil {
		return e
	}
	for i, hs := range h.Stages {
		if i < h.StageIndex || i >= len(stages) || hs.From == hs.End {
			continue
		}
		st, bake := &stages[i], stages[i].Bake
		switch {
		case i > h.StageIndex:
		case h.Promoted:
			bake = 0
		case h.BakingSince != nil:
			bake = max(0, bake-max(h.Baked, now.Sub(*h.BakingSince)))
		}
		e.stage(st, hs.Left(), spec.Gates, a, bake)
	}
	return e
}

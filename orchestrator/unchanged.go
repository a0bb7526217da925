package orchestrator

import "fmt"

// SetUnchanged says which nodes have exactly what this plan would give them, and
// have answered so. They are given no order and count as applied from the
// beginning. It is part of making a plan: it must be done before the plan is
// used. Nodes of no stage are left out: they are none of this rollout's.
//
// Whoever says so holds the locks, and what he rests on was read under them: an
// order that stands for such a node is the last that was given, and the node has
// answered it. So its mark is as high as any order's that can still be on its way,
// and nothing older can be written there, although this hold's token never
// reaches it. A node whose last order is of another epoch is never one of these:
// after a restore of Consul what stands and what was answered may be older than
// what the node has.
func (p *Plan) SetUnchanged(nodes IndexSet) {
	p.Unchanged = nil
	last := p.Ends[len(p.Ends)-1]
	for _, i := range nodes {
		if i < last {
			p.Unchanged = append(p.Unchanged, i)
		}
	}
}

// UnchangedIn is how many nodes of a stage are unchanged.
func (p *Plan) UnchangedIn(stage int) (n int) {
	from, end := p.Stage(stage)
	for _, i := range p.Unchanged {
		if i >= from && i < end {
			n++
		}
	}
	return n
}

// checkUnchanged refuses a set that does not belong to the plan.
func (p *Plan) checkUnchanged() error {
	if n := len(p.Unchanged); n > 0 && (p.Unchanged[0] < 0 || p.Unchanged[n-1] >= p.Ends[len(p.Ends)-1]) {
		return fmt.Errorf("%w: nodes without a change are none of its own", ErrPlanDamaged)
	}
	return nil
}

// markUnchanged gives the plan's unchanged nodes their class.
func (s *State) markUnchanged() {
	for _, i := range s.plan.Unchanged {
		s.setClass(i, ClassApplied)
	}
}

// undone are the unchanged nodes of a rollout that went back: what they have is
// what they had before it.
func (s *State) undone() {
	for _, i := range s.plan.Unchanged {
		if s.nodes[i].class == ClassApplied {
			s.setClass(i, ClassRolledBack)
		}
	}
}

// untouched reports whether the rollout changes nothing on any node of its
// stages: all are unchanged or skipped.
func (s *State) untouched() bool {
	n := len(s.plan.Unchanged)
	if n == 0 {
		return false
	}
	for _, c := range s.stages {
		n += c[ClassSkipped]
	}
	return n == s.plan.Ends[len(s.plan.Ends)-1]
}

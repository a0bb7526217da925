package sim

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Options tune a run. They are no part of what a seed decides.
type Options struct {
	// Dir is where the disks of the nodes stand: a file system in memory is faster.
	Dir string
	// Trace keeps the whole history.
	Trace bool
}

// Result is what came of a run.
type Result struct {
	Seed uint64
	// Hash of the whole history, and how many steps it has.
	Hash  uint64
	Steps int
	// Took is how long it lasted in its own time.
	Took      time.Duration
	Violation *Violation
	Plan      *Plan
	Story     []string
	Trace     []string
}

// Run runs one seed with a plan, in a bubble of its own.
func Run(t *testing.T, seed uint64, plan *Plan, opts Options) (res *Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(seed, plan, opts)
		if err != nil {
			t.Fatal(err)
		}
		enroll(w)
		defer func() {
			leave(w)
			_ = os.RemoveAll(w.dir)
		}()
		w.tell()
		took := time.Since(w.start)
		w.end()
		res = &Result{Seed: seed, Hash: w.hash, Steps: w.steps, Took: took, Violation: w.violation, Plan: plan, Story: w.story, Trace: w.lines}
	})
	return res
}

// patience is how long it may take after the last fault until everything is as it
// shall be.
const patience = 6 * time.Minute

// tell is the whole story of a run.
func (w *World) tell() {
	for i := range w.plan.Nodes {
		w.addAgent(fmt.Sprintf("n%d", i+1))
	}
	w.addOrchestrator("orch1", false)
	if w.plan.Orchestrators > 1 {
		w.addOrchestrator("orch2", w.plan.Ticks)
	}
	for i := range w.plan.Guards {
		w.addGuard(fmt.Sprintf("smith%d", i+1))
	}
	for i, lock := range w.plan.Holders {
		w.addHolder(fmt.Sprintf("job%d", i+1), lock)
	}
	w.addOperator()
	w.goal.Store(1)
	for i, a := range w.actors {
		w.after(time.Duration(i)*37*time.Millisecond, "start "+a.name, a.start)
	}
	w.schedule()
	w.run(w.start.Add(w.plan.Length), nil)
	if w.failed() {
		return
	}
	w.calmDown()
	w.run(w.calm.Add(patience), w.converged)
	if !w.failed() && !w.converged() {
		w.fail(InvConverges, "%s after the last fault: %s", patience, w.missing())
	}
}

func (r *Result) String() string {
	if r.Violation == nil {
		return fmt.Sprintf("seed %d: fine, %d steps in %s", r.Seed, r.Steps, r.Took.Round(time.Second))
	}
	return fmt.Sprintf("seed %d: %s\n%s", r.Seed, r.Violation, strings.Join(r.Plan.Lines(), "\n"))
}

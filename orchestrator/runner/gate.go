package runner

import (
	"context"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// question is what a gate is asked: with the nodes as they stand now, since it is
// asked in the background.
func (d *drive) question(e orchestrator.AskGate) gates.Question {
	names := func(nodes []int) []string {
		out := make([]string, len(nodes))
		for i, n := range nodes {
			out[i] = d.plan.Nodes[n]
		}
		return out
	}
	return gates.Question{
		Gate: e.Gate, Rollout: d.plan.ID, Stage: e.Stage, Epoch: d.h.Epoch(), Token: d.h.Token(), Dir: d.dir,
		Updated: names(d.state.AppendUpdated(nil)), Rest: names(d.state.AppendRest(nil)),
	}
}

// ask puts a question to a gate in the background.
func (f *follower) ask(ctx context.Context, ask int, q gates.Question) {
	f.wg.Go(func() {
		a := f.r.gates.Ask(ctx, q)
		send(ctx, f.gates, orchestrator.GateAnswered{
			Ask: ask, Gate: q.Gate.Name, Answer: a.Answer, Error: a.Error, Value: a.Value, Why: a.Why,
		})
	})
}

package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// planEstimate is about how long a rollout takes, in seconds.
type planEstimate struct {
	// Known: nodes were measured in Rollouts former ones of the same config.
	// Where not, Seconds has the bakes and gates alone.
	Known    bool    `json:"known"`
	Seconds  float64 `json:"seconds"`
	Nodes    float64 `json:"nodes"`
	Bakes    float64 `json:"bakes"`
	Gates    float64 `json:"gates"`
	Measured int     `json:"measured"`
	Rollouts int     `json:"rollouts"`
	Manual   int     `json:"manual_promotions,omitempty"`

	words string
}

// foresee adds to a plan how long it takes and which agents are down now.
func (v *planView) foresee(ctx context.Context, r *runner.Runner, p *orchestrator.Plan) error {
	a, rollouts, err := r.Measured(ctx, &p.Spec)
	if err != nil {
		return err
	}
	e := orchestrator.EstimateNew(p, &a)
	v.Estimate = &planEstimate{
		Known: e.Known, Seconds: e.Total().Seconds(), Nodes: e.Nodes.Seconds(), Bakes: e.Bakes.Seconds(), Gates: e.Asking.Seconds(),
		Measured: a.N, Rollouts: rollouts, Manual: e.Manual, words: board.EstimateText(e, &a),
	}
	if v.NothingToDo {
		return nil
	}
	down, _, err := r.AgentsDown(ctx, p.Nodes)
	if err != nil {
		return err
	}
	if n := len(down); n > 0 {
		names := down[:min(n, maxNodesShown)]
		words := "the agents of " + strings.Join(names, " ")
		if n > len(names) {
			words += fmt.Sprintf(" and %d more", n-len(names))
		}
		words += " are down now: they end as unreachable, and get their order when they return"
		if most := p.Spec.Failure.MaxUnreachablePercent; n*100 > most*len(p.Nodes) {
			words += fmt.Sprintf("; that is more than max_unreachable_percent = %d tolerates", most)
		}
		v.Warnings = append(v.Warnings, words)
	}
	return nil
}

// when is the window's change in its own zone, and in this machine's where
// that is another one.
func (w *planWindow) when() string {
	words := w.Change.Format("Mon 2006-01-02 15:04 MST")
	if loc, err := time.LoadLocation(w.Timezone); err == nil {
		words = w.Change.In(loc).Format("Mon 2006-01-02 15:04 MST")
	}
	if here := w.Change.Local().Format("Mon 2006-01-02 15:04 MST"); here != words {
		words += " (here " + here + ")"
	}
	return words
}

package command

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/text"
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
	past, err := r.Past(ctx, &p.Spec)
	if err != nil {
		return err
	}
	a := past.Answers
	e := orchestrator.EstimateNew(p, &a)
	v.Estimate = &planEstimate{
		Known: e.Known, Seconds: e.Total().Seconds(), Nodes: e.Nodes.Seconds(), Bakes: e.Bakes.Seconds(), Gates: e.Asking.Seconds(),
		Measured: a.N, Rollouts: past.Measured, Manual: e.Manual, words: board.EstimateText(e, &a),
	}
	if v.NothingToDo {
		return nil
	}
	if h := past.RolledBack; h != nil {
		v.Warnings = append(v.Warnings, fmt.Sprintf("rollout %s brought this content, and was rolled back: %s", h.ID, text.Clip(first(h.Reason, "no reason is known"), 200)))
	}
	down, absent, err := r.AgentsDown(ctx, p.Nodes)
	if err != nil {
		return err
	}
	v.Warnings = append(v.Warnings, agentWords(down, absent, len(p.Nodes), p.Spec.Failure.MaxUnreachablePercent)...)
	switch n := len(down) + len(absent); {
	case n == len(p.Nodes):
		v.Estimate.words = "unknown: no agent is up"
	case n > 0:
		v.Estimate.words += fmt.Sprintf(", without %s whose agents are not up", text.Count(n, "node"))
	}
	return nil
}

// agentWords warns of nodes out of so many whose agents are down, and of those of
// whose name none is registered. most percent of them may be.
func agentWords(down, absent []string, nodes, most int) []string {
	var words []string
	switch n := len(absent); {
	case n == 1:
		words = append(words, fmt.Sprintf("no agent of the name %s is registered: is that what the agent there has as -node?", absent[0]))
	case n > 1:
		words = append(words, fmt.Sprintf("no agents of the names %s are registered: is that what the agents there have as -node?", firstOf(absent)))
	}
	switch n := len(down); {
	case n == 1:
		words = append(words, fmt.Sprintf("the agent of %s is down now.", down[0]))
	case n > 1:
		words = append(words, fmt.Sprintf("the agents of %s are down now.", firstOf(down)))
	}
	if len(words) == 0 {
		return nil
	}
	n := len(down) + len(absent)
	last := &words[len(words)-1]
	if n == 1 {
		*last += " It ends as unreachable, and gets its order when it returns"
	} else {
		*last += " They end as unreachable, and get their order when they return"
	}
	if n*100 > most*nodes {
		*last += fmt.Sprintf("; that is more than max_unreachable_percent = %d tolerates", most)
	}
	return words
}

// firstOf names the first of many nodes.
func firstOf(nodes []string) string {
	words := strings.Join(nodes[:min(len(nodes), maxNodesShown)], " ")
	if more := len(nodes) - maxNodesShown; more > 0 {
		words += fmt.Sprintf(" and %d more", more)
	}
	return words
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

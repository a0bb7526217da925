package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// driftShown is how many nodes are named on a terminal.
const driftShown = 10

// drifted finds the nodes where somebody else changed a file. That they cannot be
// read is no reason to fail.
func (m *Meta) drifted(ctx context.Context, r *runner.Runner, h *orchestrator.Header) (some []runner.Drifted, all int) {
	some, all, err := r.Drift(ctx, h)
	m.noDrift(err)
	return some, all
}

func (m *Meta) noDrift(err error) {
	if err != nil {
		m.Log.Warn("which nodes have a file that somebody else changed cannot be read", "error", err)
	}
}

// printRollout prints how a rollout that was worked on stands. Of one that has
// just come to its end each node's last word is its answer: nothing drifts yet.
func (m *Meta) printRollout(ctx context.Context, r *runner.Runner, out *runner.Outcome) error {
	h, note := &out.Header, out.Note
	var some []runner.Drifted
	all := 0
	if !out.Finished {
		var err error
		some, all, err = r.DriftOf(ctx, out)
		m.noDrift(err)
	}
	if m.JSON {
		v := viewRollout(h, note)
		v.Drifted, v.DriftedTotal = some, all
		return m.PrintJSON(v)
	}
	m.tellWords(rolloutText(h) + afterEnd(h, m.given.Judging, false))
	if note != "" {
		m.tellWords(fmt.Sprintf("  %-9s %s\n", "note", note))
	}
	m.tellWords(driftedText(some, all))
	return nil
}

// driftedText names the first of the nodes that drift; "" if none does.
func driftedText(some []runner.Drifted, all int) string {
	if all == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  %-9s %d changed by somebody else after the rollout\n", "drift", all)
	for _, d := range some[:min(len(some), driftShown)] {
		fmt.Fprintf(&b, "    %s  %s  %s\n", text.Printable(d.Node), text.Printable(d.Config), text.Clip(text.Printable(d.Text()), 200))
	}
	if n := all - driftShown; n > 0 {
		fmt.Fprintf(&b, "    and %d more: aimlock rollout status -json\n", n)
	}
	return b.String()
}

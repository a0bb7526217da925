package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// nodesKept bounds the names of a class of nodes that a report has, and nodesNamed
// those that people are shown.
const (
	nodesKept  = 100
	nodesNamed = 12
)

// classNodes are the nodes of one class of a rollout.
type classNodes struct {
	class orchestrator.Class
	// names are the first of them.
	names []string
	total int
}

type nodeSet struct {
	class orchestrator.Class
	set   orchestrator.IndexSet
}

// nodesOf finds who stands apart in a rollout: who has not applied it, and of one that
// has ended who has, where those are the few. It reads no more than the plan.
func nodesOf(ctx context.Context, r *runner.Runner, h *orchestrator.Header) []classNodes {
	sets := []nodeSet{
		{orchestrator.ClassFailed, h.Failed}, {orchestrator.ClassUnreachable, h.Unreachable}, {orchestrator.ClassSkipped, h.Skipped},
		{orchestrator.ClassRolledBack, h.RolledBack}, {orchestrator.ClassSuperseded, h.SupersededNodes},
	}
	apart := map[int]bool{}
	for _, s := range sets {
		for _, i := range s.set {
			apart[i] = true
		}
	}
	if len(apart) == 0 || h.PlanChunks == 0 || h.PlanDropped {
		return nil
	}
	plan, err := r.PlanOf(ctx, h)
	if err != nil {
		return nil // counts are shown all the same
	}
	var out []classNodes
	if applied := h.Counts[orchestrator.ClassApplied]; h.FinishedAt != nil && applied > 0 && applied < len(apart) {
		var set orchestrator.IndexSet
		for i := range plan.Nodes {
			if !apart[i] {
				set = append(set, i)
			}
		}
		sets = slices.Insert(sets, 0, nodeSet{orchestrator.ClassApplied, set})
	}
	for _, s := range sets {
		if len(s.set) == 0 {
			continue
		}
		c := classNodes{class: s.class, total: len(s.set)}
		for _, i := range s.set[:min(len(s.set), nodesKept)] {
			if i >= 0 && i < len(plan.Nodes) {
				c.names = append(c.names, plan.Nodes[i])
			}
		}
		out = append(out, c)
	}
	return out
}

// nodesText names the first of each class. Nodes whose problem is told need no name.
func nodesText(list []classNodes, h *orchestrator.Header) string {
	told := map[string]int{}
	for _, p := range h.Problems {
		told[p.Class]++
	}
	var b strings.Builder
	for _, c := range list {
		if told[c.class.String()] >= c.total {
			continue
		}
		shown := c.names[:min(len(c.names), nodesNamed)]
		fmt.Fprintf(&b, "  %-9s %s", c.class, text.Printable(strings.Join(shown, " ")))
		if more := c.total - len(shown); more > 0 {
			fmt.Fprintf(&b, " and %d more", more)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// namesByClass is the same for programs.
func namesByClass(list []classNodes) map[string][]string {
	out := map[string][]string{}
	for _, c := range list {
		out[c.class.String()] = c.names
	}
	return out
}

// leftBehind says what a rollout that has ended leaves to be done; "" for nothing.
func leftBehind(h *orchestrator.Header, start string) string {
	applied, failed := h.Counts[orchestrator.ClassApplied], h.Counts[orchestrator.ClassFailed]
	switch {
	case h.State == orchestrator.Aborted && applied > 0 && applied < h.Total:
		return fmt.Sprintf("it left the fleet mixed, %d of %d with this content and the others with what they had: `%s` of any content, this one too, brings all nodes to one", applied, h.Total, start)
	case h.State == orchestrator.Succeeded && failed > 0 && len(h.Stages) > 0 && h.Stages[len(h.Stages)-1].End == h.Total:
		return fmt.Sprintf("`%s` of the same serves what failed again, %s; a tick does not", start, text.Count(failed, "node"))
	}
	return ""
}

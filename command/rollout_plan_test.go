package command

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
)

// A rollout of what all nodes have already bakes nothing and waits for nobody, and its
// plan does not say that it does.
func TestPlanOfWhatNodesHaveAlready(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		canary, rest int
		want         []string
	}{
		{0, 0, []string{"1 node, which makes 1 of 4, bakes 10s", "3 nodes, which makes 4 of 4, 2 at a time, waits for an operator's promote"}},
		{1, 0, []string{"makes 1 of 4, has it already and gets no order, bakes 10s", "2 at a time, waits"}},
		{0, 1, []string{"bakes 10s", "makes 4 of 4, 1 of them has it already and gets no order, 2 at a time, waits"}},
		{1, 3, []string{"makes 1 of 4, has it already and gets no order\n", "makes 4 of 4, all have it already and get no order, 2 at a time\n"}},
	} {
		v := planView{Name: "app", Total: 4, Stages: []planStage{
			{Name: "canary", Nodes: []string{"a"}, Bake: 10, Unchanged: c.canary},
			{Name: "rest", Nodes: []string{"b", "c", "d"}, MaxParallel: 2, Promote: orchestrator.PromoteManual, Unchanged: c.rest},
		}}
		for _, want := range c.want {
			if got := v.text(); !strings.Contains(got, want) {
				t.Errorf("%d and %d unchanged: no %q in\n%s", c.canary, c.rest, want, got)
			}
		}
	}
}

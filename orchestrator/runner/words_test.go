package runner

import (
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
)

// A rollback that was ordered is not done before every node is back.
func TestResultOfAnOrder(t *testing.T) {
	for _, c := range []struct {
		state        orchestrator.Status
		result, want string
	}{
		{orchestrator.RollingBack, "done", "taken"},
		{orchestrator.RollingBack, "it is rolling back already", "it is rolling back already"},
		{orchestrator.RolledBack, "done", "done"},
		{orchestrator.Paused, "", "done"},
	} {
		h := &orchestrator.Header{State: c.state, Command: &orchestrator.CommandSeen{Result: c.result}}
		if got := result(h); got != c.want {
			t.Errorf("%s, %q: %q, not %q", c.state, c.result, got, c.want)
		}
	}
}

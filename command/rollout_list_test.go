package command

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// A rollout that was finished on a host whose clock is hours behind took no
// negative time.
func TestTookText(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	later, earlier := at.Add(90*time.Second), at.Add(-35*time.Hour)
	for _, c := range []struct {
		start, end *time.Time
		want       string
	}{{nil, nil, "-"}, {&at, nil, "-"}, {&at, &later, "1m30s"}, {&at, &earlier, "-"}} {
		if got := tookText(&orchestrator.Header{StartedAt: c.start, FinishedAt: c.end}); got != c.want {
			t.Errorf("%v to %v: %q, want %q", c.start, c.end, got, c.want)
		}
	}
}

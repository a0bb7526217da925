package runner

import (
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

// window tells when a rollout may assign nodes; without one it always may.
type window struct{ s *schedule.Schedule }

func newWindow(w *orchestrator.Window) (window, error) {
	if w == nil {
		return window{}, nil
	}
	s, err := schedule.Parse(*w)
	return window{s}, err
}

// at reports whether the window is open, and when that changes; the zero time
// is never.
func (w window) at(now time.Time) (open bool, change time.Time) {
	if w.s == nil {
		return true, time.Time{}
	}
	return w.s.At(now)
}

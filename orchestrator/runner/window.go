package runner

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/aim-control/aimlock/orchestrator"
)

// window tells when a rollout may assign nodes.
type window struct {
	schedule cron.Schedule
	duration time.Duration
	loc      *time.Location
}

// newWindow makes a window of a spec's; nil for none, which is always open.
func newWindow(w *orchestrator.Window) (*window, error) {
	if w == nil {
		return nil, nil //nolint:nilnil // no window is a window that is always open
	}
	s, err := cron.ParseStandard(w.Schedule)
	if err != nil {
		return nil, fmt.Errorf("window: schedule %q: %w", w.Schedule, err)
	}
	loc, err := time.LoadLocation(w.Timezone)
	if err != nil {
		return nil, fmt.Errorf("window: %w", err)
	}
	return &window{schedule: s, duration: w.Duration, loc: loc}, nil
}

// at reports whether the window is open, and when that changes.
func (w *window) at(now time.Time) (open bool, until time.Time) {
	if w == nil {
		return true, time.Time{}
	}
	// The first opening after now-duration is either one that has not closed
	// yet or the next.
	t := w.schedule.Next(now.In(w.loc).Add(-w.duration))
	if t.IsZero() {
		return false, time.Time{}
	}
	if t.After(now) {
		return false, t
	}
	return true, t.Add(w.duration)
}

// Window reports whether the spec's window is open at now, and when that
// changes; without a window it is always open.
func Window(w *orchestrator.Window, now time.Time) (open bool, until time.Time, err error) {
	win, err := newWindow(w)
	if err != nil {
		return false, time.Time{}, err
	}
	open, until = win.at(now)
	return open, until, nil
}

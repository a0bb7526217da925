package board

import (
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// State is a rollout's state in words: of a paused one since when, and for how long.
func State(h *orchestrator.Header, now time.Time) string {
	since := PausedSince(h, now)
	if since == "" {
		return string(h.State)
	}
	return string(h.State) + " " + since
}

// PausedSince says since when a rollout is paused, and for how long; "" if it is not,
// or that is not known. The time is of who paused it.
func PausedSince(h *orchestrator.Header, now time.Time) string {
	since := pausedAt(h, now)
	if since == "" {
		return ""
	}
	if d := now.Sub(h.Paused.At); d >= time.Second {
		since += " (" + Duration(d.Truncate(time.Second)) + ")"
	}
	return since
}

func pausedAt(h *orchestrator.Header, now time.Time) string {
	if h.State != orchestrator.Paused || h.Paused == nil || h.Paused.At.IsZero() {
		return ""
	}
	return "since " + clock(h.Paused.At, now)
}

// unplanned reports whether a rollout has no nodes yet: it waits for its turn.
func unplanned(h *orchestrator.Header) bool { return h.State == orchestrator.Waiting && h.Total == 0 }

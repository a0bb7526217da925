package nomaddevice

import "time"

// unknownGrace is for how long what was known before stands when it cannot be had
// any more: Consul elects a leader, an agent is restarted.
const unknownGrace = 10 * time.Second

// graced is something that can become unknown. The zero value was never known.
type graced[T any] struct {
	now     T
	unknown bool
	// before is what was known last, and since from when on it is not; had: there
	// was something.
	before T
	had    bool
	since  time.Time
}

// take takes in what is known at a time, or that it is unknown; v then says why.
func (g *graced[T]) take(v T, unknown bool, at time.Time) {
	if unknown && !g.unknown {
		g.since = at
	}
	g.now, g.unknown = v, unknown
	if !unknown {
		g.before, g.had = v, true
	}
}

// at is what is to be shown, and for how long that stands if nothing is taken in;
// 0: without an end.
func (g *graced[T]) at(now time.Time) (v T, stands time.Duration) {
	if g.unknown && g.had {
		if left := unknownGrace - now.Sub(g.since); left > 0 {
			return g.before, left
		}
	}
	return g.now, 0
}

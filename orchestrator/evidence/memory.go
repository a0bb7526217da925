package evidence

import (
	"sync"
	"time"
)

// Memory is what one observer saw with its own eyes and clock of one lock:
// since when things stand as they do. Consul does not tell it. The times are
// this process's, monotonic; no other machine's clock enters.
type Memory struct {
	mu   sync.Mutex
	hold string
	// since holds, for each thing watched, the version seen last and when it
	// was seen first.
	since map[string]seen
}

type seen struct {
	version uint64
	at      time.Time
	// changed: the version was seen to change, so at is when it did and not
	// only when watching began.
	changed bool
}

// Observe notes a snapshot. Times of an earlier hold are forgotten.
func (m *Memory) Observe(s *Snapshot, r *Reader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := s.Hold(); m.since == nil || h != m.hold {
		hadHold := m.since != nil
		m.hold, m.since = h, map[string]seen{}
		m.note("hold", 1, s.ReadAt, hadHold)
	}
	m.note("progress", s.Deps[r.Keys.Progress(s.Name)], s.ReadAt, false)
	if s.Holder != nil && s.Holder.RolloutID != "" {
		m.note("rollout", s.Deps[r.Keys.Rollout(s.Holder.RolloutID)], s.ReadAt, false)
	}
	if id, c := s.checkOf(); c != nil {
		m.note("check "+id+" "+c.Status, 1, s.ReadAt, false)
	}
}

func (m *Memory) note(what string, version uint64, at time.Time, changed bool) {
	old, ok := m.since[what]
	if ok && old.version == version {
		return
	}
	m.since[what] = seen{version: version, at: at, changed: ok || changed}
}

// standing is for how long what has been seen to stand still, and whether the
// observer saw it begin (else it may have stood for longer).
func (m *Memory) standing(what string, now time.Time) (d time.Duration, whole, ok bool) {
	if m == nil {
		return 0, false, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.since[what]
	if !ok {
		return 0, false, false
	}
	return max(0, now.Sub(s.at)), s.changed, true
}

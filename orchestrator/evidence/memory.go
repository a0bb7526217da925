package evidence

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// Memory is what one observer saw with its own eyes and clock of one lock:
// since when things stand as they do. Consul does not tell it. The times are
// this process's, monotonic; no other machine's clock enters.
type Memory struct {
	mu   sync.Mutex
	hold string
	// since holds, for each thing watched, the version seen last and when it
	// was seen first. There are few; nil: nothing was observed yet.
	since []seen
	// first and last are the progress of the hold as it was seen first and
	// when it was seen to change last.
	first, last worked
	// lookedAt is when the lock was seen last, and ended how its hold ended.
	lookedAt time.Time
	delay    time.Duration
	ended    ending
}

// ending is an end of a hold that was seen: it came after the one moment, and
// not after the other.
type ending struct {
	after, by time.Time
	// delay is the lock-delay of the session that held it.
	delay time.Duration
}

// seen is a version of one thing.
//
// Invariant: at is not before the version stood, so that an age counted from it
// is never more than the true one.
type seen struct {
	what    string
	version string
	at      time.Time
	// changed: the version was seen to change, so at is when it did and not
	// only when watching began.
	changed bool
	// mark names the version to others; empty: the version does.
	mark string
}

type worked struct {
	session string
	done    int64
	at      time.Time
}

// Observe notes a snapshot. Times of an earlier hold are forgotten.
func (m *Memory) Observe(s *Snapshot, r *Reader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := s.Hold(); m.since == nil || h != m.hold {
		hadHold := m.since != nil
		m.ended = ending{}
		if m.hold != "" && m.heldLast() && !s.Held() {
			m.ended = ending{after: m.lookedAt, by: s.ReadAt, delay: m.delay}
		}
		m.hold, m.since = h, make([]seen, 0, 2)
		m.first, m.last = worked{}, worked{}
		m.note("hold", h, s.ReadAt, hadHold)
	}
	m.note("progress", version(s.Deps[r.Keys.Progress(s.Name)]), s.ReadAt, false)
	if s.Holder != nil && s.Holder.RolloutID != "" {
		m.note("rollout", version(s.Deps[r.Keys.Rollout(s.Holder.RolloutID)]), s.ReadAt, false)
	}
	if id, c := s.checkOf(); c != nil {
		// A check that left its status and came back between two looks has another
		// index. While it passes each new output gives it one, too.
		v := c.Status
		if v != api.HealthPassing {
			v = checkMark(c)
		}
		m.note("check "+id, v, s.ReadAt, false).mark = checkMark(c)
	}
	m.lookedAt, m.delay = s.ReadAt, -1
	if s.Session != nil {
		m.delay = s.Session.LockDelay
	}
	if p := s.Progress; p != nil && s.Held() {
		now := worked{session: p.Session, done: p.Done, at: s.ReadAt}
		if m.first.session != p.Session {
			m.first, m.last = now, now
		} else if m.last.done != p.Done {
			m.last = now
		}
	}
}

// heldLast: the hold seen last is one of a session, and not the lack of one.
func (m *Memory) heldLast() bool { return !strings.HasPrefix(m.hold, "@") }

func checkMark(c *api.HealthCheck) string { return c.Status + "@" + version(c.ModifyIndex) }

func version(index uint64) string { return strconv.FormatUint(index, 10) }

// note returns what is known of a thing from now on.
func (m *Memory) note(what, version string, at time.Time, changed bool) *seen {
	old := m.of(what)
	switch {
	case old == nil:
		m.since = append(m.since, seen{what: what, version: version, at: at, changed: changed, mark: version})
		return &m.since[len(m.since)-1]
	case old.version != version:
		*old = seen{what: what, version: version, at: at, changed: true, mark: version}
	}
	return old
}

// of is nil for what was never noted.
func (m *Memory) of(what string) *seen {
	for i := range m.since {
		if m.since[i].what == what {
			return &m.since[i]
		}
	}
	return nil
}

// standing is for how long what has been seen to stand still, and whether the
// observer saw it begin (else it may have stood for longer).
func (m *Memory) standing(what string, now time.Time) (d time.Duration, whole, ok bool) {
	if m == nil {
		return 0, false, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.of(what)
	if s == nil {
		return 0, false, false
	}
	return max(0, now.Sub(s.at)), s.changed, true
}

// rateSpan is the least time that a rate is told over.
const rateSpan = 10 * time.Second

// rate is how many units of work a second this observer saw done.
func (m *Memory) rate(now time.Time) (float64, bool) {
	if m == nil {
		return 0, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	span := now.Sub(m.first.at)
	if m.first.session == "" || span < rateSpan {
		return 0, false
	}
	return float64(m.last.done-m.first.done) / span.Seconds(), true
}

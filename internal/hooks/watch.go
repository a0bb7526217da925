package hooks

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// watch remembers the locks that are HOT or UNKNOWN, so that each is told once.
type watch struct {
	mu      sync.Mutex
	stopped bool
	// muted: another process is known to watch the same, and tells.
	muted bool
	locks map[string]*watched
}

// watched is one lock that is not as it should be.
type watched struct {
	state, hold string
	since       time.Time
	last        Event
	timers      []*time.Timer
	// due are events that would have been told but for another who tells.
	due []func()
}

// Seen tells of the verdict on a lock, each time that there is one; e has Lock,
// State, Session and Token and whatever else is known. The hooks are told once
// when a hold becomes HOT, and once when a lock has been UNKNOWN for as long as
// each wants. It costs a look into a map while the lock is neither.
//
// Time is this process's monotonic clock: a locksmith that starts counts anew.
func (n *Notifier) Seen(e Event) {
	if n == nil {
		return
	}
	w := &n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped {
		return
	}
	old := w.locks[e.Lock]
	if e.State != stateHot && e.State != stateUnknown {
		if old != nil {
			old.stop()
			delete(w.locks, e.Lock)
		}
		return
	}
	hold := e.Session + "@" + strconv.FormatUint(e.Token, 10)
	if old != nil && old.state == e.State && old.hold == hold {
		old.last = e
		return
	}
	if old != nil {
		old.stop()
	}
	now := &watched{state: e.State, hold: hold, since: time.Now(), last: e}
	if w.locks == nil {
		w.locks = map[string]*watched{}
	}
	w.locks[e.Lock] = now
	if e.State == stateHot {
		e.Kind, e.ID = Hot, seenID(Hot, &e)
		w.tell(now, func() { n.Notify(e) })
		return
	}
	for _, h := range n.hooks {
		if wants(h.cfg.On, Unknown) {
			now.timers = append(now.timers, time.AfterFunc(h.cfg.UnknownAfter, func() { n.unknown(h, now) }))
		}
	}
}

// States of a lock, as the locksmith names them.
const (
	stateHot     = "HOT"
	stateUnknown = "UNKNOWN"
)

// unknown tells a hook of a lock that was UNKNOWN all the while.
func (n *Notifier) unknown(h *hook, l *watched) {
	n.watch.mu.Lock()
	defer n.watch.mu.Unlock()
	if n.watch.locks[l.last.Lock] != l || n.watch.stopped {
		return
	}
	n.watch.tell(l, func() {
		e := l.last
		e.Kind, e.ID, e.For = Unknown, seenID(Unknown, &e), time.Since(l.since).Seconds()
		n.tell(h, e)
	})
}

// tell is called with the lock of w held, as is do.
func (w *watch) tell(l *watched, do func()) {
	if w.muted {
		l.due = append(l.due, do)
		return
	}
	do()
}

// Mute is set while another process is known to watch the same locks and to tell
// of them: what Seen makes of them is put off. When it is not any more, what still
// stands is told, with the ids that the other one gave it.
func (n *Notifier) Mute(muted bool) {
	if n == nil {
		return
	}
	w := &n.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.muted = muted; muted {
		return
	}
	for _, l := range w.locks {
		for _, do := range l.due {
			do()
		}
		l.due = nil
	}
}

// seenID names what was seen, whoever saw it.
func seenID(kind string, e *Event) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %d %q", kind, e.Key, e.Session, e.Token, e.Rule))
	return base32.StdEncoding.EncodeToString(sum[:16])[:26]
}

func (l *watched) stop() {
	for _, t := range l.timers {
		t.Stop()
	}
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	for _, l := range w.locks {
		l.stop()
	}
	w.locks = nil
}

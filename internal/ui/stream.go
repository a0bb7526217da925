package ui

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Bounds of a stream.
const (
	// calm is the least time between two events of a stream: nobody reads faster.
	calm = 250 * time.Millisecond
	// beat is how often a stream says something, so that a viewer that is gone is
	// found out, and a page knows that its server is there.
	beat = 10 * time.Second
	// sendPatience is how long a viewer may take to read one event.
	sendPatience = 15 * time.Second
	// maxStreams bounds the viewers.
	maxStreams = 100
)

// What a stream may show in detail.
const (
	viewLocks    = "locks"
	viewLock     = "lock"
	viewRollouts = "rollouts"
	viewRollout  = "rollout"
	viewPolicies = "policies"
)

// stream is one viewer's.
type stream struct {
	s    *Server
	w    http.ResponseWriter
	ctl  *http.ResponseController
	view string
	id   string

	// sent is what was sent last, by event, and rows the state of each lock that
	// the viewer has.
	sent map[string][]byte
	rows map[string]uint64
	// told is the state of the detail that the viewer has.
	told  string
	retry *time.Timer
	// away: Consul did not answer when the rows were sent last.
	away bool
	// policies is the board's that the viewer has.
	policies int
}

// events serves what changes, until the viewer leaves or the server ends.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	st := &stream{s: s, w: w, ctl: http.NewResponseController(w), view: q.Get("view"), id: q.Get("id"), sent: map[string][]byte{}, rows: map[string]uint64{}}
	switch st.view {
	case viewLocks, viewRollouts, viewPolicies:
	case viewLock, viewRollout:
		if st.id == "" || len(st.id) > 1000 {
			reply(w, http.StatusBadRequest, failure{"id is missing: which one?"})
			return
		}
	default:
		reply(w, http.StatusBadRequest, failure{"view must be locks, lock, rollouts, rollout or policies"})
		return
	}
	l, leave, ok := s.board.look()
	if !ok {
		reply(w, http.StatusServiceUnavailable, failure{fmt.Sprintf("%d pages are open already", maxStreams)})
		return
	}
	defer leave()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // a proxy is to pass each event on
	w.WriteHeader(http.StatusOK)
	ctx := r.Context()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	st.retry = time.NewTimer(time.Hour)
	st.retry.Stop()
	defer st.retry.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-s.board.ctx.Done():
			return
		case <-tick.C:
			err = st.write([]byte(": here\n\n"))
		case <-st.retry.C:
			l.poke()
		case <-l.wake:
			if err = st.show(ctx); err == nil {
				err = wait(ctx, calm)
			}
		}
		if err != nil {
			if ctx.Err() == nil {
				s.log.Debug("a viewer is dropped", "error", err)
			}
			return
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// show sends what the viewer does not have yet.
func (st *stream) show(ctx context.Context) error {
	if err := st.send("summary", st.s.board.summary(time.Now())); err != nil {
		return err
	}
	switch st.view {
	case viewLocks:
		if err := st.sendRows(); err != nil {
			return err
		}
		if free, ok := st.s.board.freeLocks(); ok {
			return st.send("free", free)
		}
	case viewRollouts:
		if list, ok := st.s.board.allRollouts(); ok {
			return st.send("rollouts", list)
		}
	case viewLock:
		if list, ok := st.s.board.rolloutsOf(st.id); ok {
			if err := st.send("rollouts", list); err != nil {
				return err
			}
		}
		return st.sendDetail(ctx, "lock", st.s.lockDetail)
	case viewRollout:
		if d, ok := st.s.board.driving(st.id); ok {
			if err := st.send("driving", d); err != nil {
				return err
			}
		}
		return st.sendDetail(ctx, "rollout", st.s.rolloutDetail)
	case viewPolicies:
		rev := st.s.board.policiesRev()
		if rev == st.policies && st.sent["failed"] == nil {
			return nil
		}
		st.policies = rev
		return st.sendDetail(ctx, "policies", st.s.policiesDetail)
	}
	return nil
}

// send sends an event, unless the last of its name said the same.
func (st *stream) send(event string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("event %s: %w", event, err)
	}
	if bytes.Equal(st.sent[event], text) {
		return nil
	}
	st.sent[event] = text
	return st.event(event, text)
}

func (st *stream) event(event string, text []byte) error {
	return st.write(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", event, text))
}

func (st *stream) write(b []byte) error {
	if err := st.ctl.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := st.w.Write(b); err != nil {
		return err
	}
	return st.ctl.Flush()
}

// sendRows sends the locks that changed.
func (st *stream) sendRows() error {
	away := st.s.board.isAway()
	if st.away != away {
		// All viewers are shown the ages of one moment while Consul is away, and as
		// of now once it is back.
		for key := range st.rows {
			st.rows[key] = 0
		}
	}
	st.away = away
	ch, ok := st.s.board.changedRows(st.rows, time.Now())
	if _, before := st.sent["locks"]; !ok || before && len(ch.Set)+len(ch.Gone) == 0 {
		return nil
	}
	st.sent["locks"] = nil
	text, err := json.Marshal(ch)
	if err != nil {
		return fmt.Errorf("event locks: %w", err)
	}
	return st.event("locks", text)
}

// again is when a detail that could not be read is tried again.
const again = 2 * time.Second

// sendDetail sends what the page is about, if its state is another one than the
// viewer has.
func (st *stream) sendDetail(ctx context.Context, event string, find func(ctx context.Context, id string, told string) (state string, v any, err error)) error {
	state, v, err := find(ctx, st.id, st.told)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		st.retry.Reset(again)
		st.told = ""
		return st.send("failed", failure{err.Error()})
	case v == nil:
		return nil
	}
	delete(st.sent, "failed")
	st.told = state
	return st.send(event, v)
}

package locksmith

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
)

func registers(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/agent/service/register") }

// The check of an acquisition is made beside the reading of a lock. If somebody
// has it, it is not kept for the length of the wait, and another one is made
// when the lock is free.
func TestCheckMadeAhead(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		first := w.acquire(w.client(), one("a"))
		made := 0
		w.net.before(registers, func() { made++ })
		p := w.acquiring(w.client(), one("a"))
		p.waits(time.Minute)
		if made != 1 || w.services() != 1 || w.sessions() != 1 {
			t.Errorf("%d checks were made ahead; %d services and %d sessions while it waits", made, w.services(), w.sessions())
		}
		w.release(first)
		h := p.wait(time.Second)
		w.stillHolds(h)
		if !h.Checked() || w.services() != 1 || w.sessions() != 1 {
			t.Errorf("checked %v, %d services, %d sessions", h.Checked(), w.services(), w.sessions())
		}
		w.release(h)
		if w.services() != 0 || w.sessions() != 0 {
			t.Errorf("%d services and %d sessions are left", w.services(), w.sessions())
		}
	})
}

// A check that was made ahead goes with an acquisition that comes to nothing.
func TestCheckMadeAheadForNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.put(w.keys.Lock("a"), "no lock")
		if _, err := w.client().Acquire(t.Context(), one("a")); !errors.Is(err, ErrPlainKey) {
			t.Fatal(err)
		}
		// Who asks once, and is refused, makes none.
		first := w.acquire(w.client(), one("b"))
		made := 0
		w.net.before(registers, func() { made++ })
		try := one("b")
		try.Try = true
		if _, err := w.client().Acquire(t.Context(), try); err == nil || made != 0 {
			t.Errorf("%v; %d checks were made", err, made)
		}
		w.release(first)
		if w.services() != 0 || w.sessions() != 0 {
			t.Errorf("%d services and %d sessions are left", w.services(), w.sessions())
		}
	})
}

// The lease of a check that was made ahead counts from its beginning, however
// long the reading took.
func TestLeaseOfACheckMadeAhead(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.net.before(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/txn") }, func() { time.Sleep(time.Second) })
		h := w.acquire(w.client(), one("a"))
		if left := h.LeaseLeft(); left > CheckTTL-LeaseMargin-time.Second {
			t.Errorf("%s are left of the lease", left)
		}
	})
}

// A service that cannot be deregistered does not keep the session of a clean
// release.
func TestCleanEndWithoutDeregistering(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/deregister/") }, Status: http.StatusForbidden})
		w.release(h)
		if w.sessions() != 0 {
			t.Errorf("%d sessions are left", w.sessions())
		}
	})
}

// A release does not wait for the end of its session where that is put off: the
// lock is free for the next, whose hold the end does not touch. Close waits.
func TestEndLater(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(func(c *Config) { c.EndLater = true })
		h := w.acquire(c, one("a"))
		w.net.before(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/deregister/") }, func() { time.Sleep(time.Second) })
		start := time.Now()
		w.release(h)
		if took := time.Since(start); took >= time.Second {
			t.Errorf("the release took %s", took)
		}
		next := w.acquire(w.client(), one("a"))
		if err := c.Close(t.Context()); err != nil || w.services() != 1 || w.sessions() != 1 {
			t.Errorf("%v; %d services and %d sessions beside those of the next holder", err, w.services(), w.sessions())
		}
		w.stillHolds(next)
		w.release(next)
		w.close(c)
	})
}

// A session that was made ahead is fresh for each acquisition, also of a client
// that keeps its check.
func TestReusedCheckAhead(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		first := w.acquire(w.client(), one("a"))
		p := w.acquiring(c, one("a"))
		p.waits(10 * time.Second)
		if w.sessions() != 1 {
			t.Errorf("%d sessions while one holds and one waits", w.sessions())
		}
		w.release(first)
		h := p.wait(time.Second)
		w.release(h)
		w.close(c)
	})
}

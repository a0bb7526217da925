package locksmith

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The tests of this file are about a client that keeps its check for the next
// acquisition.

func reusing(c *Config) { c.Reuse = true }

func (w *world) services() int {
	w.t.Helper()
	m, err := w.kv.API().Agent().Services()
	if err != nil {
		w.t.Fatal(err)
	}
	return len(m)
}

func (w *world) sessions() int {
	w.t.Helper()
	l, _, err := w.kv.API().Session().List(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(l)
}

func (w *world) release(h *Hold) {
	w.t.Helper()
	if err := h.Release(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close(c *Client) {
	w.t.Helper()
	if err := c.Close(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if w.services() != 0 || w.sessions() != 0 {
		w.t.Errorf("%d services and %d sessions are left", w.services(), w.sessions())
	}
}

// Each acquisition has a session of its own and a greater token; the check is the
// same. Close leaves nothing.
func TestReuse(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a := w.acquire(c, one("x"))
		b := w.acquire(c, one("y"))
		w.stillHolds(a)
		if err := c.Close(t.Context()); err == nil {
			t.Error("it was closed while a lock was held")
		}
		w.release(a)
		d := w.acquire(c, one("x"))
		if a.sess.service != b.sess.service || a.sess.service != d.sess.service || w.services() != 1 {
			t.Errorf("checks %s, %s, %s; %d services", a.sess.service, b.sess.service, d.sess.service, w.services())
		}
		if a.Session() == d.Session() || a.Session() == b.Session() || d.Token() <= a.Token() {
			t.Errorf("sessions %s, %s, %s; token %d after %d", a.Session(), b.Session(), d.Session(), d.Token(), a.Token())
		}
		time.Sleep(time.Minute)
		w.stillHolds(b)
		w.stillHolds(d)
		w.release(b)
		w.release(d)
		w.close(c)
	})
}

// A check that nobody uses goes by itself, and the next acquisition has another.
func TestReuseIdle(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a := w.acquire(c, one("x"))
		w.release(a)
		time.Sleep(idleFor - time.Second)
		if w.services() != 1 {
			t.Fatalf("%d services while it may be used again", w.services())
		}
		time.Sleep(2 * time.Second)
		if w.services() != 0 {
			t.Fatalf("%d services after %s", w.services(), idleFor)
		}
		b := w.acquire(c, one("x"))
		if a.sess.service == b.sess.service {
			t.Error("a check was used again that had ended")
		}
		w.release(b)
		w.close(c)
	})
}

// Two acquisitions at once make one check.
func TestReuseAtOnce(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a, b := w.acquiring(c, one("x")), w.acquiring(c, one("y"))
		x, y := a.wait(time.Second), b.wait(time.Second)
		if x.sess.service != y.sess.service || w.services() != 1 {
			t.Errorf("checks %s and %s", x.sess.service, y.sess.service)
		}
		w.release(x)
		w.release(y)
		w.close(c)
	})
}

// A check that could not be passed for so long that its leases are over is never
// used again, although its agent would still take it: the sessions that it had
// are lost, all of them, and the next one has a fresh check.
func TestReuseAfterCutOff(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a, b := w.acquire(c, one("x")), w.acquire(c, one("y"))
		heal := w.cutOff()
		for _, h := range []*Hold{a, b} {
			if err := waitDone(t, h.Context(), CheckTTL); !errors.Is(err, ErrLost) {
				t.Errorf("the hold ended with %v", err)
			}
		}
		heal()
		d := w.acquire(c, one("z"))
		if d.sess.service == a.sess.service {
			t.Error("a check was used again whose time was over")
		}
		_ = a.Release(t.Context())
		_ = b.Release(t.Context())
		w.release(d)
		w.close(c)
	})
}

// Shortly before a check's time is over no session joins it.
func TestReuseLate(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a := w.acquire(c, one("x"))
		heal := w.cutOff()
		time.Sleep(CheckTTL - LeaseMargin - 2*PassEvery + 2*time.Second)
		heal()
		// Before the next pass, which comes within half a second.
		if a.sess.check.join("") {
			t.Errorf("a session joined a check with %s left", a.sess.check.left())
		}
		time.Sleep(time.Second)
		w.stillHolds(a)
		w.release(a)
		w.close(c)
	})
}

// A session that was let go and cannot be destroyed would live on by the check
// for as long as others are acquired: the check takes no more.
func TestReuseRetires(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		a, b := w.acquire(c, one("x")), w.acquire(c, one("y"))
		f, heal := w.fails(path("/v1/session/destroy/"))
		a.Abandon(t.Context())
		heal()
		if f.count.Load() == 0 {
			t.Fatal("nothing was destroyed")
		}
		d := w.acquire(c, one("z"))
		if d.sess.service == b.sess.service {
			t.Error("the check that keeps an abandoned session alive was used again")
		}
		w.release(b)
		w.release(d)
		// With its check the abandoned session went as well.
		w.close(c)
	})
}

// failing refuses some requests as an agent does that has lost its servers.
type failing struct {
	match func(*http.Request) bool
	next  http.RoundTripper
	count atomic.Int64
}

func (f *failing) RoundTrip(r *http.Request) (*http.Response, error) {
	if f.match(r) {
		f.count.Add(1)
		return nil, errors.New("connection refused")
	}
	return f.next.RoundTrip(r)
}

// cutOff lets nothing through until heal is called.
func (w *world) cutOff() (heal func()) {
	_, heal = w.fails(func(*http.Request) bool { return true })
	return heal
}

func (w *world) fails(match func(*http.Request) bool) (f *failing, heal func()) {
	w.net.mu.Lock()
	next := w.net.next
	w.net.mu.Unlock()
	f = &failing{match: match, next: next}
	w.net.to(f)
	return f, func() { w.net.to(next) }
}

// What a hold of a shared check says of its progress is the check's output.
func TestReuseOutput(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(reusing)
		h := w.acquire(c, one("x"))
		if err := h.Progress(context.Background(), 1, 2, "files", "note"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * PassEvery)
		m, err := w.kv.API().Agent().Checks()
		if err != nil || m[h.sess.service] == nil || !strings.Contains(m[h.sess.service].Output, "x: 1 of 2 files note") {
			t.Errorf("%+v, %v", m, err)
		}
		w.release(h)
		w.close(c)
	})
}

package locksmith

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func semaphore(n int) Request {
	r := anyOf(n)
	r.SlotsOf = "s"
	return r
}

// Whoever counts otherwise than one who holds a slot is refused, whichever of
// both counts more, and while it waits too.
func TestSlotsDiffer(t *testing.T) {
	t.Parallel()
	for _, n := range [][2]int{{2, 3}, {3, 2}, {3, 1}, {1, 3}} {
		run(t, func(t *testing.T, w *world) {
			theirs := w.choose(w.client(), semaphore(n[0]))
			w.foreign(w.keys.Lock("s.tar"), "release") // no slot
			_, err := w.client().AcquireAny(t.Context(), semaphore(n[1]))
			differ, ok := errors.AsType[*SlotsError](err)
			if !ok || differ.Theirs != n[0] || differ.Ours != n[1] || differ.Status.Name != theirs.Names()[0] || differ.Status.State != Held {
				t.Fatalf("%v", err)
			}
			w.stillHolds(theirs)
			w.release(theirs)
			w.release(w.choose(w.client(), semaphore(n[1])))
		})
	}
	run(t, func(t *testing.T, w *world) {
		first := w.choose(w.client(), semaphore(1))
		waits := w.choosing(w.client(), semaphore(1))
		waits.waits(time.Minute)
		w.release(first)
		waits.wait(time.Minute)
	})
}

// Two that take slots at the same moment, each before it can see the other: one
// of them gives way.
func TestSlotsDifferAtTheSameMoment(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		var first *Hold
		// After the last look, and before the transaction that takes.
		w.net.before(func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/session/create")
		}, func() {
			first = w.choose(w.client(), semaphore(5))
		})
		second := semaphore(2)
		second.Quiesce = DefaultQuiesce
		_, err := w.client().AcquireAny(t.Context(), second)
		differ, ok := errors.AsType[*SlotsError](err)
		if !ok || first == nil {
			// The first took the very slot that the second was after: then it is
			// refused for that, or finds it out before its next try.
			t.Fatalf("%v, %v", err, first)
		}
		if differ.Theirs != 5 {
			t.Errorf("%+v", differ)
		}
		for _, n := range second.Names {
			if w.get(w.keys.Fence(n)) != nil {
				t.Errorf("%s, which was given back, owes %s", n, w.value(w.keys.Fence(n)))
			}
		}
		w.stillHolds(first)
		w.release(first)
		if w.sessions() != 0 || w.services() != 0 {
			t.Errorf("%d sessions and %d services are left", w.sessions(), w.services())
		}
	})
}

func TestSlotsHeld(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		held := func() (int, string) {
			v, err := c.NewObserver("s", nil).Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return c.SlotsHeld(t.Context(), v)
		}
		w.foreign(w.keys.Lock("s.tar"), "release")
		if n, one := held(); n != 0 {
			t.Errorf("%d slots are held, such as %q", n, one)
		}
		h := w.choose(w.client(), semaphore(3))
		if n, one := held(); n != 1 || one != h.Names()[0] {
			t.Errorf("%d slots are held, such as %q", n, one)
		}
		w.acquire(w.client(), one("s"))
		if n, _ := held(); n != 0 {
			t.Errorf("of a lock that is held itself, %d", n)
		}
	})
}

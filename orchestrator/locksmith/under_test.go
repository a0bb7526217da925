package locksmith

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

// A break that is made under a hold of its breaker's writes nothing once that is
// lost, whenever it is lost: before the break, after its intent, or just before
// the transaction that would end the old hold.
func TestBreakUnderALostHold(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(w *world, lose func()){
		"before": func(_ *world, lose func()) { lose() },
		"before the intent": func(w *world, lose func()) {
			w.net.before(w.intentOf("a"), lose)
		},
		"before the end": func(w *world, lose func()) {
			w.net.before(txnWith("unlock"), lose)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(asElsewhere), one("a"))
				c := w.client(withPolicy(t, alwaysHot))
				under := w.acquire(c, one("leader"))
				when(w, func() {
					// Somebody else ends it: this process is not told at once.
					if err := c.destroySession(w.t.Context(), under.Session()); err != nil {
						t.Error(err)
					}
				})
				out, err := c.Break(t.Context(), BreakRequest{Name: "a", Now: true, Under: under, Observer: c.NewObserver("a", nil)})
				if !errors.Is(err, ErrLost) {
					t.Fatalf("broke all the same: %v, %v", out, err)
				}
				w.stillHolds(old)
				for _, b := range w.breaks("a") {
					if b.Outcome == records.OutcomeUnlocked {
						t.Errorf("a break is recorded as done: %+v", b)
					}
				}
			})
		})
	}
}

// Under a hold that stands, a break goes through.
func TestBreakUnderAHold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), one("a"))
		c := w.client(withPolicy(t, alwaysHot))
		under := w.acquire(c, one("leader"))
		out, err := c.Break(t.Context(), BreakRequest{Name: "a", Under: under})
		if err != nil || out.Record.Outcome != records.OutcomeUnlocked {
			t.Fatalf("%+v, %v", out, err)
		}
		w.stillHolds(under)
	})
}

// A break that is asked for now is answered now: a rule that has not held for
// its `for` refuses it, and so does a freeze that nobody has watched.
func TestBreakNow(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), one("a"))
		start := time.Now()
		c := w.client(withPolicy(t, `policy "p" {
			locks = ["**"]
			hot "always" {
				when = session.exists
				for  = "10s"
			}
			break {
				approval = "auto"
				confirm {
					observations = 1
				}
				freeze {
					when = cluster.sessions_lost > 10
				}
			}
		}`))
		obs := c.NewObserver("a", nil)
		_, err := c.Break(t.Context(), BreakRequest{Name: "a", Now: true, Observer: obs})
		if ref := (*RefusedError)(nil); !errors.As(err, &ref) || ref.Status.State != Held {
			t.Fatalf("before its for: %v", err)
		}
		time.Sleep(10 * time.Second)
		// The observer remembers since when the rule has held.
		_, err = c.Break(t.Context(), BreakRequest{Name: "a", Now: true, Observer: obs})
		if no := (*NotPermittedError)(nil); !errors.As(err, &no) || no.Kind() != brakeUnknown {
			t.Fatalf("with a freeze that is not known: %v", err)
		}
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("it waited %s", took)
		}
		w.stillHolds(old)
	})
}

// An observer keeps its memory when the policies change: a rule that says the
// same goes on holding, and one that says another thing begins anew.
func TestObserverUnderOtherPolicies(t *testing.T) {
	t.Parallel()
	policy := func(when string) string {
		return `policy "p" {
			locks = ["**"]
			hot "always" {
				when = ` + when + `
				for  = "10s"
			}
		}`
	}
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), one("a"))
		first := w.client(withPolicy(t, policy("session.exists")))
		obs := first.NewObserver("a", nil)
		look := func(want string) {
			t.Helper()
			v, err := obs.Observe(t.Context())
			if err != nil || v.State != want {
				t.Fatalf("%v, want %s: %v", v, want, err)
			}
		}
		look(Held)
		time.Sleep(10 * time.Second)
		look(Hot)
		same := w.client(withPolicy(t, policy("session.exists")+"\npolicy \"q\" {\n locks = [\"/x\"]\n}\n"))
		obs.Under(first.With(same.Policies()))
		look(Hot)
		other := w.client(withPolicy(t, policy("session.exists && session.has_ttl")))
		obs.Under(first.With(other.Policies()))
		look(Held)
		time.Sleep(10 * time.Second)
		look(Hot)
	})
}

// A client with other policies lacks nothing that the one has which it was made
// of.
func TestWithLacksNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		c.node = "node-1"
		with := reflect.ValueOf(c.With(c.Policies())).Elem()
		for _, f := range reflect.VisibleFields(with.Type()) {
			if was, is := reflect.ValueOf(c).Elem().FieldByIndex(f.Index), with.FieldByIndex(f.Index); !was.IsZero() && is.IsZero() {
				t.Errorf("it has no %s", f.Name)
			}
		}
	})
}

package locksmith

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
)

// The tests of this file are about requests whose clients do not know what
// became of them: the answer is lost, the request is lost, or it arrives late.

// tooLate delivers what was held back, and fails unless Consul refuses it.
func (w *world) tooLate() {
	w.t.Helper()
	if w.late.Kept() == 0 {
		w.t.Fatal("nothing was held back: the test tests nothing")
	}
	codes, err := w.late.Deliver()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, code := range codes {
		if code != http.StatusConflict {
			w.t.Fatalf("a late request was answered with %d: it landed", code)
		}
	}
}

// The answer to the acquiring transaction is lost, but it stands.
func TestAmbiguousAcquireStands(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.put(w.keys.Epoch(), "3")
		w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, DropAfter: true})
		h := w.acquire(w.client(), one("a"))
		w.stillHolds(h)
		if p, _ := w.holder("a"); p.LockIndex != 1 {
			t.Fatalf("LockIndex %d: it was locked again blindly", p.LockIndex)
		}
		if h.Epoch() != 3 {
			t.Fatalf("epoch %d", h.Epoch())
		}
	})
}

// Nor can it be read for a while whether it stands.
func TestAmbiguousAcquireThatCannotBeRead(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, DropAfter: true})
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool {
			return txnWith("get-or-empty")(r) && !txnWith("lock")(r) && txnWith(w.keys.Epoch())(r)
		}, Times: 20, Drop: true})
		w.stillHolds(w.acquire(w.client(), one("a")))
		if p, _ := w.holder("a"); p.LockIndex != 1 {
			t.Fatalf("LockIndex %d: it was locked again blindly", p.LockIndex)
		}
	})
}

// It stood, and somebody wrote the key since: the session is ours, and the
// record is not.
func TestAmbiguousAcquireThatWasRewritten(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, DropAfter: true})
		w.net.before(func(r *http.Request) bool {
			return txnWith("get-or-empty")(r) && !txnWith("lock")(r) && txnWith(w.keys.Epoch())(r)
		}, func() {
			w.put(w.keys.Lock("a"), &records.Holder{Version: 1, Lock: "a", Tool: "aimlock", Nonce: "another", Released: true})
		})
		h := w.acquire(w.client(), one("a"))
		if _, rec := w.holder("a"); rec.Nonce != h.Nonce() {
			t.Fatalf("the record of the hold is that of %q", rec.Nonce)
		}
	})
}

// The acquiring transaction never arrived: another session tries again.
func TestAmbiguousAcquireDoesNotStand(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, Drop: true})
		h := w.acquire(w.client(), one("a"))
		sessions, _, err := w.kv.API().Session().List(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(sessions) != 1 || sessions[0].ID != h.Session() {
			t.Fatalf("%d sessions are left; the doubtful one must be destroyed", len(sessions))
		}
	})
}

// It arrives when the second try holds the lock, and again when that let go.
func TestLateAcquire(t *testing.T) {
	t.Parallel()
	for _, released := range []bool{false, true} {
		t.Run("released "+strconv.FormatBool(released), func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.late.Keep(txnWith("lock"))
				h := w.acquire(w.client(), one("a"))
				if released {
					if err := h.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				w.tooLate()
				if !released {
					w.stillHolds(h)
				} else if p, _ := w.holder("a"); p.Session != "" {
					t.Fatal("the lock was taken by nobody")
				}
			})
		})
	}
}

// A caller that gave up holds nothing, however the request ends.
func TestCancelledAcquireHoldsNothing(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]devconsul.Fault{
		"the answer is lost":  {Match: txnWith("lock"), Times: 1, DropAfter: true},
		"the answer is late":  {Match: txnWith("lock"), Times: 1, Delay: 2 * time.Second},
		"the request is lost": {Match: txnWith("lock"), Times: 1, Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				ctx, cancel := context.WithCancel(t.Context())
				w.net.before(txnWith("lock"), func() { time.AfterFunc(time.Millisecond, cancel) })
				w.faults.Add(fault)
				// Reading what became of it takes longer than the caller waits.
				w.faults.Add(devconsul.Fault{Match: txnWith(w.keys.Epoch()), Delay: time.Second})
				if _, err := w.client().Acquire(ctx, one("a")); !errors.Is(err, context.Canceled) {
					t.Fatalf("got %v", err)
				}
				w.faults.Clear()
				if p := w.get(w.keys.Lock("a")); p != nil && p.Session != "" {
					t.Fatal("the lock is held by nobody")
				}
				sessions, _, err := w.kv.API().Session().List(nil)
				if err != nil || len(sessions) > 0 {
					t.Fatalf("%d sessions are left, %v", len(sessions), err)
				}
			})
		})
	}
}

// A write that its client repeated, and that newer writes have followed since,
// does not land over them.
func TestLateWriteOfTheSameHold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		for i := range 3 { // the pen is new, then old
			w.late.Keep(txnWith("register"))
			for _, v := range []string{"1", "2"} {
				if _, err := h.Txn(t.Context(), consulkv.Set("register", []byte(v))); err != nil {
					t.Fatal(err)
				}
			}
			w.tooLate()
			if got := w.value("register"); got != "2" {
				t.Fatalf("round %d: the register went back to %s", i, got)
			}
		}
		w.stillHolds(h)
	})
}

// The same where the caller gave up, and the next write is another one's.
func TestLateWriteOfACallThatGaveUp(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.late.Keep(txnWith("register"))
		ctx, cancel := context.WithCancel(t.Context())
		w.net.before(txnWith("register"), cancel)
		if _, err := h.Txn(ctx, consulkv.Set("register", []byte("1"))); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		if _, err := h.Txn(t.Context(), consulkv.Set("register", []byte("2"))); err != nil {
			t.Fatal(err)
		}
		w.tooLate()
		if got := w.value("register"); got != "2" {
			t.Fatalf("the register went back to %s", got)
		}
	})
}

// A write of a hold that was lost since does not land in the next one's work,
// however it was lost.
func TestLateWriteOfALostHold(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(w *world, h *Hold) *Hold{
		"its session ended": func(w *world, h *Hold) *Hold {
			c := w.client()
			if err := c.destroySession(w.t.Context(), h.Session()); err != nil {
				w.t.Fatal(err)
			}
			return w.acquire(c, one("a"))
		},
		"it was broken": func(w *world, _ *Hold) *Hold {
			return w.acquire(w.client(withPolicy(w.t, alwaysHot)), one("a"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(asElsewhere), one("a"))
				w.late.Keep(txnWith("register"))
				ctx, cancel := context.WithCancel(t.Context())
				w.net.before(txnWith("register"), cancel)
				if _, err := old.Txn(ctx, consulkv.Set("register", []byte("1"))); !errors.Is(err, context.Canceled) {
					t.Fatalf("got %v", err)
				}
				h := lose(w, old)
				if _, err := h.Txn(t.Context(), consulkv.Set("register", []byte("2"))); err != nil {
					t.Fatal(err)
				}
				w.tooLate()
				if got := w.value("register"); got != "2" {
					t.Fatalf("the register went back to %s", got)
				}
				w.stillHolds(h)
			})
		})
	}
}

// A write that must not be repeated is an error that is settled: what is read
// after it stays.
func TestLateWriteThatIsNotRepeated(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.late.Keep(txnWith("cas"))
		_, err := h.Txn(t.Context(), consulkv.CAS("register", []byte("1"), 0))
		if !consulkv.Ambiguous(err) || errors.Is(err, ErrLost) {
			t.Fatalf("got %v", err)
		}
		if w.get("register") != nil {
			t.Fatal("it was repeated")
		}
		w.tooLate()
		if w.get("register") != nil {
			t.Fatal("it landed after its caller read that it had not")
		}
	})
}

// Servers that were restored have the lock as it was taken, and the pen as it was
// before its last turn: the write ends, and the hold is lost.
func TestWriteAfterARestoreOfThePen(t *testing.T) {
	t.Parallel()
	write := func(ctx context.Context, h *Hold) error {
		_, err := h.Txn(ctx, consulkv.Set("work", nil))
		return err
	}
	for name, act := range map[string]func(context.Context, *Hold) error{
		"a write": write,
		"a write that follows one in doubt": func(ctx context.Context, h *Hold) error {
			h.setDoubt()
			return write(ctx, h)
		},
		"the pen": func(ctx context.Context, h *Hold) error { return h.turnPen(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(), one("a"))
				turn := func() {
					if err := h.turnPen(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				turn()
				snap := w.srv.Snapshot()
				for range 10 {
					turn()
				}
				if err := w.srv.Restore(snap); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var sent atomic.Int64
				w.faults.Add(devconsul.Fault{Match: func(*http.Request) bool {
					if sent.Add(1) > 100 {
						cancel()
					}
					return false
				}})
				err := act(ctx, h)
				if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "snapshot") {
					t.Fatalf("after %d requests: %v", sent.Load(), err)
				}
				if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) {
					t.Fatalf("cause %v", cause)
				}
			})
		})
	}
}

// Writers beside each other, each with answers that get lost: every write that
// returned stands, in the order in which its writer made it.
func TestWritersBesideEachOtherWithLostAnswers(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		n := 0
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool {
			if !txnWith("check-session")(r) {
				return false
			}
			n++
			return n%3 == 0
		}, DropAfter: true})
		done := make(chan error)
		for writer := range 4 {
			go func() {
				key := "register-" + strconv.Itoa(writer)
				for i := range 10 {
					if _, err := h.Txn(t.Context(), consulkv.Set(key, []byte(strconv.Itoa(i)))); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		for writer := range 4 {
			if got := w.value("register-" + strconv.Itoa(writer)); got != "9" {
				t.Errorf("writer %d: register %s", writer, got)
			}
		}
	})
}

func TestAmbiguousRelease(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]devconsul.Fault{
		"the answer is lost":  {Match: txnWith("unlock"), Times: 1, DropAfter: true},
		"the request is lost": {Match: txnWith("unlock"), Times: 1, Drop: true},
		"no leader":           {Match: txnWith("unlock"), Times: 3, Status: 500, Body: "No cluster leader"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(), one("a"))
				w.faults.Add(fault)
				if err := h.Release(t.Context()); err != nil {
					t.Fatalf("release: %v", err)
				}
				if _, rec := w.holder("a"); !rec.Released {
					t.Fatal("not released")
				}
			})
		})
	}
}

func TestLateRelease(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		h := w.acquire(c, one("a"))
		w.late.Keep(txnWith("unlock"))
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := w.acquire(c, one("a"))
		w.tooLate()
		w.stillHolds(next)
	})
}

// A release that no server takes ends within its bound, and says so.
func TestReleaseIsBounded(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.faults.Add(devconsul.Fault{Match: path("/v1/txn"), Status: 500, Body: "boom"})
		start := time.Now()
		err := h.Release(t.Context())
		if err == nil || time.Since(start) > releasePatience+5*time.Second {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
	})
}

// Nor is a write tried for ever while the lease goes on.
func TestWriteIsBounded(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.faults.Add(devconsul.Fault{Match: path("/v1/txn"), Status: 500, Body: "boom"})
		start := time.Now()
		_, err := h.Txn(t.Context(), consulkv.Set("x", nil))
		if err == nil || errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "boom") || time.Since(start) > time.Minute {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		w.faults.Clear()
		w.stillHolds(h)
	})
}

// The clearing of what was owed lands late: by then it must not clear what is
// owed anew.
func TestLateClearingOfTheFence(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), unfenced("a"))
		w.destroy(old.Session())
		time.Sleep(20 * time.Second)
		w.late.Keep(func(r *http.Request) bool { return txnWith("cas", w.keys.Fence("a"))(r) })
		h := w.acquire(w.client(), unfenced("a"))
		owed := &records.Fence{Version: 1, Owed: 15, Why: "a step that may end the hold"}
		w.put(w.keys.Fence("a"), owed)
		w.tooLate()
		if f := w.fence("a"); f.Why != owed.Why {
			t.Fatal("what is owed was cleared by a request of before")
		}
		w.stillHolds(h)
	})
}

func TestAmbiguousIntent(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]devconsul.Fault{
		"the answer is lost":  {Times: 1, DropAfter: true},
		"the request is lost": {Times: 1, Drop: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(asDead), one("a"))
				fault.Match = w.intentOf("a")
				w.faults.Add(fault)
				w.stillHolds(w.acquire(w.client(), one("a")))
				if got := w.outcomes("a"); got != "taken" {
					t.Fatalf("breaks: %s", got)
				}
				if n := w.spent("default"); n != 1 {
					t.Fatalf("the budget counts %d", n)
				}
			})
		})
	}
}

func TestLateIntent(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asDead), one("a"))
		w.late.Keep(w.intentOf("a"))
		h := w.acquire(w.client(), one("a"))
		w.tooLate()
		w.stillHolds(h)
		if got := w.outcomes("a"); got != "taken" || w.spent("default") != 1 {
			t.Fatalf("breaks: %s, the budget counts %d", got, w.spent("default"))
		}
	})
}

// The answer to break-and-take is lost, or the request.
func TestAmbiguousTake(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault    devconsul.Fault
		outcomes string
	}{
		"the answer is lost":  {devconsul.Fault{Match: txnWith("unlock", "lock"), Times: 1, DropAfter: true}, "taken"},
		"the request is lost": {devconsul.Fault{Match: txnWith("unlock", "lock"), Times: 1, Drop: true}, "aborted taken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(asDead), unfenced("a"))
				w.faults.Add(tc.fault)
				h := w.acquire(w.client(), unfenced("a"))
				w.stillHolds(h)
				if got := w.outcomes("a"); got != tc.outcomes {
					t.Fatalf("breaks: %s", got)
				}
				if w.spent("default") != 1 {
					t.Fatalf("the budget counts %d breaks of one hold", w.spent("default"))
				}
				if h.Token() <= old.Token() {
					t.Fatalf("token %d after %d", h.Token(), old.Token())
				}
			})
		})
	}
}

func TestLateTake(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asDead), one("a"))
		w.late.Keep(txnWith("unlock", "lock"))
		h := w.acquire(w.client(), one("a"))
		w.tooLate()
		w.stillHolds(h)
	})
}

// A break without a successor whose last request is in doubt ends in certainty:
// either it stands, or it never will.
func TestAmbiguousBreak(t *testing.T) {
	t.Parallel()
	t.Run("the answer is lost", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T, w *world) {
			w.acquire(w.client(asDead), one("a"))
			w.faults.Add(devconsul.Fault{Match: txnWith("unlock"), Times: 1, DropAfter: true})
			out, err := w.client().Break(t.Context(), BreakRequest{Name: "a"})
			if err != nil || out.Record.Outcome != records.OutcomeUnlocked || w.outcomes("a") != "unlocked" {
				t.Fatalf("%+v, %v", out, err)
			}
		})
	})
	t.Run("the request is late", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T, w *world) {
			old := w.acquire(w.client(asDead), one("a"))
			w.late.Keep(txnWith("unlock"))
			if _, err := w.client().Break(t.Context(), BreakRequest{Name: "a"}); !consulkv.Ambiguous(err) {
				t.Fatalf("got %v", err)
			}
			if got := w.outcomes("a"); got != "aborted" {
				t.Fatalf("breaks: %s", got)
			}
			w.tooLate()
			w.stillHolds(old)
		})
	})
}

// The outcome of a break that came to nothing is written though its answers
// are lost.
func TestAmbiguousOutcome(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asDead), one("a"))
		w.faults.Add(devconsul.Fault{Match: txnWith("unlock"), Times: 1, Status: 500, Body: "boom"})
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool {
			return r.Method == http.MethodPut && path("/v1/kv/"+w.keys.Breaks("a"))(r)
		}, Times: 1, DropAfter: true})
		if _, err := w.client().Break(t.Context(), BreakRequest{Name: "a"}); err == nil {
			t.Fatal("it went through")
		}
		if got := w.outcomes("a"); got != "aborted" {
			t.Fatalf("breaks: %s", got)
		}
	})
}

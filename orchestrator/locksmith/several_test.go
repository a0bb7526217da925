package locksmith

import (
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// The tests of this file are about requests for several locks: all are taken in
// one transaction, whoever has them.

func several(names ...string) Request { return Request{Names: names, Operation: "test"} }

// All locks of a dead hold are broken at once: one break for the budget, and a
// record for each.
func TestBreakOfAHoldOfSeveralLocks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asDead), unfenced("a", "b", "c"))
		h := w.acquire(w.client(), several("c", "a", "b", "d"))
		w.stillHolds(h)
		if h.Token() <= old.Token() {
			t.Fatalf("token %d after %d", h.Token(), old.Token())
		}
		for _, n := range []string{"a", "b", "c"} {
			b := w.breaks(n)
			if len(b) != 1 || b[0].Outcome != "taken" || b[0].Lock != n || b[0].NewSession != h.Session() || b[0].Token != old.Token() {
				t.Fatalf("breaks of %s: %+v", n, b)
			}
		}
		if len(w.breaks("d")) > 0 || w.spent("default") != 1 {
			t.Fatalf("breaks of d: %v, the budget counts %d", w.breaks("d"), w.spent("default"))
		}
		if e, _, _ := w.kv.API().Session().Info(old.Session(), nil); e != nil {
			t.Fatal("the old session still stands")
		}
	})
}

// So are those of two dead holders, in the same transaction.
func TestBreakOfTwoHolds(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		for _, n := range []string{"a", "b"} {
			w.acquire(w.client(asDead), one(n))
		}
		h := w.acquire(w.client(), several("a", "b"))
		w.stillHolds(h)
		if w.outcomes("a")+w.outcomes("b") != "takentaken" || w.spent("default") != 2 {
			t.Fatalf("breaks: %s %s, the budget counts %d", w.outcomes("a"), w.outcomes("b"), w.spent("default"))
		}
	})
}

// While one of the locks has a live holder nothing is begun on the others: no
// step, no record, nothing of the budget.
func TestNothingIsBrokenForNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		dead := w.acquire(w.client(asDead), one("a"))
		live := w.acquire(w.client(), one("b"))
		p := w.acquiring(w.client(named("waiter")), several("a", "b"))
		p.waits(2 * time.Minute)
		if w.outcomes("a") != "" || w.spent("default") != 0 {
			t.Fatalf("breaks: %s, the budget counts %d", w.outcomes("a"), w.spent("default"))
		}
		w.stillHolds(dead)
		w.stillHolds(live)
		if err := live.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.wait(5 * time.Second)
	})
}

// Each lock is broken by its own policy, or all stay.
func TestEachLockHasItsOwnPolicy(t *testing.T) {
	t.Parallel()
	for name, approval := range map[string]string{"never": `"never"`, "manual": `"manual"`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(asDead), several("a", "guarded"))
				src := `policy "guarded" {
					locks = ["guarded"]
					hot "dead" { when = holder.alive == false }
					break { approval = ` + approval + ` }
				}
				` + strings.Replace(alwaysHot, `policy "p"`, `policy "open"`, 1)
				c := w.client(withPolicy(t, src))
				p := w.acquiring(c, several("a", "guarded"))
				p.waits(2 * time.Minute)
				w.stillHolds(old)
				if w.outcomes("a")+w.outcomes("guarded") != "" {
					t.Fatalf("breaks: %s, %s", w.outcomes("a"), w.outcomes("guarded"))
				}
				if approval == `"never"` {
					return
				}
				if _, err := c.Approve(t.Context(), "guarded", "yes", time.Minute); err != nil {
					t.Fatal(err)
				}
				h := p.wait(5 * time.Second)
				w.stillHolds(h)
				if w.get(w.keys.Approval("guarded")) != nil {
					t.Fatal("the approval outlives the holder that it names")
				}
			})
		})
	}
}

// The progress of every lock of the hold counts, and not only of the first.
func TestProgressOfAnyLockKeepsTheHold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.working("a", "b")
		w.net.before(txnWith("unlock", "lock"), func() {
			// Only of b: another program of the same session might.
			if _, err := old.Txn(t.Context(), consulkv.Set(w.keys.Progress("b"), w.get(w.keys.Progress("a")).Value), consulkv.Set("x", nil)); err != nil {
				t.Error(err)
			}
		})
		p := w.acquiring(w.client(withPolicy(t, stalled)), several("a", "b"))
		p.waits(10 * time.Second)
		w.stillHolds(old)
		if w.outcomes("a") != "aborted" || w.outcomes("b") != "aborted" {
			t.Fatalf("breaks: %s, %s", w.outcomes("a"), w.outcomes("b"))
		}
	})
}

// A further lock that a lock-delay keeps does not cost the dead holder's break.
func TestOtherLockIsCooling(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		b := w.acquire(w.client(asElsewhere), unfenced("b"))
		w.destroy(b.Session())
		w.acquire(w.client(asDead), one("a"))
		start := time.Now()
		h := w.acquire(w.client(), several("a", "b"))
		if took := time.Since(start); took < 29*time.Second || took > 40*time.Second {
			t.Errorf("took %s: 15 s of lock-delay and 15 s of quiesce are due", took)
		}
		w.stillHolds(h)
		if w.outcomes("a") != "taken" || w.spent("default") != 1 {
			t.Fatalf("breaks: %s, the budget counts %d", w.outcomes("a"), w.spent("default"))
		}
	})
}

// While the steps of one hold run, the holder of another can come back to life:
// it is not broken, though nothing but the last look shows it.
func TestHolderThatComesBackDuringTheStepsOfAnother(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		a, b := w.working("a"), w.deaf(w.working("b"))
		src := strings.Replace(strings.Replace(stalled, `policy "p"`, `policy "first"`, 1), `["**"]`, `["a"]`, 1) +
			"\n" + strings.Replace(slow, `policy "p"`, `policy "second"`, 1)
		p := w.acquiring(w.client(withPolicy(t, src)), several("a", "b"))
		p.waits(20 * time.Second)
		if !p.told(NoticeStep) {
			t.Fatalf("was told %v", p.kinds())
		}
		w.progress(a)
		p.waits(4 * time.Second)
		// From now on it works all the time.
		for range 20 {
			w.progress(a)
			p.waits(3 * time.Second)
		}
		w.stillHolds(a)
		if key, _ := w.holder("b"); key.Session != b.Session() {
			t.Fatal("b was taken alone")
		}
		if w.outcomes("a") != "aborted" || w.outcomes("b") != "aborted" {
			t.Fatalf("breaks: %s, %s", w.outcomes("a"), w.outcomes("b"))
		}
	})
}

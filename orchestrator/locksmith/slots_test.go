package locksmith

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// The tests of this file are about requests for any one of several locks.

func slotNames(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("s.%d", i))
	}
	return out
}

func anyOf(n int) Request { return Request{Names: slotNames(n), Operation: "test"} }

// choosing begins an AcquireAny that other things happen beside.
func (w *world) choosing(c *Client, req Request) *pending {
	return w.pend(req, c.AcquireAny)
}

func (w *world) choose(c *Client, req Request) *Hold {
	w.t.Helper()
	return w.choosing(c, req).wait(time.Minute)
}

// Whatever holds how long: never more than N hold at once, all get their turn, and
// no slot stays free while somebody waits.
func TestSlots(t *testing.T) {
	t.Parallel()
	// Not beside a bubble: rapid draws before it begins.
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 3).Draw(rt, "slots")
		works := rapid.SliceOfN(rapid.IntRange(0, 2000), 2, 7).Draw(rt, "work in ms")
		crowd(t, rt, n, works)
	})
}

func crowd(t *testing.T, rt *rapid.T, n int, works []int) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var mu sync.Mutex
		holding, waiting, most, turns := 0, len(works), 0, 0
		idle := time.Duration(0) // the longest time that a slot was free in spite of waiters
		var since time.Time
		account := func(change func()) {
			mu.Lock()
			defer mu.Unlock()
			if !since.IsZero() {
				idle = max(idle, time.Since(since))
			}
			change()
			most = max(most, holding)
			if since = (time.Time{}); holding < n && waiting > 0 {
				since = time.Now()
			}
		}
		slots := map[string]int{}
		var wg sync.WaitGroup
		for _, ms := range works {
			c := w.client()
			wg.Go(func() {
				h, err := c.AcquireAny(t.Context(), anyOf(n))
				if err != nil {
					rt.Errorf("acquire: %v", err)
					return
				}
				account(func() {
					waiting--
					holding++
					turns++
					slots[h.Names()[0]]++
					if slots[h.Names()[0]] > 1 || len(h.Names()) != 1 {
						rt.Errorf("%s is held twice", h.Names())
					}
				})
				time.Sleep(time.Duration(ms) * time.Millisecond)
				account(func() { holding--; slots[h.Names()[0]]-- })
				if err := h.Release(t.Context()); err != nil {
					rt.Errorf("release: %v", err)
				}
			})
		}
		wg.Wait()
		if most > n || turns != len(works) {
			rt.Errorf("%d at once of %d; %d turns of %d", most, n, turns, len(works))
		}
		if idle > time.Second {
			rt.Errorf("a slot was free for %s while somebody waited", idle)
		}
		if w.sessions() != 0 || w.services() != 0 {
			rt.Errorf("%d sessions and %d services are left", w.sessions(), w.services())
		}
	})
}

// However many slots there are, a waiter has the same few queries open, and asks
// nothing while nothing happens.
func TestSlotsCost(t *testing.T) {
	t.Parallel()
	cost := map[int]int64{}
	for _, n := range []int{2, 64} {
		run(t, func(t *testing.T, w *world) {
			for _, name := range slotNames(n) {
				w.foreign(w.keys.Lock(name), "release") // asks nothing itself
			}
			p := w.choosing(w.client(), anyOf(n))
			p.waits(5 * time.Second)
			before := w.net.sent.Load()
			p.waits(3 * time.Minute)
			cost[n] = w.net.sent.Load() - before
		})
	}
	if d := cost[64] - cost[2]; d > 20 || cost[64] > 300 {
		t.Errorf("3 minutes of waiting for 64 slots take %d requests, for 2 slots %d", cost[64], cost[2])
	}
}

// One that comes free is taken at once, by one of those who wait.
func TestSlotsNoHerd(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		first := w.choose(w.client(), anyOf(1))
		var waiters []*pending
		for i := range 20 {
			waiters = append(waiters, w.choosing(w.client(named(fmt.Sprint(i))), anyOf(1)))
		}
		waiters[0].waits(5 * time.Second)
		var tries atomic.Int64
		_, heal := w.fails(func(r *http.Request) bool {
			if txnWith("lock")(r) {
				tries.Add(1)
			}
			return false
		})
		w.release(first)
		time.Sleep(time.Second)
		heal()
		synctest.Wait()
		done := 0
		for _, p := range waiters {
			select {
			case <-p.done:
				done++
			default:
			}
		}
		if done != 1 {
			t.Errorf("%d of the waiters hold the one slot", done)
		}
		if n := tries.Load(); n > 5 {
			t.Errorf("%d tries to take one slot", n)
		}
	})
}

// A dead holder's slot is broken at once while the others work on; exactly that
// one, and nothing of the live ones.
func TestSlotsBreak(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		live := w.choose(w.client(), anyOf(1))
		dead := w.acquire(w.client(asDead), one("s.1"))
		h := w.choose(w.client(), anyOf(2))
		if h.Names()[0] != "s.1" || h.Token() <= dead.Token() {
			t.Fatalf("%s with token %d", h.Names(), h.Token())
		}
		w.stillHolds(h)
		w.stillHolds(live)
		if w.outcomes("s.0") != "" || w.outcomes("s.1") != "taken" {
			t.Errorf("breaks: %s, %s", w.outcomes("s.0"), w.outcomes("s.1"))
		}
	})
}

// A break that is under way is left off when another slot comes free.
func TestSlotsElsewhere(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		src := `policy "p" {
			locks = ["s.0"]
			hot "always" { when = lock.held_for >= duration("0s") }
			break {
				approval = "auto"
				step "request" { wait = "10m" }
				step "take" {}
			}
		}`
		hot := w.choose(w.client(), anyOf(1))
		other := w.acquire(w.client(), one("s.1"))
		p := w.choosing(w.client(withPolicy(t, src)), anyOf(2))
		p.waits(time.Minute)
		if w.outcomes("s.0") != "intent" {
			t.Fatalf("breaks: %s; told %v", w.outcomes("s.0"), p.kinds())
		}
		w.release(other)
		h := p.wait(2 * time.Second)
		if h.Names()[0] != "s.1" {
			t.Errorf("got %s", h.Names())
		}
		w.stillHolds(hot)
		if w.outcomes("s.0") != "aborted" {
			t.Errorf("breaks: %s", w.outcomes("s.0"))
		}
	})
}

// A refusal names all holders, and the worst state counts.
func TestSlotsRefused(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(), one("s.0"))
		w.acquire(w.client(asDead), one("s.1"))
		for _, req := range []Request{
			{Names: slotNames(2), Operation: "test", NoBreak: true, Try: true},
			{Names: slotNames(2), Operation: "test", NoBreak: true, Wait: 3 * time.Second},
		} {
			start := time.Now()
			_, err := w.client().AcquireAny(t.Context(), req)
			ref, ok := errors.AsType[*RefusedError](err)
			if !ok || len(ref.Slots) != 2 || ref.Slots[0].State != Held || ref.Slots[1].State != Hot || !ref.Hot || ref.Status.Name != "s.1" {
				t.Fatalf("%v, %+v", err, ref)
			}
			if took := time.Since(start); took > req.Wait+time.Second || took < req.Wait {
				t.Errorf("it took %s", took)
			}
		}
	})
}

// What a slot's last holder left owing is served, unless another slot owes nothing.
func TestSlotsOwed(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		left := w.acquire(w.client(asElsewhere), unfenced("s.0"))
		w.destroy(left.Session())
		time.Sleep(DefaultQuiesce + time.Second)
		for range 5 {
			start := time.Now()
			h := w.choose(w.client(), anyOf(2))
			if took := time.Since(start); h.Names()[0] != "s.1" || took > time.Second {
				t.Fatalf("%s after %s", h.Names(), took)
			}
			w.release(h)
		}
		w.acquire(w.client(), one("s.1"))
		start := time.Now()
		h := w.choose(w.client(), anyOf(2))
		if took := time.Since(start); h.Names()[0] != "s.0" || took < DefaultQuiesce {
			t.Errorf("%s after %s", h.Names(), took)
		}
	})
}

// A slot that the lock-delay guards is passed over, and taken after it.
func TestSlotsCooling(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		left := w.acquire(w.client(asElsewhere), unfenced("s.0"))
		w.destroy(left.Session())
		_, err := w.client().AcquireAny(t.Context(), Request{Names: slotNames(1), Operation: "test", Try: true})
		if ref, ok := errors.AsType[*RefusedError](err); !ok || ref.Status.State != Cooling {
			t.Fatalf("%v", err)
		}
		h := w.choose(w.client(), anyOf(2))
		if h.Names()[0] != "s.1" {
			t.Fatalf("got %s", h.Names())
		}
		start := time.Now()
		again := w.choose(w.client(), anyOf(2))
		// The lock-delay, and then the quiesce that is owed.
		if took := time.Since(start); again.Names()[0] != "s.0" || took > 2*DefaultQuiesce+2*time.Second {
			t.Errorf("%s after %s", again.Names(), took)
		}
	})
}

// The answer to the acquisition is lost, and it did or did not take place: one
// slot is held in the end, never two.
func TestSlotsAmbiguous(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		run(t, func(t *testing.T, w *world) {
			w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, Drop: !after, DropAfter: after})
			h := w.choose(w.client(), anyOf(3))
			w.stillHolds(h)
			held := 0
			for _, n := range slotNames(3) {
				if p := w.get(w.keys.Lock(n)); p != nil && p.Session != "" {
					held++
				}
			}
			if held != 1 || w.sessions() != 1 {
				t.Errorf("%d slots are held, %d sessions", held, w.sessions())
			}
		})
	}
}

// The end of the caller's context ends the wait and leaves nothing.
func TestSlotsCancelled(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.choose(w.client(), anyOf(1))
		p := w.choosing(w.client(), anyOf(1))
		p.waits(2 * time.Second)
		p.cancel()
		<-p.done
		if !errors.Is(p.err, context.Canceled) {
			t.Errorf("%v", p.err)
		}
		w.release(h)
		if w.sessions() != 0 {
			t.Errorf("%d sessions are left", w.sessions())
		}
	})
}

package locksmith

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
)

func TestAcquireRelease(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		h := w.acquire(c, one("a"))
		p, rec := w.holder("a")
		if p.Session != h.Session() || p.ModifyIndex != h.Token() {
			t.Fatalf("key has session %s index %d, hold %s token %d", p.Session, p.ModifyIndex, h.Session(), h.Token())
		}
		if rec.Lock != "a" || rec.Nonce == "" || rec.Session != h.Session() || rec.Tool != "aimlock" || rec.Node != "node-1" || rec.Check == "" || rec.Released {
			t.Fatalf("record %+v", rec)
		}
		if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("1"))); err != nil {
			t.Fatal(err)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if cause := context.Cause(h.Context()); !errors.Is(cause, ErrReleased) {
			t.Fatalf("cause %v", cause)
		}
		p, rec = w.holder("a")
		if p.Session != "" || !rec.Released {
			t.Fatalf("after release: session %q, released %v", p.Session, rec.Released)
		}
		if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("2"))); err == nil {
			t.Fatal("a released hold still writes")
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatalf("second release: %v", err)
		}
		next := w.acquire(c, one("a"))
		if next.Token() <= h.Token() {
			t.Fatalf("token went from %d to %d", h.Token(), next.Token())
		}
		services, err := w.kv.API().Agent().Services()
		if err != nil || len(services) != 1 {
			t.Fatalf("services of the agent: %d, %v; only the present holder's may stand", len(services), err)
		}
	})
}

// Several operations of one transaction answer in order, whether the pen was
// ever written or not.
func TestResultsOfFencedWrites(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		for range 2 {
			res, err := h.Txn(t.Context(), consulkv.GetOrEmpty("none"), consulkv.Set("x", []byte("1")), consulkv.Get("x"))
			if err != nil || len(res) != 3 || res[0].Key != "none" || string(res[2].Value) != "1" {
				t.Fatalf("%d results, %v", len(res), err)
			}
			_, err = h.Txn(t.Context(), consulkv.Get("x"), consulkv.CheckIndex("x", 3))
			ref, ok := isRefused(err)
			if !ok || ref.Ops[0].Index != 1 || ref.Ops[0].Key != "x" {
				t.Fatalf("refusal of the second operation: %v", err)
			}
			if err := h.turnPen(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		ops := make([]consulkv.Op, h.MaxOps())
		for i := range ops {
			ops[i] = consulkv.Set("x", nil)
		}
		if _, err := h.Txn(t.Context(), ops...); err != nil {
			t.Fatalf("MaxOps operations: %v", err)
		}
		if _, err := h.Txn(t.Context(), append(ops, ops[0])...); err == nil {
			t.Fatal("one more passes")
		}
	})
}

func TestFencedWriteRefusedAfterForeignWrites(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(w *world, h *Hold){
		"put on the held key": func(w *world, _ *Hold) { w.put(w.keys.Lock("a"), "mine") },
		"key deleted":         func(w *world, _ *Hold) { w.delete(w.keys.Lock("a")) },
		"session destroyed":   func(w *world, h *Hold) { w.destroy(h.Session()) },
		"service deregistered": func(w *world, h *Hold) {
			if err := w.kv.API().Agent().ServiceDeregister(h.sess.service); err != nil {
				w.t.Fatal(err)
			}
		},
		"check critical": func(w *world, h *Hold) {
			if err := w.kv.API().Agent().UpdateTTL(h.sess.service, "", api.HealthCritical); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(), one("a"))
				harm(w, h)
				_, err := h.Txn(t.Context(), consulkv.Set("work", []byte("x")))
				if !errors.Is(err, ErrLost) {
					t.Fatalf("write after %s: %v", name, err)
				}
				if cause := waitDone(t, h.Context(), 5*time.Second); !errors.Is(cause, ErrLost) {
					t.Fatalf("cause %v", cause)
				}
				if w.get("work") != nil {
					t.Fatal("the write went through")
				}
			})
		})
	}
}

func TestLossIsNoticedWithoutWriting(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.destroy(h.Session())
		if cause := waitDone(t, h.Context(), time.Second); !errors.Is(cause, ErrLost) {
			t.Fatalf("cause %v", cause)
		}
	})
}

func TestSeveralLocksAreOneAcquisition(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		other := w.acquire(c, one("b"))
		_, err := c.Acquire(t.Context(), Request{Names: []string{"a", "b"}, Try: true})
		ref, ok := errors.AsType[*RefusedError](err)
		if !ok || ref.Status.Name != "b" || ref.Status.State != Held || ref.Hot {
			t.Fatalf("got %v", err)
		}
		if w.get(w.keys.Lock("a")) != nil {
			t.Fatal("a was taken alone")
		}
		if err := other.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		h := w.acquire(c, Request{Names: []string{"a", "b"}})
		w.stillHolds(h)
		w.put(w.keys.Lock("b"), "x")
		if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
			t.Fatalf("one of two locks is lost, and: %v", err)
		}
	})
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		many := make([]string, MaxLocks+1)
		for i := range many {
			many[i] = string(rune('a' + i))
		}
		for name, tc := range map[string]struct {
			names []string
			want  string
			is    error
		}{
			"no name":             {nil, "no lock", nil},
			"an empty name":       {[]string{""}, "empty", nil},
			"a control code":      {[]string{"a\x1b"}, "control", nil},
			"too many":            {many, "8 at most", nil},
			"the same twice":      {[]string{"a", "a"}, "twice", ErrAlreadyHeld},
			"the same by its key": {[]string{"a", "aimlock/locks/a"}, "twice", ErrAlreadyHeld},
		} {
			_, err := c.Acquire(t.Context(), Request{Names: tc.names})
			if err == nil || !strings.Contains(err.Error(), tc.want) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n, err := w.kv.Keys(t.Context(), "", ""); err != nil || len(n) > 0 {
			t.Errorf("keys %v, %v", n, err)
		}
	})
}

// The whole key of an own lock names the same lock.
func TestLockByItsWholeKey(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		h := w.acquire(c, one("aimlock/locks/a"))
		if _, rec := w.holder("a"); rec.Lock != "a" || h.Names()[0] != "a" {
			t.Fatalf("record of lock %q, hold of %v", rec.Lock, h.Names())
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.acquire(c, Request{Names: []string{"a"}, Try: true})
	})
}

func TestPlainKeyIsNotOverwritten(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		for _, name := range []string{"a", "ops/x"} {
			w.put(w.keys.Lock(name), "somebody's data")
			_, err := w.client().Acquire(t.Context(), one(name))
			if !errors.Is(err, ErrPlainKey) || !strings.Contains(err.Error(), w.keys.Lock(name)) {
				t.Fatalf("got %v", err)
			}
			if w.value(w.keys.Lock(name)) != "somebody's data" {
				t.Fatal("it was overwritten")
			}
		}
	})
}

// A lock that changes all the time does not keep a bounded wait going.
func TestBoundedWaitThoughOthersAreFaster(t *testing.T) {
	t.Parallel()
	for name, req := range map[string]Request{
		"try":  {Names: []string{"a"}, Try: true},
		"wait": {Names: []string{"a"}, Wait: 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Status: 409, Body: `{"Errors":[{"OpIndex":0,"What":"failed index check"}]}`})
				start := time.Now()
				_, err := w.client().Acquire(t.Context(), req)
				if err == nil || !strings.Contains(err.Error(), "gave up") || time.Since(start) > 5*time.Second {
					t.Fatalf("%v after %s", err, time.Since(start))
				}
			})
		})
	}
}

// A session that Consul ended before the lock was taken is not tried again.
func TestSessionEndsBeforeTheLockIsTaken(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.net.before(txnWith("lock"), func() {
			list, _, err := w.kv.API().Session().List(nil)
			if err != nil || len(list) != 1 {
				t.Errorf("%d sessions, %v", len(list), err)
				return
			}
			w.destroy(list[0].ID)
		})
		w.stillHolds(w.acquire(w.client(), Request{Names: []string{"a"}, Try: true}))
	})
}

// The lock-delay of a session that Consul ended is served by waiting, is told,
// and is not taken for a holder.
func TestCooling(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		old := w.acquire(w.client(asElsewhere), unfenced("a"))
		p := w.acquiring(c, one("a"))
		p.waits(time.Second)
		w.destroy(old.Session())
		v, err := c.NewObserver("a", nil).Observe(t.Context())
		if err != nil || v.State != Cooling {
			t.Fatalf("state %s, %v", v.State, err)
		}
		if next := c.Next(v, nil); !strings.Contains(next, "in at most 15s") {
			t.Errorf("next: %s", next)
		}
		if list, err := c.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].State != Cooling {
			t.Fatalf("list: %v", err)
		}
		before := w.get(w.keys.Lock("a")).ModifyIndex
		_, err = c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true})
		if ref, ok := errors.AsType[*RefusedError](err); !ok || ref.Status.State != Cooling {
			t.Fatalf("try: %v", err)
		}
		if after := w.get(w.keys.Lock("a")).ModifyIndex; after != before {
			t.Fatal("asking changed the key")
		}
		h := p.wait(time.Minute)
		// 15 s of lock-delay, and the quiesce that is owed meanwhile.
		if p.took < 16*time.Second || p.took > 20*time.Second {
			t.Errorf("took %s", p.took)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, err := c.NewObserver("a", nil).Observe(t.Context()); err != nil || v.State != Free {
			t.Fatalf("after a clean release: %s, %v", v.State, err)
		}
	})
}

// A release that is asked for when everything ends is still made.
func TestReleaseWithAContextThatEnded(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), unfenced("a"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := h.Release(ctx); err != nil {
			t.Fatal(err)
		}
		if _, rec := w.holder("a"); !rec.Released {
			t.Fatal("not released")
		}
	})
}

// consul lock refuses a key without its flags.
func TestFlagsOfAKeyAreKept(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		if _, err := w.kv.API().KV().Put(&api.KVPair{Key: "ops/.lock", Flags: api.LockFlagValue}, nil); err != nil {
			t.Fatal(err)
		}
		h := w.acquire(w.client(), one("ops/.lock"))
		if f := w.get("ops/.lock").Flags; f != api.LockFlagValue {
			t.Fatalf("flags %x while held", f)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f := w.get("ops/.lock").Flags; f != api.LockFlagValue {
			t.Fatalf("flags %x after release", f)
		}
	})
}

// Somebody asks the holder to let go; a request for another hold is not meant.
func TestRequestToLetGo(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		h := w.acquire(c, one("a"))
		w.put(w.keys.Request("a"), &records.Request{Version: 1, Session: h.Session(), Token: h.Token() - 1, By: "x", Expires: time.Now().Add(time.Hour)})
		time.Sleep(time.Second)
		w.put(w.keys.Request("a"), &records.Request{Version: 1, Session: h.Session(), Token: h.Token(), By: "x", Expires: time.Now()})
		time.Sleep(time.Second)
		w.stillHolds(h)
		if h.Requested() != nil {
			t.Fatal("took a request that is not for it")
		}
		if _, err := c.Request(t.Context(), "a", "maintenance \x1b[2J", time.Minute); err != nil {
			t.Fatal(err)
		}
		cause := waitDone(t, h.Context(), 5*time.Second)
		if !errors.Is(cause, ErrRequested) || strings.Contains(cause.Error(), "\x1b") || h.Requested() == nil {
			t.Fatalf("cause %q", cause)
		}
		// The last writes of an orderly end still pass.
		w.stillHolds(h)
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.get(w.keys.Request("a")) != nil {
			t.Fatal("the request outlives the holder that it names")
		}
		if _, err := c.Request(t.Context(), "a", "", time.Minute); !errors.Is(err, ErrNotHeld) {
			t.Fatalf("a request to nobody: %v", err)
		}
	})
}

func TestTTLText(t *testing.T) {
	for ttl, want := range map[string]string{"15s": "15s", "15.000000s": "15s", "1h0m0s": "1h", "90m": "1h30m", "\x1b[2J": "?[2J"} {
		if got := ttlText(ttl); got != want {
			t.Errorf("%q is shown as %q, want %q", ttl, got, want)
		}
	}
}

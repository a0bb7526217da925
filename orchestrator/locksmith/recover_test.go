package locksmith

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// The epoch is raised above every order that can be found, wherever it stands.
func TestRecoverRaisesTheEpoch(t *testing.T) {
	t.Parallel()
	order := func(epoch uint64) orchestrator.Order {
		return orchestrator.Order{Epoch: epoch, Token: 7, Seq: 1}
	}
	for name, tc := range map[string]struct {
		put  func(w *world)
		req  RecoverRequest
		want uint64
	}{
		"nothing":           {func(*world) {}, RecoverRequest{}, 1},
		"an epoch":          {func(w *world) { w.put(w.keys.Epoch(), "4") }, RecoverRequest{}, 5},
		"no number":         {func(w *world) { w.put(w.keys.Epoch(), "x") }, RecoverRequest{}, 1},
		"actual":            {func(w *world) { w.put(w.keys.Actual("c", "n1"), &records.Actual{Order: order(6)}) }, RecoverRequest{}, 7},
		"a wish":            {func(w *world) { w.put(w.keys.Epoch(), "4") }, RecoverRequest{Epoch: 40}, 40},
		"a wish too low":    {func(w *world) { w.put(w.keys.Epoch(), "4") }, RecoverRequest{Epoch: 3}, 5},
		"desired":           {func(w *world) { w.put(w.keys.Desired("c", "n1"), &records.Desired{Order: order(8)}) }, RecoverRequest{}, 9},
		"a rollout":         {func(w *world) { w.put(w.keys.Rollout("r"), `{"id":"r","name":"x","state":"running","epoch":11}`) }, RecoverRequest{}, 12},
		"a rollout's parts": {func(w *world) { w.put(w.keys.RolloutPart("r", "plan", 0), `{"epoch":11}`) }, RecoverRequest{}, 1},
		"a break":           {func(w *world) { w.put(w.keys.Break("a", 3, 7, 1), "x") }, RecoverRequest{}, 4},
		"what a node has refused": {func(w *world) {
			o := order(20)
			w.put(w.keys.Actual("c", "n1"), &records.Actual{Order: order(6), Refused: &o})
		}, RecoverRequest{}, 21},
		"one that is unreadable: far too high": {func(w *world) {
			w.put(w.keys.Epoch(), "4")
			o := order(1<<64 - 1)
			w.put(w.keys.Actual("c", "n1"), &records.Actual{Order: order(1<<64 - 2), Refused: &o})
			w.put(w.keys.Actual("c", "n2"), &records.Actual{Order: order(4 + 1<<32)})
		}, RecoverRequest{}, 5 + 1<<32},
		"one that is unreadable: the first that is too high": {func(w *world) {
			w.put(w.keys.Epoch(), "4")
			w.put(w.keys.Actual("c", "n1"), &records.Actual{Order: order(5 + 1<<32)})
		}, RecoverRequest{}, 5},
		"one that is unreadable: as high as is wished": {func(w *world) {
			w.put(w.keys.Actual("c", "n1"), &records.Actual{Order: order(1 << 33)})
		}, RecoverRequest{Epoch: 1<<33 + 1}, 1<<33 + 1},
		"one that is unreadable": {func(w *world) {
			w.put(w.keys.Actual("c", "n1"), "x")
			w.put(w.keys.Actual("c", "n2"), &records.Actual{Order: order(2)})
		}, RecoverRequest{}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client()
				tc.put(w)
				before := w.dump()
				dry := tc.req
				dry.DryRun = true
				out, err := c.Recover(t.Context(), dry)
				if err != nil || out.Epoch != tc.want || w.dump() != before {
					t.Fatalf("dry run: %+v, %v", out, err)
				}
				out, err = c.Recover(t.Context(), tc.req)
				if err != nil || out.Epoch != tc.want || w.value(w.keys.Epoch()) != fmt.Sprint(tc.want) {
					t.Fatalf("%+v, %v; the key says %s", out, err, w.value(w.keys.Epoch()))
				}
				if strings.Contains(name, "unreadable") != (len(out.Unreadable) == 1) && name != "no number" {
					t.Fatalf("unreadable %v", out.Unreadable)
				}
				if name == "a rollout" && (len(out.Rollouts) != 1 || out.Rollouts[0].Name != "x") {
					t.Fatalf("rollouts %v", out.Rollouts)
				}
			})
		})
	}
}

func TestRecoverHasAnEnd(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.put(w.keys.Epoch(), "18446744073709551615")
		if out, err := w.client().Recover(t.Context(), RecoverRequest{}); err == nil || w.value(w.keys.Epoch()) != "18446744073709551615" {
			t.Fatalf("%+v: %v", out, err)
		}
	})
}

// Every holder loses, one that is alive too; every lock owes the pause; and who
// comes next has the new epoch.
func TestRecoverVoidsHolders(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		alive := w.acquire(w.client(), unfenced("a", "b"))
		dead := w.acquire(w.client(asDead), one("c"))
		if err := w.acquire(w.client(), one("free")).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		foreign := w.foreign(w.keys.Lock("d"), "release")
		w.lockKey("ops/other", foreign)
		elsewhere := w.acquire(w.client(), one("ops/of-aimlock"))
		if _, err := c.Request(t.Context(), "a", "", time.Hour); err != nil {
			t.Fatal(err)
		}
		w.put(w.keys.Fence("c"), &records.Fence{Version: 1, Owed: 40})

		before := w.dump()
		out, err := c.Recover(t.Context(), RecoverRequest{DryRun: true})
		if err != nil || len(out.Holds) != 4 || out.Free != 1 || out.Holds[0].Voided || w.dump() != before {
			t.Fatalf("dry run: %+v, %v", out, err)
		}
		out, err = c.Recover(t.Context(), RecoverRequest{})
		if err != nil || out.Epoch != 1 || out.Free != 1 || len(out.Holds) != 4 || out.Sessions != 1 {
			t.Fatalf("%+v, %v", out, err)
		}
		for _, h := range out.Holds {
			if !h.Voided || h.Quiesce < 15 || strings.Contains(h.Detail, "destroyed") != (h.Lock != "d") {
				t.Errorf("%+v", h)
			}
			if p := w.get(w.keys.Lock(h.Lock)); p.Session != "" {
				t.Errorf("%s is held", h.Lock)
			}
		}
		for name, want := range map[string]string{"a": `"owed":15`, "b": `"owed":15`, "c": `"owed":40`, "d": `"owed":15`, "free": `"owed":15`} {
			if v := w.value(w.keys.Fence(name)); !strings.Contains(v, want) {
				t.Errorf("fence of %s: %s", name, v)
			}
		}
		if w.get(w.keys.Request("a")) != nil {
			t.Error("the request outlives the holder")
		}
		if e, _, err := w.kv.API().Session().Info(foreign, nil); err != nil || e == nil || w.get("ops/other").Session != foreign {
			t.Errorf("another tool's session: %+v, %v", e, err)
		}
		for _, h := range []*Hold{alive, dead, elsewhere} {
			w.loses(h)
		}
		if b := w.breaks("a"); len(b) != 1 || b[0].Rule != RuleRecover || b[0].Outcome != records.OutcomeUnlocked || b[0].Holder == nil || b[0].By != "tester" || b[0].Host == "" {
			t.Errorf("breaks %+v", b)
		}
		start := time.Now()
		h := w.acquire(w.client(), one("a"))
		if h.Epoch() != 1 || time.Since(start) < DefaultQuiesce {
			t.Errorf("epoch %d, after %s", h.Epoch(), time.Since(start))
		}
		// Once more: what was taken since is of the past, too.
		out, err = c.Recover(t.Context(), RecoverRequest{})
		if err != nil || out.Epoch != 2 || len(out.Holds) != 1 {
			t.Fatalf("again: %+v, %v", out, err)
		}
		w.loses(h)
	})
}

// loses waits until a hold knows that it is lost.
func (w *world) loses(h *Hold) {
	w.t.Helper()
	select {
	case <-h.Context().Done():
	case <-time.After(30 * time.Second):
		w.t.Fatalf("%s goes on", h.Names())
	}
	if err := context.Cause(h.Context()); err == nil {
		w.t.Fatal("no cause")
	}
}

// What was taken under the new epoch before its turn came is left alone, and its
// holder has served the pause: it was owed before the epoch was raised.
func TestRecoverBesideOthers(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		if err := w.acquire(w.client(), one("a")).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := w.acquire(w.client(), one("b"))
		var p *pending
		raised := txnWith("unlock")
		w.net.before(raised, func() { p = w.acquiring(w.client(), one("a")); time.Sleep(time.Second) })
		out, err := c.Recover(t.Context(), RecoverRequest{})
		if err != nil || p == nil {
			t.Fatalf("%+v, %v", out, err)
		}
		h := p.wait(30 * time.Second)
		if h.Epoch() != 1 || p.took < DefaultQuiesce {
			t.Fatalf("epoch %d after %s", h.Epoch(), p.took)
		}
		w.loses(old)
		w.stillHolds(h)
	})
}

// Consul has forgotten who took a lock for the first time after the snapshot. Nobody
// works under it before the pause has passed: neither who takes it after the
// recovery, nor who follows one that took it while the recovery waited.
func TestRecoverOfAForgottenLock(t *testing.T) {
	t.Parallel()
	for name, between := range map[string]bool{"nobody between": false, "one between": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				snap := w.srv.Snapshot()
				w.deaf(w.acquire(w.client(asElsewhere), unfenced("a")))
				if err := w.srv.Restore(snap); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				done := make(chan error, 1)
				go func() {
					_, err := w.client().Recover(t.Context(), RecoverRequest{})
					done <- err
				}()
				if between {
					time.Sleep(10 * time.Second)
					early := w.acquire(w.client(asElsewhere), one("a"))
					w.loses(early)
					start = time.Now()
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				h := w.acquire(w.client(), one("a"))
				if took := time.Since(start); h.Epoch() != 1 || took < DefaultQuiesce {
					t.Errorf("epoch %d, after %s", h.Epoch(), took)
				}
			})
		})
	}
}

// What a free lock owes is written anew though it is enough: who saw the lock be free
// before the restore must not count that time.
func TestRecoverWritesWhatIsOwedAnew(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), Request{Names: []string{"a"}, Quiesce: 40 * time.Second}).Abandon(t.Context())
		before := w.get(w.keys.Fence("a"))
		if _, err := w.client().Recover(t.Context(), RecoverRequest{}); err != nil {
			t.Fatal(err)
		}
		after := w.get(w.keys.Fence("a"))
		if before == nil || after == nil || after.ModifyIndex == before.ModifyIndex || !strings.Contains(string(after.Value), `"owed":40`) {
			t.Errorf("from %+v to %+v", before, after)
		}
	})
}

// Two recoveries at once: one of them says so. A lost answer is looked into.
func TestRecoverOnABadNetwork(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		w.acquire(w.client(), one("a"))
		w.acquire(w.client(), one("b"))
		raise := txnWith("cas", w.keys.Epoch())
		for what, match := range map[string]func(*http.Request) bool{"cas": raise, "unlock": txnWith("unlock")} {
			for _, fault := range []devconsul.Fault{{DropAfter: true}, {Drop: true}} {
				fault.Match, fault.Times = match, 1
				w.faults.Add(fault)
				out, err := c.Recover(t.Context(), RecoverRequest{})
				if fault.Drop && what == "cas" {
					if err == nil {
						t.Fatalf("the epoch was not raised: %+v", out)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s %+v: %v", what, fault, err)
				}
			}
		}
		for _, n := range []string{"a", "b"} {
			if w.get(w.keys.Lock(n)).Session != "" || !strings.Contains(w.value(w.keys.Fence(n)), `"owed":15`) {
				t.Errorf("lock %s: %+v, fence %s", n, w.get(w.keys.Lock(n)), w.value(w.keys.Fence(n)))
			}
		}
		w.net.before(raise, func() { w.put(w.keys.Epoch(), "77") })
		if _, err := c.Recover(t.Context(), RecoverRequest{}); !errors.Is(err, ErrEpochMeanwhile) {
			t.Fatal(err)
		}
	})
}

// A restored Consul gives indexes out again: what stands at the index that was read,
// and is not what was read, ends the wait for a change.
func TestAwaitAfterARestore(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), unfenced("a"))
		p, err := w.kv.Get(t.Context(), w.keys.Lock("a"))
		if err != nil || p == nil || p.Session != h.Session() {
			t.Fatalf("%+v, %v", p, err)
		}
		for name, tc := range map[string]struct {
			was  *api.KVPair
			want time.Duration
		}{
			"the same":        {&api.KVPair{ModifyIndex: p.ModifyIndex, Session: p.Session, Value: p.Value}, time.Minute},
			"another index":   {&api.KVPair{ModifyIndex: p.ModifyIndex + 1, Session: p.Session, Value: p.Value}, 0},
			"another session": {&api.KVPair{ModifyIndex: p.ModifyIndex, Session: "old", Value: p.Value}, 0},
			"another value":   {&api.KVPair{ModifyIndex: p.ModifyIndex, Session: p.Session, Value: []byte("{}")}, 0},
			"not there":       {nil, 0},
		} {
			start := time.Now()
			if err := h.c.await(t.Context(), time.Minute, map[string]*api.KVPair{p.Key: tc.was}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if took := time.Since(start); took != tc.want {
				t.Errorf("%s: waited %s, and not %s", name, took, tc.want)
			}
		}
	})
}

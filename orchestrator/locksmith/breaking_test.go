package locksmith

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// A successor on the same host takes over from a holder whose process is dead
// long before Consul would give the lock away, and owes nothing.
func TestBreakAndTakeOnProof(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asDead), unfenced("a"))
		if err := old.Progress(t.Context(), 3, 10, "nodes", ""); err != nil {
			t.Fatal(err)
		}
		var hot *Status
		req := unfenced("a")
		req.Notify = func(n Notice) {
			if n.Status != nil && n.Status.State == Hot {
				hot = n.Status
			}
		}
		start := time.Now()
		h := w.acquire(w.client(), req)
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %s", took)
		}
		if hot == nil || hot.Rule != "holder-dead" || *hot.Token != old.Token() || hot.Progress == nil || *hot.Progress.Done != 3 {
			t.Fatalf("was told %+v", hot)
		}
		if h.Token() <= old.Token() {
			t.Fatalf("token %d after %d", h.Token(), old.Token())
		}
		if f := w.fence("a"); f.Session != h.Session() {
			t.Fatalf("a proved-dead holder left %+v", f)
		}
		if _, err := old.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
			t.Fatalf("the old holder writes: %v", err)
		}
		b := w.breaks("a")
		if len(b) != 1 || b[0].Outcome != records.OutcomeTaken || b[0].Session != old.Session() || b[0].NewSession != h.Session() || !b[0].Proof ||
			b[0].EndedAt == nil || b[0].Holder.Nonce != old.Nonce() || b[0].Detail != "the old session is destroyed" {
			t.Fatalf("breaks %+v", b)
		}
		if e, _, _ := w.kv.API().Session().Info(old.Session(), nil); e != nil {
			t.Fatal("the old session still stands")
		}
		if w.spent("default") != 1 {
			t.Fatalf("the budget counts %d", w.spent("default"))
		}
		if _, rec := w.holder("a"); rec.AcquiredAt.Before(start) {
			t.Errorf("acquired at %s, begun at %s", rec.AcquiredAt, start)
		}
	})
}

// stalled is hot after five seconds without progress.
const stalled = `policy "p" {
	locks = ["**"]
	hot "stalled" { when = progress.age > 5 }
	break {
		approval = "auto"
		confirm {
			observations = 3
			every        = "1s"
		}
	}
}`

// slow does the same, and asks first, with a minute to let go.
var slow = strings.Replace(stalled, "confirm {", "step \"request\" { wait = \"1m\" }\n step \"take\" {}\n confirm {", 1)

// working makes a hold elsewhere that has written progress and now stands still.
func (w *world) working(names ...string) *Hold {
	w.t.Helper()
	h := w.acquire(w.client(asElsewhere), Request{Names: names, Operation: "work"})
	w.progress(h)
	return h
}

func (w *world) progress(h *Hold) {
	w.t.Helper()
	if err := h.Progress(w.t.Context(), time.Now().Unix(), 0, "", ""); err != nil {
		w.t.Fatal(err)
	}
}

// deaf makes a hold that does not listen to requests.
func (w *world) deaf(h *Hold) *Hold { h.end(errors.New("does not listen")); return h }

// A holder that came back to life before the last transaction is not broken,
// at whatever moment it did.
func TestHolderThatComesBackToLifeIsNotBroken(t *testing.T) {
	t.Parallel()
	for name, moment := range map[string]struct {
		policy string
		match  func(w *world) func(*http.Request) bool
	}{
		"before the intent":             {stalled, func(w *world) func(*http.Request) bool { return w.intentOf("a") }},
		"while it is asked":             {slow, func(w *world) func(*http.Request) bool { return txnWith(w.keys.Request("a"), "set") }},
		"before the outcome is decided": {stalled, func(*world) func(*http.Request) bool { return txnWith("unlock", "lock") }},
		"before it, without successor":  {stalled, func(*world) func(*http.Request) bool { return txnWith("unlock") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.working("a")
				revived := false
				w.net.before(moment.match(w), func() {
					revived = true
					w.progress(old)
				})
				c := w.client(withPolicy(t, moment.policy))
				if strings.Contains(name, "without") {
					time.Sleep(time.Second)
					obs := c.NewObserver("a", nil)
					v, err := obs.Observe(t.Context())
					for err == nil && v.State != Hot {
						time.Sleep(time.Second)
						v, err = obs.Observe(t.Context())
					}
					if err != nil {
						t.Fatal(err)
					}
					if err := c.breakOnly(t.Context(), &target{name: "a", obs: obs, v: v}, BreakRequest{Notify: func(Notice) {}}, &Broken{}); !errors.Is(err, errChanged) {
						t.Fatalf("got %v", err)
					}
				} else {
					p := w.acquiring(c, one("a"))
					p.waits(9 * time.Second)
					for range 30 {
						if !revived {
							time.Sleep(time.Second)
						}
					}
					p.waits(time.Second)
				}
				if !revived {
					t.Fatal("it did not come to that: the test tests nothing")
				}
				w.stillHolds(old)
				if got := w.outcomes("a"); strings.Contains(got, "taken") || strings.Contains(got, "unlocked") {
					t.Fatalf("breaks: %s", got)
				}
			})
		})
	}
}

// A verdict that rests on the rollout's record does not outlive it.
func TestRolloutThatGoesOnIsNotBroken(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), Request{Names: []string{"a"}, RolloutID: "r1"})
		w.put(w.keys.Rollout("r1"), `{"id":"r1","state":"paused"}`)
		c := w.client(withPolicy(t, `policy "p" {
			locks = ["**"]
			hot "forgotten" { when = rollout.finished && rollout.finished_ago >= 0 }
			break {
				approval = "auto"
			}
		}`))
		p := w.acquiring(c, one("a"))
		p.waits(10 * time.Second)
		w.net.before(txnWith("unlock", "lock"), func() { w.put(w.keys.Rollout("r1"), `{"id":"r1","state":"running"}`) })
		w.put(w.keys.Rollout("r1"), `{"id":"r1","state":"aborted"}`)
		p.waits(10 * time.Second)
		if w.outcomes("a") != "aborted" {
			t.Fatalf("breaks: %s", w.outcomes("a"))
		}
		w.stillHolds(old)
		w.put(w.keys.Rollout("r1"), `{"id":"r1","state":"succeeded"}`)
		p.wait(10 * time.Minute)
	})
}

// What a verdict rests on beside the KV store is looked at once more just before
// the end, by whichever step: here the health of a node. Nothing that takes its time
// comes between, and a look that has grown old is repeated.
func TestNodeThatRecoversIsNotBroken(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"take", "destroy_session"} {
		for when, meet := range map[string]func(w *world, do, sleep func()){
			"before the intent": func(w *world, do, _ func()) { w.net.before(w.intentOf("ops/.lock"), do) },
			"while all keys are read": func(w *world, do, _ func()) {
				w.net.before(func(r *http.Request) bool { return r.URL.Path == "/v1/kv/" }, do)
			},
			"while the machine sleeps after the last look": func(w *world, do, sleep func()) {
				w.net.before(w.intentOf("ops/.lock"), func() {
					w.net.before(txnWith(w.keys.PolicySuspended(), "get-or-empty"), func() { do(); sleep() })
				})
			},
		} {
			t.Run(end+", "+when, func(t *testing.T) {
				t.Parallel()
				run(t, func(t *testing.T, w *world) {
					serf := func(status string) {
						check := &api.AgentCheck{Node: "node-1", CheckID: "serfHealth", Name: "Serf Health Status", Status: status}
						if _, err := w.kv.API().Catalog().Register(&api.CatalogRegistration{Node: "node-1", Address: "127.0.0.1", SkipNodeUpdate: true, Check: check}, nil); err != nil {
							t.Error(err)
						}
					}
					slept := 0.0
					c := w.client(withPolicy(t, strings.Replace(strings.Replace(alwaysHot, "session.exists", `node.serf == "failed"`, 1),
						`approval = "auto"`, "\napproval = \"auto\"\nstep \""+end+"\" {}\n", 1)), func(c *Config) { c.LeaseClock = func() float64 { return bubbleTime() + slept } })
					w.apply(c)
					id, _, err := w.kv.API().Session().CreateNoChecks(nil, nil)
					if err != nil {
						t.Fatal(err)
					}
					w.lockKey("ops/.lock", id)
					for _, recovers := range []bool{true, false} {
						serf(api.HealthCritical)
						met := false
						if recovers {
							meet(w, func() { met = true; serf(api.HealthPassing) }, func() { slept += 3600 })
						}
						_, err := c.Break(t.Context(), BreakRequest{Name: "ops/.lock"})
						if (err == nil) == recovers || met != recovers {
							t.Fatalf("recovers %v, %v: %v", recovers, met, err)
						}
						if p := w.get("ops/.lock"); (p.Session == id) != recovers {
							t.Fatalf("recovers %v: session %q", recovers, p.Session)
						}
					}
				})
			})
		}
	}
}

// A step that destroys is not run on a holder that came back to life during an
// earlier step.
func TestNoFurtherStepOnAHolderThatCameBackToLife(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.deaf(w.working("a"))
		mark := t.TempDir() + "/ran"
		c := w.client(withPolicy(t, strings.Replace(slow, `step "take"`, `step "exec" { command = ["touch", "`+mark+`"] }
			step "take"`, 1)))
		p := w.acquiring(c, one("a"))
		p.waits(20 * time.Second)
		if !p.told(NoticeStep) {
			t.Fatalf("no step yet: %v", p.kinds())
		}
		w.put(w.keys.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: old.Session(), Done: 1})
		p.waits(time.Minute)
		if exists(mark) {
			t.Fatal("the command ran")
		}
		if got := w.outcomes("a"); !strings.HasPrefix(got, "aborted") {
			t.Fatalf("breaks: %s", got)
		}
	})
}

// Two successors at once: one takes, and is counted once; the other goes on
// waiting, and gets the lock when it is let go.
func TestTwoSuccessorsAtOnce(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func(*Config){"on proof": asDead, "on silence": asElsewhere} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.deaf(w.acquire(w.client(by), one("a")))
				w.put(w.keys.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: old.Session()})
				mod := func(*Config) {}
				policy := "default"
				if name == "on silence" {
					mod, policy = withPolicy(t, stalled), "p"
				}
				var ps []*pending
				for _, who := range []string{"one", "two", "three"} {
					ps = append(ps, w.acquiring(w.client(mod, named(who)), one("a")))
				}
				tokens := []uint64{old.Token()}
				for range ps {
					i := firstDone(t, ps, time.Minute)
					h := ps[i].wait(time.Second)
					ps = slices.Delete(ps, i, i+1)
					if h.Token() <= tokens[len(tokens)-1] {
						t.Fatalf("token %d after %v", h.Token(), tokens)
					}
					tokens = append(tokens, h.Token())
					for range 10 {
						w.progress(h)
						for _, p := range ps {
							p.waits(time.Second)
						}
					}
					w.stillHolds(h)
					if err := h.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if got := w.outcomes("a"); got != "taken" {
					t.Errorf("breaks: %s", got)
				}
				if n := w.spent(policy); policy == "default" && n != 1 {
					t.Errorf("the budget counts %d", n)
				}
			})
		})
	}
}

func firstDone(t *testing.T, ps []*pending, within time.Duration) int {
	t.Helper()
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for i, p := range ps {
			select {
			case <-p.done:
				return i
			default:
			}
		}
	}
	t.Fatalf("none of %d got it within %s", len(ps), within)
	return 0
}

// A breaker that dies after its intent leaves the lock as it was. The next one
// gives its steps their time, and the hold counts once.
func TestBreakerThatDiesAfterItsIntent(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asDead), one("a"))
		c := w.client()
		obs := c.NewObserver("a", nil)
		v, err := obs.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.startBreak(t.Context(), []*target{{name: "a", obs: obs, v: v}}, func(Notice) {}, false, nil); err != nil {
			t.Fatal(err)
		}
		w.stillHolds(old)
		start := time.Now()
		w.acquire(w.client(named("second")), one("a"))
		took := time.Since(start)
		// The default policy waits 10 s after each of two steps.
		if patience := intentPatience + 20*time.Second; took < patience || took > patience+2*time.Second {
			t.Errorf("the second one waited %s", took)
		}
		if got := w.outcomes("a"); got != "intent taken" || w.spent("default") != 1 {
			t.Errorf("breaks: %s, the budget counts %d", got, w.spent("default"))
		}
	})
}

// A breaker that gives up sets the next one free at once.
func TestBreakerThatGivesUp(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.deaf(w.working("a"))
		first := w.acquiring(w.client(withPolicy(t, slow), named("first")), one("a"))
		first.waits(20 * time.Second)
		second := w.acquiring(w.client(withPolicy(t, stalled), named("second")), one("a"))
		second.waits(9 * time.Second)
		if got := w.outcomes("a"); got != "intent" {
			t.Fatalf("breaks: %s", got)
		}
		first.cancel()
		second.wait(5 * time.Second)
		if got := w.outcomes("a"); got != "aborted taken" {
			t.Fatalf("breaks: %s", got)
		}
	})
}

// A holder that is asked lets go: that is no break, and what follows is a normal
// acquisition.
func TestStepRequest(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.working("a")
		go func() {
			<-old.Context().Done()
			_ = old.Release(context.Background())
		}()
		h := w.acquire(w.client(withPolicy(t, slow)), one("a"))
		if cause := context.Cause(old.Context()); !errors.Is(cause, ErrRequested) || !strings.Contains(cause.Error(), "tester") {
			t.Fatalf("the old holder ended by %v", cause)
		}
		b := w.breaks("a")
		if len(b) != 1 || b[0].Outcome != records.OutcomeReleased || b[0].NewSession != "" {
			t.Fatalf("breaks %+v", b)
		}
		if e, _, _ := w.kv.API().Session().Info(h.Session(), nil); e == nil {
			t.Fatal("the new session is gone")
		}
		w.stillHolds(h)
		if w.get(w.keys.Request("a")) != nil {
			t.Fatal("the request is left")
		}
	})
}

// A policy that only asks never takes, and does not ask without end.
func TestPolicyThatOnlyAsks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.deaf(w.working("a"))
		c := w.client(withPolicy(t, strings.Replace(stalled, "confirm {", "step \"request\" { wait = \"1s\" }\n confirm {", 1)))
		p := w.acquiring(c, one("a"))
		p.waits(10 * time.Minute)
		if b := w.breaks("a"); len(b) < 2 || len(b) > 8 {
			t.Fatalf("it was tried %d times in ten minutes", len(b))
		}
		if p := w.get(w.keys.Lock("a")); p.Session != old.Session() {
			t.Fatal("it was taken")
		}
		p.cancel()
		<-p.done
		out, err := c.Break(t.Context(), BreakRequest{Name: "a", DryRun: true})
		if _, ok := errors.AsType[*RefusedError](err); !ok {
			t.Fatalf("a dry run without a memory: %+v, %v", out, err)
		}
	})
}

// A step that fails ends the attempt, or not, as the policy says.
func TestStepThatFails(t *testing.T) {
	t.Parallel()
	for onError, outcomes := range map[string]string{"continue": "taken", "abort": "aborted aborted"} {
		t.Run(onError, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(asElsewhere), one("a"))
				c := w.client(withPolicy(t, strings.Replace(alwaysHot, `approval = "auto"`, `
					approval = "auto"
					step "exec" {
						command  = ["false"]
						on_error = "`+onError+`"
					}
					step "take" {}
					budget {
						max = 1
						per = "1h"
					}
				`, 1)))
				p := w.acquiring(c, one("a"))
				if onError == "continue" {
					p.wait(time.Minute)
				} else {
					p.waits(20 * time.Second)
					w.stillHolds(old)
				}
				if got := w.outcomes("a"); got != outcomes {
					t.Fatalf("breaks: %s", got)
				}
				b := w.breaks("a")[0]
				if len(b.Steps) == 0 || b.Steps[0].Step != "exec" || b.Steps[0].Result != "failed" {
					t.Fatalf("steps %+v", b.Steps)
				}
				// One hold, however often.
				if w.spent("p") != 1 {
					t.Fatalf("the budget counts %d", w.spent("p"))
				}
			})
		})
	}
}

// The old session may hold more than the lock, or delete what it holds: then it
// is left alone and the record says so, unless somebody insists.
func TestWhatBecomesOfTheOldSession(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		behavior string
		other    bool
		force    bool
		gone     bool
		detail   string
	}{
		"nothing else":          {"release", false, false, true, "is destroyed"},
		"another key":           {"release", true, false, false, "ops/other"},
		"deletes":               {"delete", false, false, false, "behavior is delete"},
		"another key, insisted": {"release", true, true, true, "is destroyed"},
		"deletes, insisted":     {"delete", false, true, true, "is destroyed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(withPolicy(t, alwaysHot))
				w.apply(c)
				id := w.foreign("ops/.lock", tc.behavior)
				if tc.other {
					w.lockKey("ops/other", id)
				}
				out, err := c.Break(t.Context(), BreakRequest{Name: "ops/.lock", Force: tc.force})
				if err != nil {
					t.Fatal(err)
				}
				e, _, err := w.kv.API().Session().Info(id, nil)
				if err != nil || (e == nil) != tc.gone {
					t.Fatalf("session %+v, %v", e, err)
				}
				if b := w.breaks("ops/.lock"); len(b) != 1 || !strings.Contains(b[0].Detail, tc.detail) || !strings.Contains(out.Record.Detail, tc.detail) {
					t.Fatalf("breaks %+v", b)
				}
				p := w.get("ops/.lock")
				if p == nil || p.Session != "" || p.Flags != api.LockFlagValue {
					t.Fatalf("the lock's key is %+v", p)
				}
			})
		})
	}
}

// The two locks of a hold that one of them is broken of: the session stays for
// the other.
func TestBreakOfOneLockOfSeveral(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), Request{Names: []string{"a", "b"}})
		out, err := w.client(withPolicy(t, alwaysHot)).Break(t.Context(), BreakRequest{Name: "a"})
		if err != nil || !strings.Contains(out.Dismissed, w.keys.Lock("b")) {
			t.Fatalf("%+v, %v", out, err)
		}
		if p := w.get(w.keys.Lock("b")); p.Session != old.Session() {
			t.Fatal("b was freed too")
		}
		if _, err := old.Txn(t.Context(), consulkv.Set("x", nil)); !errors.Is(err, ErrLost) {
			t.Fatalf("the holder of one of two writes: %v", err)
		}
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A record that does not say what its session holds is not believed to hold
// nothing else.
func TestBreakOfARecordWithoutItsLocks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		id := w.foreign(w.keys.Lock("a"), "release")
		w.lockKey(w.keys.Lock("b"), id)
		for _, n := range []string{"a", "b"} {
			w.put(w.keys.Lock(n), &records.Holder{Version: records.Version, Lock: n, Tool: evidence.ToolAimlock, Session: id, Host: "elsewhere"})
		}
		out, err := w.client(withPolicy(t, alwaysHot)).Break(t.Context(), BreakRequest{Name: "a"})
		if err != nil || !strings.Contains(out.Dismissed, w.keys.Lock("b")) {
			t.Fatalf("%+v, %v", out, err)
		}
		if p := w.get(w.keys.Lock("b")); p.Session != id {
			t.Fatal("b was freed too")
		}
	})
}

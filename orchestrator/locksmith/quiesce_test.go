package locksmith

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
)

// cooled lets a lock-delay pass, so that what a test then waits for is the
// quiesce alone.
func cooled() { time.Sleep(16 * time.Second) }

// owes checks for how long the next acquisition of a waits.
func (w *world) owes(c *Client, want time.Duration) *Hold {
	w.t.Helper()
	var told string
	req := one("a")
	req.Notify = func(n Notice) {
		if n.Kind == NoticeQuiesce {
			told = n.Text
		}
	}
	start := time.Now()
	h := w.acquire(c, req)
	if took := time.Since(start); took < want || took > want+time.Second {
		w.t.Fatalf("waited %s, want %s", took, want)
	}
	if (told != "") != (want > 0) {
		w.t.Fatalf("was told %q", told)
	}
	if w.get(w.keys.Fence("a")) != nil {
		w.t.Fatal("what was served is still owed")
	}
	w.stillHolds(h)
	return h
}

func TestQuiesceAfterAnEndThatWasNotClean(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		by   func(*Config)
		req  Request
		end  func(w *world, h *Hold)
		want time.Duration
	}{
		"released":                   {asElsewhere, unfenced("a"), func(w *world, h *Hold) { _ = h.Release(w.t.Context()) }, 0},
		"session ended":              {asElsewhere, unfenced("a"), func(w *world, h *Hold) { w.destroy(h.Session()) }, 15 * time.Second},
		"session ended, all fenced":  {asElsewhere, one("a"), func(w *world, h *Hold) { w.destroy(h.Session()) }, 0},
		"session ended, proved dead": {asDead, unfenced("a"), func(w *world, h *Hold) { w.destroy(h.Session()) }, 0},
		"session ended, a process lives that only the progress names": {asDead, unfenced("a"), func(w *world, h *Hold) {
			me, _ := self()
			h.SetProcesses(records.Process{PID: me.PID, StartTicks: me.StartTicks})
			if err := h.Progress(w.t.Context(), 1, 2, "x", ""); err != nil {
				w.t.Fatal(err)
			}
			w.destroy(h.Session())
		}, 15 * time.Second},
		"abandoned": {asElsewhere, unfenced("a"), func(w *world, h *Hold) { h.Abandon(w.t.Context()) }, 15 * time.Second},
		"its record was erased by an unlock without a value": {asElsewhere, unfenced("a"), func(w *world, h *Hold) {
			p := &api.KVPair{Key: w.keys.Lock("a"), Session: h.Session()}
			if ok, _, err := w.kv.API().KV().Release(p, nil); err != nil || !ok {
				w.t.Fatal(ok, err)
			}
		}, 15 * time.Second},
		"its key was deleted": {asElsewhere, unfenced("a"), func(w *world, h *Hold) { w.delete(w.keys.Lock("a")) }, 15 * time.Second},
		"its key was deleted after its end": {asElsewhere, unfenced("a"), func(w *world, h *Hold) {
			w.destroy(h.Session())
			w.delete(w.keys.Lock("a"))
		}, 15 * time.Second},
		"its key was deleted after its release": {asElsewhere, unfenced("a"), func(w *world, h *Hold) {
			_ = h.Release(w.t.Context())
			w.delete(w.keys.Lock("a"))
		}, 0},
		"a longer one": {asElsewhere, Request{Names: []string{"a"}, Quiesce: 45 * time.Second}, func(w *world, h *Hold) {
			w.destroy(h.Session())
			time.Sleep(45 * time.Second)
		}, 45 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				tc.end(w, w.acquire(w.client(tc.by), tc.req))
				cooled()
				w.owes(w.client(), tc.want)
			})
		})
	}
}

// Whoever crashes while it waits leaves the whole wait to the next, as often as
// it happens, whatever it asks for itself.
func TestQuiesceSurvivesCrashes(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), unfenced("a")).Abandon(t.Context())
		cooled()
		for _, by := range []func(*Config){asElsewhere, asDead, asElsewhere} {
			p := w.acquiring(w.client(by), one("a"))
			p.waits(10 * time.Second)
			key, _ := w.holder("a")
			if key.Session == "" {
				t.Fatal("it does not hold the lock while it waits")
			}
			w.destroy(key.Session) // the crash, as Consul sees it
			<-p.done
			if !errors.Is(p.err, ErrLost) {
				t.Fatalf("got %v", p.err)
			}
			time.Sleep(time.Second) // its lock-delay is none
		}
		w.owes(w.client(), 15*time.Second)
	})
}

// A hold that was broken leaves its quiesce too, and a successor that crashes in
// it hands it on.
func TestQuiesceAfterABreakAndACrash(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot))
		w.acquire(w.client(asElsewhere), unfenced("a"))
		p := w.acquiring(c, one("a"))
		p.waits(10 * time.Second)
		key, _ := w.holder("a")
		w.destroy(key.Session)
		<-p.done
		if !errors.Is(p.err, ErrLost) || w.outcomes("a") != "taken" || w.breaks("a")[0].Quiesce != 15 {
			t.Fatalf("%v, breaks %+v", p.err, w.breaks("a"))
		}
		time.Sleep(time.Second)
		w.owes(w.client(), 15*time.Second)
	})
}

// alwaysHot is a policy that breaks every lock at once.
const alwaysHot = `policy "p" {
	locks = ["**", "/**"]
	hot "always" { when = session.exists }
	break {
		approval = "auto"
	}
}`

// A break without a successor leaves it as well.
func TestQuiesceAfterABreakOnly(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), unfenced("a"))
		if _, err := w.client(withPolicy(t, alwaysHot)).Break(t.Context(), BreakRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		w.owes(w.client(), 15*time.Second)
	})
}

// The policy raises what a hold asks for, never lowers it; and does so where a
// step, and not the last transaction, ends the hold.
func TestPolicyRaisesTheQuiesce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		brk  string
		req  Request
		want time.Duration
	}{
		"raised":             {`quiesce = "40s"`, one("a"), 40 * time.Second},
		"not lowered":        {`quiesce = "1s"`, unfenced("a"), 15 * time.Second},
		"raised, by a step":  {"quiesce = \"40s\"\n step \"destroy_session\" { wait = \"1s\" }", one("a"), 40 * time.Second},
		"a step, not raised": {`step "destroy_session" { wait = "1s" }`, unfenced("a"), 15 * time.Second},
		"a step, fenced":     {`step "destroy_session" { wait = "1s" }`, one("a"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(asElsewhere), tc.req)
				c := w.client(withPolicy(t, strings.Replace(alwaysHot, `approval = "auto"`, "\napproval = \"auto\"\n"+tc.brk+"\n", 1)))
				out, err := c.Break(t.Context(), BreakRequest{Name: "a"})
				if err != nil {
					t.Fatal(err)
				}
				// Who reads it must not think that the holder let go of its own will.
				if strings.Contains(tc.brk, "destroy_session") && (out.Record.Outcome != records.OutcomeEnded || !strings.Contains(out.Dismissed, "destroy_session") ||
					w.outcomes("a") != records.OutcomeEnded || w.breaks("a")[0].Quiesce != tc.want.Seconds()) {
					t.Errorf("%s, %q; in Consul %+v", out.Record.Outcome, out.Dismissed, w.breaks("a"))
				}
				cooled()
				w.owes(w.client(), tc.want)
			})
		})
	}
}

// A hold is proved dead before it has served the pause of the hold before it: what
// that one left is owed all the same, whatever the policy has put on top.
func TestRaisedQuiesceKeepsTheOneBefore(t *testing.T) {
	t.Parallel()
	const kill = `step "exec" { command = ["sh", "-c", "kill -9 PID; while kill -0 PID; do sleep 0.01; done"] }`
	for name, brk := range map[string]string{
		"not raised":                 kill + "\nstep \"take\" {}",
		"raised":                     "quiesce = \"60s\"\n" + kill + "\nstep \"take\" {}",
		"raised, and a step ends it": "quiesce = \"60s\"\n" + kill + "\nstep \"destroy_session\" {}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command("sleep", "600")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			reaped := make(chan struct{})
			go func() { defer close(reaped); _ = cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill(); <-reaped })
			p, err := hostproc.Lookup(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			pol := strings.Replace(alwaysHot, `approval = "auto"`, "\napproval = \"auto\"\n"+strings.ReplaceAll(brk, "PID", fmt.Sprint(p.PID))+"\n", 1)
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(asElsewhere), Request{Names: []string{"a"}, Quiesce: 45 * time.Second}).Abandon(t.Context())
				time.Sleep(46 * time.Second)
				serving := w.acquiring(w.client(func(c *Config) {
					c.Self, _ = self()
					c.Self.PID, c.Self.StartTicks = p.PID, p.StartTicks
				}), unfenced("a"))
				serving.waits(3 * time.Second)
				start := time.Now()
				h := w.acquire(w.client(withPolicy(t, pol)), one("a"))
				if took := time.Since(start); took < 45*time.Second {
					t.Errorf("it works %s after the break began, and owes 45s to the first hold: breaks %s", took, w.outcomes("a"))
				}
				w.stillHolds(h)
			})
		})
	}
}

// A holder that lets go cleanly in spite of a step takes back what the step had
// put there.
func TestCleanReleaseAfterAStepOwesNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(asElsewhere), one("a"))
		c := w.client(withPolicy(t, `policy "p" {
			locks = ["**"]
			hot "always" { when = session.has_ttl }
			break {
				approval = "auto"
				quiesce  = "40s"
				step "exec" {
					command = ["true"]
					wait    = "10s"
				}
				step "take" {}
			}
		}`))
		go func() {
			time.Sleep(5 * time.Second)
			_ = h.Release(context.Background())
		}()
		out, err := c.Break(t.Context(), BreakRequest{Name: "a"})
		if err != nil || out.Record.Outcome != records.OutcomeReleased {
			t.Fatalf("%+v, %v", out, err)
		}
		w.owes(w.client(), 0)
	})
}

// The lock of another tool was held by who knows what.
func TestQuiesceAfterAForeignHold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot))
		w.apply(c)
		w.foreign("ops/.lock", "release")
		start := time.Now()
		h := w.acquire(c, one("ops/.lock"))
		if took := time.Since(start); took < 15*time.Second || took > 20*time.Second || w.outcomes("ops/.lock") != "taken" {
			t.Fatalf("waited %s, breaks: %s", took, w.outcomes("ops/.lock"))
		}
		if f := w.get("ops/.lock").Flags; f != api.LockFlagValue {
			t.Fatalf("flags %x: consul lock will refuse the key", f)
		}
		w.stillHolds(h)
	})
}

// Whoever gives up while it waits hands on what is owed, though it lets go
// cleanly.
func TestGivingUpKeepsWhatIsOwed(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), unfenced("a")).Abandon(t.Context())
		cooled()
		p := w.acquiring(w.client(), one("a"))
		p.waits(5 * time.Second)
		p.cancel()
		<-p.done
		if _, rec := w.holder("a"); !rec.Released {
			t.Fatal("it did not let go")
		}
		w.owes(w.client(), 15*time.Second)
	})
}

// Who gives up a hold under which nothing was done leaves no pause of its own: neither
// where it found nothing owed, nor under the locks beside one that owes.
func TestGivingUpLeavesNothingOfItsOwn(t *testing.T) {
	t.Parallel()
	t.Run("it cannot read the epoch", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T, w *world) {
			w.put(w.keys.Epoch(), "x")
			if _, err := w.client(asElsewhere).Acquire(t.Context(), unfenced("a")); err == nil {
				t.Fatal("there is no epoch")
			}
			w.delete(w.keys.Epoch())
			w.owes(w.client(), 0)
		})
	})
	t.Run("another lock owes", func(t *testing.T) {
		t.Parallel()
		run(t, func(t *testing.T, w *world) {
			w.acquire(w.client(asElsewhere), unfenced("a")).Abandon(t.Context())
			cooled()
			p := w.acquiring(w.client(asElsewhere), unfenced("a", "b"))
			p.waits(5 * time.Second)
			p.cancel()
			<-p.done
			if w.get(w.keys.Fence("b")) != nil {
				t.Errorf("b owes %s", w.value(w.keys.Fence("b")))
			}
			w.owes(w.client(), 15*time.Second)
		})
	})
}

// What is owed is read from records that anybody with key:write may write.
func TestAbsurdFences(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot))
		h := w.acquire(c, one("a"))
		w.put(w.keys.Fence("a"), "nonsense")

		// Nobody takes or breaks it, and everybody else is still listed.
		for name, do := range map[string]func() error{
			"break": func() error { _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); return err },
			"take":  func() error { _, err := c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true}); return err },
		} {
			err := do()
			text := fmt.Sprint(err)
			if ref, ok := errors.AsType[*RefusedError](err); ok && ref.Hot {
				text = ref.Status.Next
			}
			if !strings.Contains(text, w.keys.Fence("a")) {
				t.Errorf("%s: %s", name, text)
			}
		}
		if list, err := c.List(t.Context(), ""); err != nil || len(list) != 1 {
			t.Errorf("list: %d, %v", len(list), err)
		}
		w.stillHolds(h)
		h.Abandon(t.Context())
		if _, err := c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true}); err == nil || !strings.Contains(err.Error(), w.keys.Fence("a")) {
			t.Errorf("free: %v", err)
		}

		// More seconds than a duration has are not none.
		w.put(w.keys.Fence("a"), &records.Fence{Version: 1, Owed: 1e300})
		p := w.acquiring(c, one("a"))
		p.waits(10 * time.Minute)
		w.put(w.keys.Fence("a"), &records.Fence{Version: 1, Owed: -1e300})
	})
}

// The fence is written in the transaction that ends the hold: there is no
// moment at which it is free and nothing is owed.
func TestFenceStandsWhenTheHoldEnds(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), unfenced("a"))
		var fence *api.KVPair
		w.net.before(path("/v1/session/destroy/"), func() { fence, _ = w.kv.Get(context.Background(), w.keys.Fence("a")) })
		if _, err := w.client(withPolicy(t, alwaysHot)).Break(t.Context(), BreakRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		key, _ := w.holder("a")
		if fence == nil || fence.ModifyIndex != key.ModifyIndex {
			t.Fatalf("fence %+v, lock of index %d", fence, key.ModifyIndex)
		}
	})
}

// What an outsider puts into the fence while it is read fails the acquisition,
// and is served.
func TestFenceThatChangesWhileTheLockIsTaken(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.net.before(txnWith("lock"), func() { w.put(w.keys.Fence("a"), &records.Fence{Version: 1, Owed: 7}) })
		w.owes(w.client(), 7*time.Second)
	})
}

// Several locks: the longest of what they owe, once.
func TestQuiesceOfSeveralLocks(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.put(w.keys.Fence("a"), &records.Fence{Version: 1, Owed: 7})
		w.put(w.keys.Fence("b"), &records.Fence{Version: 1, Owed: 20})
		start := time.Now()
		h := w.acquire(w.client(), Request{Names: []string{"a", "b", "c"}})
		if took := time.Since(start); took < 20*time.Second || took > 21*time.Second {
			t.Fatalf("waited %s", took)
		}
		for _, n := range h.Names() {
			if w.get(w.keys.Fence(n)) != nil {
				t.Fatalf("the fence of %s is left", n)
			}
		}
		if _, err := h.Txn(t.Context(), consulkv.Set("x", nil)); err != nil {
			t.Fatal(err)
		}
	})
}

// Who waits for a lock-delay serves the pause meanwhile: it saw the lock be free all
// that time. What it did not see counts for nothing.
func TestQuiesceWhileTheLockCools(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		// after 10 s of cooling, for which the lock then is waited for from there on
		harm func(w *world)
		want time.Duration
	}{
		"seen all the time": {func(*world) {}, 15 * time.Second},
		"its key was written": {func(w *world) {
			_, rec := w.holder("a")
			w.put(w.keys.Lock("a"), &rec)
		}, 25 * time.Second},
		"more is owed":        {func(w *world) { w.put(w.keys.Fence("a"), &records.Fence{Version: 1, Owed: 30}) }, 40 * time.Second},
		"its key was deleted": {func(w *world) { w.delete(w.keys.Lock("a")) }, 30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(asElsewhere), unfenced("a"))
				p := w.acquiring(w.client(), one("a"))
				p.waits(5 * time.Second)
				start := time.Now()
				w.destroy(h.Session())
				p.waits(10 * time.Second)
				tc.harm(w)
				next := p.wait(time.Minute)
				if took := time.Since(start); took < tc.want || took > tc.want+3*time.Second {
					t.Errorf("it began %s after the end of the hold, want %s", took, tc.want)
				}
				if w.get(w.keys.Fence("a")) != nil {
					t.Error("what was served is still owed")
				}
				w.stillHolds(next)
			})
		})
	}
}

// A rule that gives a holder less time than the pause which it first serves breaks
// nobody before they could do anything, and what it does not count is shown.
func TestHeldForLeavesThePauseOut(t *testing.T) {
	t.Parallel()
	const long = `policy "p" {
	locks = ["**"]
	hot "long" { when = lock.held_for > 5 }
	break { approval = "auto" }
}`
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(asElsewhere), unfenced("a")).Abandon(t.Context())
		cooled()
		second := w.acquiring(w.client(asElsewhere), unfenced("a"))
		second.waits(time.Second)
		start := time.Now()
		c := w.client(withPolicy(t, long))
		third := w.acquiring(c, unfenced("a"))
		third.waits(12 * time.Second)
		v, err := c.NewObserver("a", nil).Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st := c.Status(v); st.HeldFor == nil || *st.HeldFor < 10 || *st.HeldFor > 15 {
			t.Errorf("in its pause it is shown to be held for %v s", st.HeldFor)
		}
		h := second.wait(10 * time.Second)
		if took := time.Since(start); took < 13*time.Second || took > 16*time.Second {
			t.Errorf("it had its hold after %s", took)
		}
		third.waits(4 * time.Second)
		w.stillHolds(h)
		if err := waitDone(t, h.Context(), 3*time.Second); !errors.Is(err, ErrLost) {
			t.Fatalf("got %v", err)
		}
		third.wait(time.Minute)
		if got := w.outcomes("a"); got != "taken" {
			t.Errorf("breaks: %s", got)
		}
	})
}

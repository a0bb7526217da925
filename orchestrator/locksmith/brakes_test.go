package locksmith

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// asking is always hot, and asks for a while before it takes: time for a brake
// to be put on after the intent.
var asking = strings.Replace(alwaysHot, `approval = "auto"`, `
	approval = "auto"
	step "request" { wait = "20s" }
	step "take" {}
	freeze { when = now.hour > 30 }
`, 1)

// budgeted is always hot, and breaks so many times in an hour by itself.
func budgeted(most int) string {
	return strings.Replace(alwaysHot, `approval = "auto"`, fmt.Sprintf(`
	approval = "auto"
	budget {
		max = %d
		per = "1h"
	}`, most), 1)
}

func manual(policy string) string { return strings.Replace(policy, `"auto"`, `"manual"`, 1) }

// approve approves that lock a is broken.
func (w *world) approve(c *Client, ttl time.Duration) {
	w.t.Helper()
	if _, err := c.Approve(w.t.Context(), "a", "go on", ttl); err != nil {
		w.t.Fatal(err)
	}
}

// A lock is not broken under any of these, by a one-shot command or by one that
// waits; and it is broken once the brake is off.
func TestBrakes(t *testing.T) {
	t.Parallel()
	never := strings.Replace(alwaysHot, `"auto"`, `"never"`, 1)
	for name, tc := range map[string]struct {
		policy string
		on     func(w *world, c *Client, old *Hold)
		off    func(w *world, c *Client) // nil: it never is
		says   string
		next   string
	}{
		"no break block": {policy: `policy "p" {
			locks = ["**"]
			hot "always" { when = session.exists }
		}`, says: "never br"},
		"approval never": {policy: never, says: `approval = "never"`},
		"another policy is applied": {policy: alwaysHot,
			on: func(w *world, _ *Client, _ *Hold) {
				w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: "other"})
			},
			off: func(w *world, c *Client) { w.apply(c) }, says: "not the ones applied", next: "aimlock policy show -active > applied.hcl"},
		"the applied policy is unreadable": {policy: alwaysHot,
			on:  func(w *world, _ *Client, _ *Hold) { w.put(w.keys.PolicyActive(), "x") },
			off: func(w *world, _ *Client) { w.delete(w.keys.PolicyActive()) }, says: "policies/active"},
		"the applied policy is empty": {policy: alwaysHot,
			on:  func(w *world, _ *Client, _ *Hold) { w.put(w.keys.PolicyActive(), "") },
			off: func(w *world, _ *Client) { w.delete(w.keys.PolicyActive()) }, says: "policies/active"},
		"suspended": {policy: alwaysHot,
			on: func(w *world, _ *Client, _ *Hold) {
				w.put(w.keys.PolicySuspended(), &records.PolicySuspended{Version: 1, By: "ann", Reason: "change freeze"})
			},
			off: func(w *world, _ *Client) { w.delete(w.keys.PolicySuspended()) }, says: "suspended by ann: change freeze"},
		"suspended by a record that is unreadable": {policy: alwaysHot,
			on:  func(w *world, _ *Client, _ *Hold) { w.put(w.keys.PolicySuspended(), "x") },
			off: func(w *world, _ *Client) { w.delete(w.keys.PolicySuspended()) }, says: "suspended", next: "aimlock policy resume"},
		"silenced": {policy: alwaysHot, on: func(w *world, c *Client, _ *Hold) { w.silence(c, "a", 24*time.Hour) },
			off: func(w *world, c *Client) {
				if _, err := c.EndSilence(w.t.Context(), "a"); err != nil {
					w.t.Fatal(err)
				}
			}, says: "silenced by tester until", next: "aimlock lock silence -end a"},
		"silenced for a while": {policy: alwaysHot, on: func(w *world, c *Client, _ *Hold) { w.silence(c, "a", time.Minute) },
			off: func(*world, *Client) { time.Sleep(time.Minute) }, says: "silenced"},
		"silenced by a record that is unreadable": {policy: alwaysHot,
			on:  func(w *world, _ *Client, _ *Hold) { w.put(w.keys.Silence("a"), "x") },
			off: func(w *world, _ *Client) { w.delete(w.keys.Silence("a")) }, says: "silences/a"},
		"not approved": {policy: manual(alwaysHot),
			off: func(w *world, c *Client) { w.approve(c, time.Hour) }, says: "approval", next: "aimlock lock approve a"},
		"approved under other policies": {policy: manual(alwaysHot), on: func(w *world, c *Client, _ *Hold) {
			w.approve(w.client(), time.Hour)
			w.apply(c)
		}, off: func(w *world, _ *Client) {
			// Whoever approves does so under what is applied, whatever he has.
			w.approve(w.client(), time.Hour)
		}, says: "under other policies", next: "aimlock lock approve a"},
		"approval of another session": {policy: manual(alwaysHot), on: func(w *world, _ *Client, old *Hold) {
			w.put(w.keys.Approval("a"), &records.Approval{Version: 1, Session: "x", Token: old.Token(), Expires: time.Now().Add(time.Hour)})
		}, says: "earlier holder"},
		"approval of another token": {policy: manual(alwaysHot), on: func(w *world, _ *Client, old *Hold) {
			w.put(w.keys.Approval("a"), &records.Approval{Version: 1, Session: old.Session(), Token: old.Token() - 1, Expires: time.Now().Add(time.Hour)})
		}, says: "earlier holder"},
		"approval that expired": {policy: manual(alwaysHot), on: func(w *world, _ *Client, old *Hold) {
			w.put(w.keys.Approval("a"), &records.Approval{Version: 1, Session: old.Session(), Token: old.Token(), Expires: time.Now()})
		}, says: "expired"},
		"approval for another rule": {policy: manual(alwaysHot), on: func(w *world, _ *Client, old *Hold) {
			w.put(w.keys.Approval("a"), &records.Approval{Version: 1, Session: old.Session(), Token: old.Token(), Rule: "stalled", Expires: time.Now().Add(time.Hour)})
		}, says: "for rule stalled"},
		"the budget is spent": {policy: budgeted(2), on: func(w *world, _ *Client, _ *Hold) {
			w.put(w.keys.Budget("p"), &records.Budget{Version: 1, Breaks: []records.BudgetItem{
				{Lock: "x", At: time.Now().Add(-time.Hour + 3*time.Minute), Token: 1}, {Lock: "y", At: time.Now().Add(100 * 365 * 24 * time.Hour), Token: 2},
			}})
		}, off: func(*world, *Client) { time.Sleep(4 * time.Minute) }, says: "budget of policy p is spent: 2 breaks in 1h; "},
		"the budget is spent in the future": {policy: budgeted(1), on: func(w *world, _ *Client, _ *Hold) {
			w.put(w.keys.Budget("p"), &records.Budget{Version: 1, Breaks: []records.BudgetItem{{Lock: "y", At: time.Now().Add(100 * 365 * 24 * time.Hour), Token: 2}}})
		}, off: func(w *world, _ *Client) { w.delete(w.keys.Budget("p")) }, says: "aimlock/budgets/p holds a break of the future"},
		"the budget is unreadable": {policy: budgeted(2), on: func(w *world, _ *Client, _ *Hold) { w.put(w.keys.Budget("p"), "x") },
			off: func(w *world, _ *Client) { w.delete(w.keys.Budget("p")) }, says: "budget cannot be read"},
		"frozen": {policy: strings.Replace(alwaysHot, `approval = "auto"`, `
			approval = "auto"
			freeze { when = session.exists }`, 1), says: "frozen"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(withPolicy(t, tc.policy))
				old := w.acquire(w.client(asElsewhere), one("a"))
				if tc.on != nil {
					tc.on(w, c, old)
				}
				_, err := c.Break(t.Context(), BreakRequest{Name: "a"})
				no, ok := errors.AsType[*NotPermittedError](err)
				if !ok || !strings.Contains(no.Error(), tc.says) || tc.next != "" && no.Next != tc.next {
					t.Fatalf("break: %v", err)
				}
				if _, err := c.Break(t.Context(), BreakRequest{Name: "a", DryRun: true}); err == nil {
					t.Fatal("a dry run says that it would be broken")
				}
				_, err = c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true})
				ref, ok := errors.AsType[*RefusedError](err)
				if !ok || !ref.Hot || ref.Status.State != Hot || !strings.Contains(ref.Status.Next, tc.says) {
					t.Fatalf("try: %v, next %q", err, ref.Status.Next)
				}
				v, err := c.NewObserver("a", nil).Observe(t.Context())
				if err != nil || v.State != Hot {
					t.Fatalf("%+v, %v", v, err)
				}
				if next := c.Next(v, nil); strings.Contains(next, "aimlock lock break") {
					t.Fatalf("who did not ask whether it may be broken now is told to: %s", next)
				}
				p := w.acquiring(c, one("a"))
				p.waits(20 * time.Second)
				if n := len(p.kinds()); n > 4 {
					t.Fatalf("was told %d times: %v", n, p.kinds())
				}
				w.stillHolds(old)
				if len(w.breaks("a")) > 0 {
					t.Fatalf("breaks %+v", w.breaks("a"))
				}
				if tc.off != nil {
					tc.off(w, c)
					p.wait(15 * time.Second)
					if w.outcomes("a") != "taken" {
						t.Fatalf("breaks: %s", w.outcomes("a"))
					}
				}
			})
		})
	}
}

// Who is told that the budget is spent is told when Consul frees the lock anyway, if
// it does; of another brake he is not told that.
func TestSpentBudgetEndsAnyway(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		brake string
		s     *api.SessionEntry
		want  string
	}{
		"a TTL":         {brakeBudget, &api.SessionEntry{TTL: "15s", LockDelay: 15 * time.Second}, "; if its holder is gone, Consul frees it by itself within about 45s"},
		"no TTL":        {brakeBudget, &api.SessionEntry{LockDelay: 15 * time.Second}, ""},
		"no session":    {brakeBudget, nil, ""},
		"another brake": {brakeFreeze, &api.SessionEntry{TTL: "15s"}, ""},
	} {
		if got := endsAnyway(&evidence.Snapshot{Session: tc.s}, &Permit{brake: tc.brake}); got != tc.want {
			t.Errorf("%s: %q, not %q", name, got, tc.want)
		}
	}
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, budgeted(1)))
		w.put(w.keys.Budget("p"), &records.Budget{Version: 1, Breaks: []records.BudgetItem{{Lock: "x", At: time.Now(), Token: 1}}})
		w.acquire(w.client(asElsewhere), one("a"))
		_, err := c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true})
		ref, ok := errors.AsType[*RefusedError](err)
		if want := "1 break in 1h; one more is allowed in 1h0m0s; if its process is gone, Consul frees it by itself within about 10s"; !ok || !strings.HasSuffix(ref.Status.Next, want) {
			t.Fatalf("%v: next %q, not %q", err, ref.Status.Next, want)
		}
		_, err = c.Break(t.Context(), BreakRequest{Name: "a"})
		if not, ok := errors.AsType[*NotPermittedError](err); !ok || not.Anyway != "; if its process is gone, Consul frees it by itself within about 10s" {
			t.Fatalf("the break: %v", err)
		}
	})
}

// A token that may not check that no policies are applied is told to apply some; of
// what else is refused it is not told that.
func TestUnappliedIsTold(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		denied := func(key string) error {
			return &consulkv.Error{Kind: consulkv.Denied, Op: "transaction", Err: errors.New("check-not-exists " + key + ": Permission denied: token lacks permission 'key:write' on \"" + key + "\"")}
		}
		for err, told := range map[error]bool{
			denied(w.keys.PolicyActive()): true,
			denied(w.keys.Silence("a")):   false,
			errors.New("check-not-exists " + w.keys.PolicyActive() + ": too late"): false,
		} {
			got := c.unapplied(err)
			if !errors.Is(got, err) || strings.HasPrefix(got.Error(), "apply policies first: `aimlock policy apply`") != told {
				t.Errorf("%v: %v", err, got)
			}
			if told && strings.Contains(got.Error(), "key:write") {
				t.Errorf("a second way out, to a right that nobody should have: %v", got)
			}
		}
		if err := c.unapplied(nil); err != nil {
			t.Error(err)
		}
	})
}

// A brake that is put on after the intent still holds, for the last transaction and
// for a step that destroys: the steps before may have taken their time.
func TestBrakesHoldToTheEnd(t *testing.T) {
	t.Parallel()
	suspend := func(w *world, _ *Hold) {
		w.put(w.keys.PolicySuspended(), &records.PolicySuspended{Version: 1, By: "ann"})
	}
	approve := func(w *world, c *Client) { w.approve(c, time.Hour) }
	for name, tc := range map[string]struct {
		policy string
		before func(w *world, c *Client)
		on     func(w *world, old *Hold)
	}{
		"suspended": {asking, nil, suspend},
		"another policy is applied": {asking, nil, func(w *world, _ *Hold) {
			w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: "other"})
		}},
		"the approval is withdrawn": {manual(asking), approve, func(w *world, _ *Hold) { w.delete(w.keys.Approval("a")) }},
		"the approval expires":      {manual(asking), func(w *world, c *Client) { w.approve(c, 10*time.Second) }, func(*world, *Hold) {}},
		"it is silenced":            {asking, nil, func(w *world, _ *Hold) { w.silence(w.client(), "a", time.Hour) }},
		"it freezes": {strings.Replace(asking, "now.hour > 30", `progress.unit == "frozen"`, 1), nil, func(w *world, old *Hold) {
			w.put(w.keys.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: old.Session(), Unit: "frozen"})
		}},
	} {
		for _, end := range []string{"take", "take, at the last moment", "destroy_session"} {
			late := strings.Contains(end, "last")
			if late && strings.Contains(name, "expires") {
				continue // time is no key: what is judged a moment before is judged
			}
			t.Run(name+", "+end, func(t *testing.T) {
				t.Parallel()
				run(t, func(t *testing.T, w *world) {
					policy := tc.policy
					if end == "destroy_session" {
						policy = strings.Replace(policy, `step "take" {}`, `step "destroy_session" {}`, 1)
					}
					c := w.client(withPolicy(t, policy))
					old := w.deaf(w.acquire(w.client(asElsewhere), one("a")))
					if tc.before != nil {
						tc.before(w, c)
					}
					if late {
						w.net.before(txnWith("unlock", "lock"), func() { tc.on(w, old) })
					}
					p := w.acquiring(c, one("a"))
					p.waits(5 * time.Second)
					if !p.told(NoticeStep) {
						t.Fatalf("was told %v", p.kinds())
					}
					if !late {
						tc.on(w, old)
					}
					p.waits(20 * time.Second)
					if got := w.outcomes("a"); got != "aborted" {
						t.Fatalf("breaks: %s", got)
					}
					if key, _ := w.holder("a"); key.Session != old.Session() {
						t.Fatal("its hold was ended")
					}
				})
			})
		}
	}
}

// UNKNOWN and WARM are never broken, nor what no rule calls hot, nor what no
// policy is for.
func TestOnlyHotIsBroken(t *testing.T) {
	t.Parallel()
	const brk = "\n break { approval = \"auto\" }\n}"
	for name, tc := range map[string]struct{ policy, state string }{
		"unknown":         {`policy "p" {` + "\n locks = [\"**\"]\n hot \"dead\" { when = holder.alive == false }" + brk, Unknown},
		"unknown, warm":   {`policy "p" {` + "\n locks = [\"**\"]\n warm \"w\" { when = session.exists }\n hot \"dead\" { when = holder.alive == false }" + brk, Unknown},
		"warm":            {`policy "p" {` + "\n locks = [\"**\"]\n warm \"w\" { when = session.exists }" + brk, Warm},
		"held":            {`policy "p" {` + "\n locks = [\"**\"]\n hot \"never\" { when = session.ttl > 1000 }" + brk, Held},
		"null":            {`policy "p" {` + "\n locks = [\"**\"]\n hot \"old\" { when = progress.age > 0 }" + brk, Held},
		"no policy":       {`policy "p" {` + "\n locks = [\"other\"]\n hot \"always\" { when = session.exists }" + brk, Held},
		"not long enough": {`policy "p" {` + "\n locks = [\"**\"]\n hot \"always\" {\n when = session.exists\n for = \"100h\"\n }" + brk, Held},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(withPolicy(t, tc.policy))
				old := w.acquire(w.client(asElsewhere), one("a"))
				if tc.state != Held || name != "not long enough" {
					_, err := c.Break(t.Context(), BreakRequest{Name: "a", Force: true})
					if ref, ok := errors.AsType[*RefusedError](err); !ok || ref.Status.State != tc.state || ref.Hot {
						t.Fatalf("break: %v", err)
					}
				}
				p := w.acquiring(c, Request{Names: []string{"a"}, Wait: 5 * time.Minute})
				p.waits(4 * time.Minute)
				w.stillHolds(old)
				if len(w.breaks("a")) > 0 {
					t.Fatalf("breaks %+v", w.breaks("a"))
				}
				<-p.done
				if ref, ok := errors.AsType[*RefusedError](p.err); !ok || ref.Status.State != tc.state || ref.Why != "waited 5m0s" {
					t.Fatalf("the wait ended by %v", p.err)
				}
			})
		})
	}
}

// A holder that lives and works is never broken, for as long as it goes on.
func TestLiveHolderIsNeverBroken(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func(*Config){"here": func(*Config) {}, "elsewhere": asElsewhere} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				old := w.acquire(w.client(by), unfenced("a"))
				p := w.acquiring(w.client(), one("a"))
				for range 12 {
					w.progress(old)
					p.waits(time.Minute)
				}
				w.stillHolds(old)
				if len(w.breaks("a")) > 0 || w.get(w.keys.Request("a")) != nil {
					t.Fatalf("breaks %+v", w.breaks("a"))
				}
			})
		})
	}
}

// Every observation that confirms must be hot by the same rule.
func TestConfirm(t *testing.T) {
	t.Parallel()
	const policy = `policy "p" {
		locks = ["**"]
		hot "one" { when = progress.unit == "one" }
		hot "two" { when = progress.unit == "two" }
		break {
			approval = "auto"
			confirm {
				observations = 5
				every        = "2s"
			}
		}
	}`
	unit := func(w *world, old *Hold, unit string) {
		w.put(w.keys.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: old.Session(), Unit: unit})
	}
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), one("a"))
		unit(w, old, "one")
		p := w.acquiring(w.client(withPolicy(t, policy)), one("a"))
		p.waits(7 * time.Second)
		unit(w, old, "two")
		p.waits(7 * time.Second)
		unit(w, old, "none")
		p.waits(30 * time.Second)
		w.stillHolds(old)
		if len(w.breaks("a")) > 0 {
			t.Fatalf("breaks %+v", w.breaks("a"))
		}
		unit(w, old, "two")
		start := time.Now()
		p.wait(time.Minute)
		if took := time.Since(start); took < 8*time.Second {
			t.Fatalf("confirmed in %s", took)
		}
	})
}

// The locks of other tools are broken by an applied policy only, and only by one
// that names whole keys.
func TestForeignLocks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		locks   string
		applied bool
		broken  bool
	}{
		"nothing applied":      {`["/**"]`, false, false},
		"applied":              {`["/**"]`, true, true},
		"applied, not for it":  {`["**"]`, true, false},
		"applied, another key": {`["/other/**"]`, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(withPolicy(t, strings.Replace(alwaysHot, `["**", "/**"]`, tc.locks, 1)))
				id := w.foreign("ops/.lock", "release")
				if tc.applied {
					w.apply(c)
				}
				_, err := c.Break(t.Context(), BreakRequest{Name: "ops/.lock"})
				if (err == nil) != tc.broken {
					t.Fatalf("break: %v", err)
				}
				if p := w.get("ops/.lock"); (p.Session == id) == tc.broken {
					t.Fatalf("session %q", p.Session)
				}
			})
		})
	}
}

// A foreign session on an own key whose value is an old record: it is not
// aimlock's hold, though the record is.
func TestForeignHoldWithAnOldRecord(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		dead := w.acquire(w.client(asDead), one("a"))
		value := w.get(w.keys.Lock("a")).Value
		if err := dead.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := w.foreign("other", "release")
		op := w.get(w.keys.Lock("a"))
		op.Session, op.Value = id, value
		if ok, _, err := w.kv.API().KV().Acquire(op, nil); err != nil || !ok {
			t.Fatal(ok, err)
		}
		p := w.acquiring(w.client(), one("a"))
		p.waits(2 * time.Minute)
		if got := w.get(w.keys.Lock("a")); got.Session != id {
			t.Fatal("a live holder was proved dead by the record of another")
		}
	})
}

// Two locks, one break left in the budget, both broken at the same moment.
func TestBudgetRace(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, budgeted(1)))
		var olds []*Hold
		var ps []*pending
		// All have their permits before the first intent is committed.
		for i, n := range []string{"a", "b", "c"} {
			w.net.before(w.intentOf(n), func() { time.Sleep(time.Duration(i+1) * 500 * time.Millisecond) })
		}
		for _, n := range []string{"a", "b", "c"} {
			olds = append(olds, w.acquire(w.client(asElsewhere), one(n)))
			ps = append(ps, w.acquiring(c, one(n)))
		}
		i := firstDone(t, ps, time.Minute)
		time.Sleep(time.Minute)
		broken := 0
		for j, h := range olds {
			if key, _ := w.holder(h.Names()[0]); key.Session != h.Session() {
				broken++
				if j != i {
					t.Errorf("%s was broken, and %s got it first", h.Names()[0], olds[i].Names()[0])
				}
			}
		}
		if broken != 1 || w.spent("p") != 1 {
			t.Fatalf("%d were broken, the budget counts %d", broken, w.spent("p"))
		}
	})
}

// The intent fails if the policies change between permit and intent.
func TestIntentRestsOnThePermit(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(w *world, c *Client){
		"policies": func(w *world, c *Client) { w.apply(c) },
		"budget": func(w *world, _ *Client) {
			w.put(w.keys.Budget("default"), &records.Budget{Version: 1, Breaks: []records.BudgetItem{{At: time.Now(), Token: 1}}})
		},
		"suspended": func(w *world, _ *Client) { w.put(w.keys.PolicySuspended(), &records.PolicySuspended{Version: 1}) },
		"lock":      func(w *world, _ *Client) { w.put(w.keys.Lock("a"), "x") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(asDead), one("a"))
				c := w.client()
				var refused bool
				w.net.before(w.intentOf("a"), func() { do(w, c) })
				obs := c.NewObserver("a", nil)
				v, err := obs.Observe(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				_, err = c.startBreak(t.Context(), []*target{{name: "a", obs: obs, v: v}}, func(Notice) {}, false, nil)
				refused = errors.Is(err, errChanged)
				if !refused || len(w.breaks("a")) > 0 {
					t.Fatalf("got %v, breaks %+v", err, w.breaks("a"))
				}
			})
		})
	}
}

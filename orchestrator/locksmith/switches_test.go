package locksmith

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

func (w *world) silence(c *Client, name string, d time.Duration) {
	w.t.Helper()
	if _, _, err := c.Silence(w.t.Context(), name, "debugging", d); err != nil {
		w.t.Fatal(err)
	}
}

// A silence is the operator's word: proof does not overrule it, it is about the
// lock and not about a hold, and other locks are none of its business.
func TestSilence(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		w.acquire(w.client(asDead), one("a"))
		w.acquire(w.client(asDead), one("b"))
		w.silence(c, "a", time.Hour)
		if _, err := c.Break(t.Context(), BreakRequest{Name: "b"}); err != nil {
			t.Fatalf("another lock: %v", err)
		}
		for _, dry := range []bool{true, false} {
			_, err := c.Break(t.Context(), BreakRequest{Name: "a", DryRun: dry})
			no, ok := errors.AsType[*NotPermittedError](err)
			if !ok || !strings.Contains(no.Why, "silenced by tester until ") || !strings.HasSuffix(no.Why, ": debugging") || no.Next != "aimlock lock silence -end a" {
				t.Fatalf("dry run %v: %v", dry, err)
			}
		}
		if len(w.breaks("a")) > 0 {
			t.Fatalf("breaks %+v", w.breaks("a"))
		}
		v, err := c.NewObserver("a", nil).Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st := c.Status(v); st.Silence == nil || !strings.Contains(c.Next(v, nil), "silenced by tester") {
			t.Fatalf("status %+v, next %q", st.Silence, c.Next(v, nil))
		}
		rec, old, err := c.Silence(t.Context(), "a", "longer", 2*time.Hour)
		if err != nil || old == nil || old.Reason != "debugging" || rec.Host == "" || rec.User == "" {
			t.Fatalf("%+v replaced %+v: %v", rec, old, err)
		}
		time.Sleep(2*time.Hour - time.Second)
		if all, err := c.Silences(t.Context()); err != nil || all["a"] == nil {
			t.Fatalf("silences %v: %v", all, err)
		}
		time.Sleep(time.Second)
		if all, err := c.Silences(t.Context()); err != nil || len(all) != 0 {
			t.Fatalf("silences %v: %v", all, err)
		}
		w.acquire(w.client(asDead), one("c"))
		w.silence(c, "c", time.Hour)
		if old, err := c.EndSilence(t.Context(), "c"); err != nil || old == nil {
			t.Fatalf("end: %v, %v", old, err)
		}
		if old, err := c.EndSilence(t.Context(), "c"); err != nil || old != nil {
			t.Fatalf("end again: %v, %v", old, err)
		}
		if _, err := c.Break(t.Context(), BreakRequest{Name: "c"}); err != nil {
			t.Fatal(err)
		}
	})
}

// The locks of other tools are silenced by their whole keys, and lists show it.
func TestSilenceOfAnotherToolsLock(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot))
		w.apply(c)
		w.foreign("ops/.lock", "release")
		w.silence(c, "ops/.lock", time.Hour)
		_, err := c.Break(t.Context(), BreakRequest{Name: "ops/.lock"})
		if no, ok := errors.AsType[*NotPermittedError](err); !ok || !strings.Contains(no.Why, "silenced") {
			t.Fatalf("break: %v", err)
		}
		list, err := c.List(t.Context(), "")
		if err != nil || len(list) != 1 || c.Status(list[0]).Silence == nil {
			t.Fatalf("list %v: %v", list, err)
		}
	})
}

func TestSuspend(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		w.acquire(w.client(asDead), one("a"))
		if _, old, err := c.Suspend(t.Context(), "moving servers"); err != nil || old != nil {
			t.Fatalf("suspend: %v, %v", old, err)
		}
		rec, old, err := w.client(named("ben")).Suspend(t.Context(), "still moving")
		if err != nil || old == nil || old.By != "tester" || old.Reason != "moving servers" || rec.Host == "" {
			t.Fatalf("suspended again: %+v, %+v, %v", rec, old, err)
		}
		_, err = c.Break(t.Context(), BreakRequest{Name: "a"})
		if no, ok := errors.AsType[*NotPermittedError](err); !ok || no.Why != "all automatic breaking is suspended by ben: still moving" {
			t.Fatalf("break: %v", err)
		}
		if old, err := c.Resume(t.Context()); err != nil || old == nil || old.By != "ben" {
			t.Fatalf("resume: %v, %v", old, err)
		}
		if old, err := c.Resume(t.Context()); err != nil || old != nil {
			t.Fatalf("resume again: %v, %v", old, err)
		}
		if _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
	})
}

// A switch is set once though the answer was lost, and not unseen over another
// one's that came between.
func TestSwitchOnABadNetwork(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		w.faults.Add(devconsul.Fault{Match: txnWith("cas"), Times: 1, DropAfter: true})
		if _, old, err := c.Suspend(t.Context(), "x"); err != nil || old != nil {
			t.Fatalf("suspend: %+v, %v", old, err)
		}
		w.faults.Add(devconsul.Fault{Match: txnWith("delete-cas"), Times: 1, Drop: true})
		if old, err := c.Resume(t.Context()); err != nil || old == nil {
			t.Fatalf("resume: %+v, %v", old, err)
		}
		if w.get(w.keys.PolicySuspended()) != nil {
			t.Fatal("it is suspended still")
		}
		w.net.before(txnWith("cas"), func() {
			w.put(w.keys.PolicySuspended(), &records.PolicySuspended{Version: 1, By: "ben"})
		})
		if _, old, err := c.Suspend(t.Context(), "y"); err != nil || old == nil || old.By != "ben" {
			t.Fatalf("suspend: %+v, %v", old, err)
		}
	})
}

const twoPolicies = `
variable "limit" {
	default = 60
}
policy "ops" {
	locks = ["ops-*"]
	hot "old" { when = progress.age > var.limit }
}
policy "all" {
	locks = ["**"]
	warm "slow" { when = progress.age > 10 }
	hot "dead" { when = holder.alive == false }
	break { approval = "auto" }
}
`

func changes(a *Applied) string {
	var out []string
	for _, c := range a.Changes {
		out = append(out, strings.TrimSpace(c.Change+" "+c.Policy+" "+c.Part))
	}
	return strings.Join(out, ", ")
}

func TestApply(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		serial := uint64(0)
		for _, tc := range []struct {
			edit      func(string) string
			changes   string
			unchanged bool
			reordered bool
		}{
			{edit: func(s string) string { return s }},
			{edit: func(s string) string { return s + "# a comment\n" }, unchanged: true},
			{edit: func(s string) string { return strings.Replace(s, "default = 60", "default = 90", 1) }, changes: "changed ops hot old"},
			{edit: func(s string) string { return strings.Replace(s, "> 10", "> 20", 1) }, changes: "changed ops hot old, changed all warm slow"},
			{edit: func(s string) string { return strings.Replace(s, `hot "old"`, `hot "stale"`, 1) }, changes: "added ops hot stale, removed ops hot old, changed all warm slow"},
			{edit: func(s string) string { return s + `policy "more" { locks = ["x"] }` + "\n" }, changes: "added ops hot old, removed ops hot stale, added more"},
			{edit: func(s string) string {
				i, j := strings.Index(s, `policy "ops"`), strings.Index(s, `policy "all"`)
				return s[:i] + s[j:] + s[i:j]
			}, changes: "removed more", reordered: true},
		} {
			c := w.client(withPolicy(t, tc.edit(twoPolicies)))
			dry, err := c.Apply(t.Context(), ApplyRequest{DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			if p := w.get(w.keys.PolicyActive()); (p == nil) != (serial == 0) {
				t.Fatal("a dry run applied")
			}
			out, err := c.Apply(t.Context(), ApplyRequest{Reason: "why not"})
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range []*Applied{dry, out} {
				if changes(a) != tc.changes || a.Unchanged != tc.unchanged || a.Reordered != tc.reordered || a.BeforeWhy != "" {
					t.Fatalf("%q, unchanged %v, reordered %v, want %+v", changes(a), a.Unchanged, a.Reordered, tc)
				}
			}
			if !tc.unchanged {
				serial++
			}
			v, why, err := c.ActivePolicies(t.Context())
			if err != nil || why != "" || v.Serial != serial || v.Hash != c.set.Hash || v.By != "tester" || v.Host == "" || v.Reason != "why not" {
				t.Fatalf("active %+v, %q, %v", v, why, err)
			}
			// What is on record are the policies that were applied.
			set, diags := policies.Parse("again.hcl", []byte(v.Files[0].Text))
			if diags.HasErrors() || set.Hash != c.set.Hash {
				t.Fatalf("the sources on record have hash %s, want %s", set.Hash, c.set.Hash)
			}
		}
	})
}

// Only what was applied breaks, from the moment that it was.
func TestApplyBindsBreaking(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.foreign("ops/.lock", "release")
		mine, other := w.client(withPolicy(t, alwaysHot)), w.client(withPolicy(t, alwaysHot+"\n"+`policy "q" { locks = ["q"] }`))
		tryBreak := func(c *Client) string {
			_, err := c.Break(t.Context(), BreakRequest{Name: "ops/.lock"})
			if no, ok := errors.AsType[*NotPermittedError](err); ok {
				return no.Next
			}
			if err != nil {
				return err.Error()
			}
			return "broken"
		}
		if got := tryBreak(mine); got != "aimlock policy apply" {
			t.Fatalf("nothing is applied: %s", got)
		}
		if _, err := other.Apply(t.Context(), ApplyRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := tryBreak(mine); got != "aimlock policy show -active > applied.hcl" {
			t.Fatalf("others are applied: %s", got)
		}
		if _, err := mine.Apply(t.Context(), ApplyRequest{}); err != nil {
			t.Fatal(err)
		}
		// At the last moment somebody applies others: nothing is broken.
		w.net.before(w.intentOf("ops/.lock"), func() {
			if _, err := other.Apply(t.Context(), ApplyRequest{}); err != nil {
				t.Error(err)
			}
		})
		if got := tryBreak(mine); got != "aimlock policy show -active > applied.hcl" || len(w.breaks("ops/.lock")) > 0 {
			t.Fatalf("applied at the last moment: %s, breaks %+v", got, w.breaks("ops/.lock"))
		}
		if _, err := mine.Apply(t.Context(), ApplyRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := tryBreak(mine); got != "broken" {
			t.Fatal(got)
		}
	})
}

func TestApplyIsCompared(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		a, b := w.client(withPolicy(t, alwaysHot)), w.client(withPolicy(t, stalledOrDead))
		w.net.before(txnWith("cas"), func() {
			if _, err := b.Apply(t.Context(), ApplyRequest{}); err != nil {
				t.Error(err)
			}
		})
		if _, err := a.Apply(t.Context(), ApplyRequest{}); !errors.Is(err, ErrAppliedMeanwhile) {
			t.Fatalf("apply: %v", err)
		}
		w.faults.Add(devconsul.Fault{Match: txnWith("cas"), Times: 1, DropAfter: true})
		if _, err := a.Apply(t.Context(), ApplyRequest{}); err != nil {
			t.Fatalf("the answer was lost: %v", err)
		}
		w.faults.Add(devconsul.Fault{Match: txnWith("cas"), Times: 1, Drop: true})
		if _, err := b.Apply(t.Context(), ApplyRequest{}); !consulkv.Ambiguous(err) {
			t.Fatalf("the request was lost: %v", err)
		}
		if v, _, err := a.ActivePolicies(t.Context()); err != nil || v.Serial != 2 || v.Hash != a.set.Hash {
			t.Fatalf("active %+v: %v", v, err)
		}
	})
}

// The history is bounded, serials never return, and what is unreadable or gone
// is in nobody's way.
func TestApplyHistory(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		sets := []*Client{w.client(withPolicy(t, alwaysHot)), w.client(withPolicy(t, stalledOrDead))}
		for i := range KeepPolicyVersions + 5 {
			if _, err := sets[i%2].Apply(t.Context(), ApplyRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		list, err := sets[0].PolicyHistory(t.Context())
		if err != nil || len(list) != KeepPolicyVersions || list[0].Serial != KeepPolicyVersions+5 {
			t.Fatalf("%d on record: %v", len(list), err)
		}
		for _, damage := range []func(){
			func() { w.delete(w.keys.PolicyActive()) },
			func() { w.put(w.keys.PolicyActive(), "x") },
			func() { w.delete(w.keys.PolicyVersion(list[0].Serial)) },
		} {
			damage()
			last := list[0].Serial
			out, err := sets[1].Apply(t.Context(), ApplyRequest{})
			if err != nil || out.Unchanged || out.After.Serial <= last {
				t.Fatalf("%+v: %v", out, err)
			}
			if list, err = sets[0].PolicyHistory(t.Context()); err != nil {
				t.Fatal(err)
			}
			sets[0], sets[1] = sets[1], sets[0]
		}
	})
}

// Policies whose sources do not fit into a record are applied all the same.
func TestApplyOfMuch(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, alwaysHot+"\n# "+strings.Repeat("x", maxPolicyVersion)))
		if _, err := c.Apply(t.Context(), ApplyRequest{}); err != nil {
			t.Fatal(err)
		}
		v, why, err := c.ActivePolicies(t.Context())
		if err != nil || why != "" || v.Files != nil || v.FilesSize < maxPolicyVersion || len(v.Policies) != 1 {
			t.Fatalf("%+v, %q, %v", v, why, err)
		}
	})
}

// Every record that says by whom says it in fields, too.
func TestWho(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, manual(alwaysHot)), func(c *Config) {
			c.Self = hostproc.Identity{Host: "bastion", User: "ann", PID: 1}
		})
		w.acquire(w.client(asDead), one("a"))
		if _, err := c.Request(t.Context(), "a", "", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Approve(t.Context(), "a", "", time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{w.keys.Request("a"), w.keys.Approval("a")} {
			if v := w.value(key); !strings.Contains(v, `"host":"bastion","user":"ann"`) {
				t.Errorf("%s: %s", key, v)
			}
		}
		out, err := c.Break(t.Context(), BreakRequest{Name: "a"})
		if err != nil || out.Record.Who != (records.Who{Host: "bastion", User: "ann"}) {
			t.Fatalf("%+v: %v", out, err)
		}
	})
}

// Who wants to know of breaks is told of each when its intent stands, and then
// once how it came out.
func TestOnBreak(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		do   func(w *world, c *Client)
		want string
	}{
		"broken": {func(w *world, c *Client) {
			if _, err := c.Break(w.t.Context(), BreakRequest{Name: "a"}); err != nil {
				w.t.Fatal(err)
			}
		}, "intent, unlocked"},
		"taken": {func(w *world, c *Client) { w.acquiring(c, one("a")).wait(30 * time.Second) }, "intent, taken"},
		"it fails": {func(w *world, c *Client) {
			w.net.before(txnWith("unlock"), func() { w.silence(w.client(), "a", time.Hour) })
			if _, err := c.Break(w.t.Context(), BreakRequest{Name: "a"}); err == nil {
				w.t.Fatal("it was broken")
			}
		}, "intent, aborted"},
		"its last answer is lost": {func(w *world, c *Client) {
			w.faults.Add(devconsul.Fault{Match: txnWith("unlock"), Times: 1, DropAfter: true})
			if _, err := c.Break(w.t.Context(), BreakRequest{Name: "a"}); err != nil {
				w.t.Fatal(err)
			}
		}, "intent, unlocked"},
		"not permitted": {func(w *world, c *Client) {
			w.silence(c, "a", time.Hour)
			if _, err := c.Break(w.t.Context(), BreakRequest{Name: "a"}); err == nil {
				w.t.Fatal("it was broken")
			}
		}, ""},
		"a dry run": {func(w *world, c *Client) {
			if _, err := c.Break(w.t.Context(), BreakRequest{Name: "a", DryRun: true}); err != nil {
				w.t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				var mu sync.Mutex
				var told []string
				c := w.client(withPolicy(t, alwaysHot), func(c *Config) {
					c.OnBreak = func(key string, rec *records.Break) {
						mu.Lock()
						defer mu.Unlock()
						if key != w.keys.Break("a", 0, rec.Token, 1) || rec.Lock != "a" {
							t.Errorf("%s: %+v", key, rec)
						}
						told = append(told, rec.Outcome)
					}
				})
				w.acquire(w.client(asElsewhere), one("a"))
				tc.do(w, c)
				mu.Lock()
				defer mu.Unlock()
				if got := strings.Join(told, ", "); got != tc.want {
					t.Fatalf("told %q, want %q", got, tc.want)
				}
			})
		})
	}
}

// A dry run writes nothing, whatever comes of it.
func TestDryRunChangesNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, asking))
		w.acquire(w.client(asElsewhere), unfenced("a"))
		if _, err := c.Approve(t.Context(), "a", "", time.Hour); err != nil {
			t.Fatal(err)
		}
		sessions := func() int {
			l, _, err := w.kv.API().Session().List(nil)
			if err != nil {
				t.Fatal(err)
			}
			return len(l)
		}
		before, n := w.dump(), sessions()
		out, err := c.Break(t.Context(), BreakRequest{Name: "a", DryRun: true})
		if err != nil || len(out.Plan) == 0 {
			t.Fatalf("%+v: %v", out, err)
		}
		if after := w.dump(); after != before || sessions() != n {
			t.Fatalf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// dump is all of KV, with the index at which each key was written.
func (w *world) dump() string {
	w.t.Helper()
	list, err := w.kv.List(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintf(&b, "%s %d %s %s\n", p.Key, p.ModifyIndex, p.Session, p.Value)
	}
	return b.String()
}

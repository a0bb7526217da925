package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// A locksmith takes the leadership, breaks what is HOT, and leaves alone what no
// policy covers.
func TestBreaks(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.client(asElsewhere)
		w.hold(c, "job-a")
		other := w.hold(c, "other")
		s := w.start(always)
		w.freed("job-a", 30*time.Second)
		w.hold(c, "job-b") // one that comes later
		w.freed("job-b", 10*time.Second)
		w.stays(time.Minute, "what no policy covers is held", func() bool { return w.pair("other").Session == other.Session() })
		h := s.Health()
		if !h.OK() || h.Role != RoleLeader || h.Token == 0 {
			t.Errorf("health: %+v", h)
		}
		s.stop()
		if w.held(LeaderLock) {
			t.Error("the leadership was not let go")
		}
	})
}

// The shipped default policy breaks a holder of this host that died, by proof,
// and the locksmith does not need Consul to tell it: the session lives on.
func TestProof(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start("")
		s.leads(10 * time.Second)
		w.hold(w.client(asDead), "job")
		if took := w.freed("job", 10*time.Second); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
		if h := s.Health(); h.Role != RoleLeader {
			t.Errorf("it broke its own lock? %+v", h)
		}
	})
}

// Never broken: each brake, with the sweep going on, and what takes it off.
func TestBrakes(t *testing.T) {
	for name, tc := range map[string]struct {
		policy string
		on     func(w *world)
		off    func(w *world)
		says   string
	}{
		"a cold rule":                 {policy: strings.Replace(always, "session.exists", "!session.exists", 1)},
		"unknown":                     {policy: strings.Replace(always, "session.exists", "holder.alive == false", 1)},
		"no approval":                 {policy: strings.Replace(always, `"auto"`, `"manual"`, 1), says: "approval"},
		"frozen":                      {policy: strings.Replace(always, `approval = "auto"`, "approval = \"auto\"\nfreeze {\n when = session.exists\n }", 1), says: "frozen"},
		"frozen by what is not known": {policy: strings.Replace(always, `approval = "auto"`, "approval = \"auto\"\nfreeze {\n when = holder.alive\n }", 1), says: "not known whether"},
		"suspended": {policy: always, on: func(w *world) {
			w.put(w.keys.PolicySuspended(), &records.PolicySuspended{Version: 1, By: "ann", Reason: "change freeze"})
		}, off: func(w *world) { w.delete(w.keys.PolicySuspended()) }, says: "suspended"},
		"other policies are applied": {policy: always, on: func(w *world) {
			w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: "other"})
		}, off: func(w *world) { w.delete(w.keys.PolicyActive()) }, says: "not the ones applied"},
		"the budget is spent": {policy: strings.Replace(always, `approval = "auto"`, "approval = \"auto\"\nbudget {\n max = 1\n per = \"1h\"\n }", 1), on: func(w *world) {
			w.put(w.keys.Budget("p"), &records.Budget{Version: 1, Breaks: []records.BudgetItem{{Lock: "x", At: time.Now(), Token: 1}}})
		}, off: func(w *world) { w.delete(w.keys.Budget("p")) }, says: "budget"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, w *world) {
				if tc.on != nil {
					tc.on(w)
				}
				w.hold(w.client(asElsewhere), "job-a")
				s := w.start(tc.policy)
				w.stays(3*time.Minute, "the lock is held", func() bool { return w.held("job-a") })
				if tc.says != "" && !s.log.has(tc.says) {
					t.Errorf("it does not say %q", tc.says)
				}
				if n := s.log.count("is not broken now") + s.log.count("not the ones applied") + s.log.count("breaking is suspended"); n > 1 {
					t.Errorf("it says so %d times", n)
				}
				if tc.off != nil {
					tc.off(w)
					w.freed("job-a", 40*time.Second)
				}
			})
		})
	}
}

// The approval of a person is acted on when it comes.
func TestApproval(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.hold(w.client(asElsewhere), "job-a")
		s := w.start(strings.Replace(always, `"auto"`, `"manual"`, 1))
		w.until(30*time.Second, "it asks", func() bool { return s.log.has("approval") })
		time.Sleep(10 * time.Minute)
		if _, err := s.client.Approve(t.Context(), "job-a", "go on", time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := w.freed("job-a", 20*time.Second); took > 5*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// A rule's `for` is served by the watch, to the moment.
func TestFor(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start(strings.Replace(always, "session.exists", "session.exists\nfor = \"5m\"", 1))
		s.leads(10 * time.Second)
		w.hold(w.client(asElsewhere), "job-a")
		if took := w.freed("job-a", 6*time.Minute); took < 5*time.Minute || took > 5*time.Minute+3*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// Progress that stands still is found by its age, whoever the holder is, and
// progress that goes on keeps the lock.
func TestStalled(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		policy := strings.Replace(always, "session.exists", `progress.age > duration("5m")`, 1)
		s := w.start(policy)
		s.leads(10 * time.Second)
		busy, idle := w.hold(w.client(asElsewhere), "job-busy"), w.hold(w.client(asElsewhere), "job-idle")
		if err := idle.Progress(t.Context(), 1, 2, "files", ""); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for n := range int64(60) {
			if err := busy.Progress(t.Context(), n, 60, "files", ""); err != nil {
				t.Fatal(err)
			}
			if held := w.held("job-idle"); !held && time.Since(start) < 5*time.Minute || held && time.Since(start) > 5*time.Minute+15*time.Second {
				t.Fatalf("after %s the stalled lock is held: %t", time.Since(start), held)
			}
			time.Sleep(10 * time.Second)
		}
		if !w.held("job-busy") {
			t.Error("a holder at work was broken")
		}
	})
}

// A lock whose holder is gone without letting go of it is COOLING for as long as Consul
// keeps it, and only then FREE; one that was let go is FREE at once.
func TestCooling(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start(always, func(c *Config) { c.DryRun = true })
		hold := func(name string) *locksmith.Hold {
			h, err := w.client(asElsewhere).Acquire(t.Context(), locksmith.Request{Names: []string{name}, Operation: "test", Quiesce: locksmith.DefaultQuiesce})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = h.Release(context.Background()) })
			return h
		}
		gone, left := hold("job-gone"), hold("job-left")
		w.until(10*time.Second, "both are HOT", func() bool { return s.log.count("lock is HOT") == 2 })
		if err := left.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.kv.API().Session().Destroy(gone.Session(), nil); err != nil {
			t.Fatal(err)
		}
		w.until(5*time.Second, "one is COOLING", func() bool { return s.log.has("lock is COOLING: lock=job-gone") })
		w.until(5*time.Second, "one is FREE", func() bool { return s.log.has("lock is FREE: lock=job-left") })
		if h := s.Health(); h.States[locksmith.Cooling] != 1 || h.States[locksmith.Free] != 1 {
			t.Errorf("states: %v", h.States)
		}
		w.stays(10*time.Second, "it is COOLING", func() bool { return !s.log.has("lock is FREE: lock=job-gone") })
		w.until(10*time.Second, "it is FREE", func() bool { return s.log.has("lock is FREE: lock=job-gone") })
		if !s.log.has("was=COOLING") {
			t.Error("it does not say what it was")
		}
		if h, err := w.client(asElsewhere).Acquire(t.Context(), locksmith.Request{Names: []string{"job-gone"}, Try: true}); err != nil {
			t.Errorf("it is not: %v", err)
		} else {
			_ = h.Release(context.Background())
		}
	})
}

// That a holder let go is only said where its record, or the end of the break, shows it.
func TestWhoEndedAHold(t *testing.T) {
	seen := func(h *records.Holder) *locksmith.Broken {
		return &locksmith.Broken{Verdict: &locksmith.Verdict{Snapshot: &evidence.Snapshot{Holder: h}}}
	}
	for name, tc := range map[string]struct {
		broken *locksmith.Broken
		want   bool
	}{
		"nothing is known":          {nil, false},
		"released":                  {seen(&records.Holder{Released: true}), true},
		"not released":              {seen(&records.Holder{}), false},
		"broken by somebody":        {seen(&records.Holder{Released: true, Broken: "aimlock/breaks/a/0-1-1"}), false},
		"of another tool":           {seen(nil), false},
		"asked, and released":       {&locksmith.Broken{Record: &records.Break{}}, true},
		"ended while it was broken": {&locksmith.Broken{Record: &records.Break{}, Dismissed: "its hold is over"}, false},
	} {
		if got := (&result{broken: tc.broken}).letGo(); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A reload keeps what was seen: a rule that says the same goes on counting. A
// reload that fails changes nothing.
func TestReload(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		policy := strings.Replace(always, "session.exists", "session.exists\nfor = \"5m\"", 1)
		s := w.start(policy)
		s.leads(10 * time.Second)
		w.hold(w.client(asElsewhere), "job-a")
		start := time.Now()
		time.Sleep(2 * time.Minute)
		s.load = func() (*policies.Set, error) { return nil, errors.New("bad file") }
		s.reload <- struct{}{}
		w.until(time.Second, "it says so", func() bool { return s.log.has("those before stay in force") })
		if h := s.Health(); !h.OK() || len(h.Notes) != 1 {
			t.Errorf("health: %+v", h)
		}
		more := policy + "\npolicy \"q\" {\n locks = [\"/ops/**\"]\n}\n"
		s.load = func() (*policies.Set, error) { return parse(t, more), nil }
		s.reload <- struct{}{}
		w.until(time.Second, "it says so", func() bool { return s.log.has("other policies are in force") })
		w.freed("job-a", 4*time.Minute)
		if took := time.Since(start); took < 5*time.Minute || took > 5*time.Minute+5*time.Second {
			t.Errorf("it took %s", took)
		}
		if h := s.Health(); h.Role != RoleLeader || len(h.Notes) != 0 || h.PolicyHash != parse(t, more).Hash {
			t.Errorf("health: %+v", h)
		}
	})
}

// Many locks go HOT at once while some of their breaks wait for a slow step:
// the others are broken all the same.
func TestSlowBreakHoldsNobodyUp(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		slow := strings.Replace(strings.Replace(always, `"p"`, `"slow"`, 1), `"job-*"`, `"slow-*"`, 1)
		slow = strings.Replace(slow, `approval = "auto"`, "approval = \"auto\"\nstep \"request\" {\n wait = \"5m\"\n }\nstep \"take\" {\n }", 1)
		s := w.start(slow + always)
		s.leads(10 * time.Second)
		c := w.client(asElsewhere)
		for i := range 10 {
			w.hold(c, fmt.Sprintf("slow-%d", i))
		}
		w.until(20*time.Second, "all slow ones are under way", func() bool { return s.log.count("asked") >= 0 && s.log.count("request, wait") >= 10 })
		w.hold(c, "job-a")
		w.freed("job-a", 5*time.Second)
		for i := range 10 {
			w.freed(fmt.Sprintf("slow-%d", i), 6*time.Minute)
		}
	})
}

// A holder that lets go when it is asked was not broken, and the log does not say so.
func TestLetGo(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		asks := strings.Replace(always, `approval = "auto"`, "approval = \"auto\"\nstep \"request\" {\n wait = \"1m\"\n }\nstep \"take\" {\n }", 1)
		s := w.start(asks)
		s.leads(10 * time.Second)
		h := w.hold(w.client(asElsewhere), "job-a")
		<-h.Context().Done()
		if err := context.Cause(h.Context()); !errors.Is(err, locksmith.ErrRequested) {
			t.Fatalf("got %v", err)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.until(10*time.Second, "it says so", func() bool { return s.log.has("let go before it was broken") })
		if s.log.has("broke a HOT lock") {
			t.Error("it says that it broke the lock")
		}
	})
}

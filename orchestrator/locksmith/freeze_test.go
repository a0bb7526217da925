package locksmith

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
)

// Whoever waits learns in a minute what a freeze asks of the cluster; a command
// that does not wait cannot know, and does not break.
func TestFreezeNeedsAMinute(t *testing.T) {
	t.Parallel()
	policy := strings.Replace(alwaysHot, `approval = "auto"`, `
		approval = "auto"
		freeze { when = cluster.leader_changed_ago < 60 || cluster.sessions_lost > 10 }`, 1)
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere), one("a"))
		c := w.client(withPolicy(t, policy))
		_, err := c.Acquire(t.Context(), Request{Names: []string{"a"}, Try: true})
		if ref, ok := errors.AsType[*RefusedError](err); !ok || !ref.Hot || !strings.Contains(ref.Status.Next, "not known whether breaking is frozen") {
			t.Fatalf("try: %v", err)
		}
		p := w.acquiring(c, one("a"))
		p.waits(59 * time.Second)
		w.stillHolds(old)
		p.wait(10 * time.Second)
		if w.outcomes("a") != "taken" {
			t.Fatalf("breaks: %s", w.outcomes("a"))
		}
	})
}

// lock break has no history either, and watches for that minute.
func TestBreakWatchesTheCluster(t *testing.T) {
	t.Parallel()
	policy := strings.Replace(alwaysHot, `approval = "auto"`, `
		approval = "auto"
		freeze { when = cluster.leader_changed_ago < 60 || cluster.sessions_lost > 10 }`, 1)
	for name, tc := range map[string]struct {
		fault *devconsul.Fault
		says  string
	}{
		"it is known then": {},
		"it is not":        {&devconsul.Fault{Match: path("/v1/session/list"), Status: 403, Body: "Permission denied"}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				if tc.fault != nil {
					w.faults.Add(*tc.fault)
				}
				w.acquire(w.client(asElsewhere), one("a"))
				var told []string
				start := time.Now()
				out, err := w.client(withPolicy(t, policy)).Break(t.Context(), BreakRequest{Name: "a", Notify: func(n Notice) { told = append(told, n.Text) }})
				took := time.Since(start)
				if len(told) == 0 || !strings.Contains(told[0], "watching the cluster") || took < time.Minute || took > thawPatience+10*time.Second {
					t.Fatalf("was told %v, took %s", told, took)
				}
				if tc.fault == nil && (err != nil || out.Record.Outcome != records.OutcomeUnlocked) {
					t.Fatalf("got %+v, %v", out, err)
				}
				if no, ok := errors.AsType[*NotPermittedError](err); tc.fault != nil && (!ok || !strings.Contains(no.Why, tc.says)) {
					t.Fatalf("got %v", err)
				}
			})
		})
	}
}

// bound makes sessions that end with a check, and returns what makes it fail.
func (w *world) bound(n int) (lose func()) {
	w.t.Helper()
	a := w.kv.API().Agent()
	err := a.ServiceRegister(&api.AgentServiceRegistration{ID: "x", Name: "x", Check: &api.AgentServiceCheck{CheckID: "x", TTL: "1h", Status: "passing"}})
	if err != nil {
		w.t.Fatal(err)
	}
	for range n {
		_, _, err := w.kv.API().Session().Create(&api.SessionEntry{ServiceChecks: []api.ServiceCheck{{ID: "x"}}}, nil)
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return func() {
		if err := a.UpdateTTL("x", "", "critical"); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Many sessions lost at once is an event of Consul, not many dead holders. Proof
// is proof all the same.
func TestFreezeOnMassLoss(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]func(*Config){"on silence": asElsewhere, "on proof": asDead} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				lose := w.bound(12)
				old := w.acquire(w.client(by), one("b"))
				p := w.acquiring(w.client(), one("a"))
				p.wait(time.Second)
				q := w.acquiring(w.client(withPolicy(t, stalledOrDead)), one("b"))
				if name == "on proof" {
					q.wait(5 * time.Second)
					return
				}
				q.waits(70 * time.Second)
				lose()
				time.Sleep(3 * time.Second)
				w.put(w.keys.Progress("b"), &records.Progress{Version: 1, Lock: "b", Session: old.Session(), Unit: "stalled"})
				q.waits(50 * time.Second)
				w.stillHolds(old)
				q.wait(30 * time.Second)
			})
		})
	}
}

const stalledOrDead = `policy "p" {
	locks = ["**"]
	hot "dead" {
		when  = holder.alive == false
		proof = true
	}
	hot "stalled" { when = progress.unit == "stalled" && progress.age >= 0 }
	break {
		approval = "auto"
		freeze { when = cluster.leader_changed_ago < 60 || cluster.sessions_lost > 10 }
	}
}`

package locksmith

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
)

// What nobody holds is not broken, and a dry run changes nothing.
func TestBreakOfNothing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(withPolicy(t, asking))
		if _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); !errors.Is(err, ErrNotHeld) {
			t.Fatalf("got %v", err)
		}
		old := w.acquire(w.client(asElsewhere), one("a"))
		before, err := w.kv.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Break(t.Context(), BreakRequest{Name: w.keys.Lock("a"), DryRun: true})
		if err != nil || len(out.Plan) != 2 || out.Record != nil {
			t.Fatalf("%+v, %v", out, err)
		}
		after, err := w.kv.List(t.Context(), "")
		if err != nil || len(after) != len(before) {
			t.Fatalf("%d keys, before %d, %v", len(after), len(before), err)
		}
		w.stillHolds(old)
	})
}

// The record of another breaker that is deleted or rewritten under way keeps
// the break from its end.
func TestBreakRecordThatIsTamperedWith(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asDead), one("a"))
		w.net.before(txnWith("unlock", "lock"), func() {
			w.delete(w.keys.Break("a", 0, old.Token(), 1))
		})
		h := w.acquire(w.client(), one("a"))
		w.stillHolds(h)
		if got := w.outcomes("a"); got != "taken" {
			t.Fatalf("breaks: %s", got)
		}
		if w.breaks("a")[0].Attempt != 1 {
			t.Fatalf("breaks %+v", w.breaks("a"))
		}
	})
}

func deniedWrites(r *http.Request) bool {
	return txnWith("set")(r) || txnWith("cas")(r) || txnWith("lock")(r)
}

// A token that may not write gets one clear error, and nothing is half done.
func TestTokenThatMayNotWrite(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asDead), one("a"))
		w.faults.Add(devconsul.Fault{Match: deniedWrites, Status: 403, Body: "Permission denied"})
		c := w.client()
		for name, do := range map[string]func() error{
			"break":   func() error { _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); return err },
			"acquire": func() error { _, err := c.Acquire(t.Context(), one("a")); return err },
			"free":    func() error { _, err := c.Acquire(t.Context(), one("b")); return err },
			"request": func() error { _, err := c.Request(t.Context(), "a", "", time.Minute); return err },
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), "CONSUL_HTTP_TOKEN") {
				t.Errorf("%s: %v", name, err)
			}
		}
		w.faults.Clear()
		w.stillHolds(old)
		if len(w.breaks("a")) > 0 {
			t.Fatalf("breaks %+v", w.breaks("a"))
		}
		sessions, _, err := w.kv.API().Session().List(nil)
		if err != nil || len(sessions) != 1 {
			t.Fatalf("%d sessions are left, %v", len(sessions), err)
		}
	})
}

// destroying ends the session by a step, which ends the hold of all that it holds.
var destroying = strings.Replace(alwaysHot, `approval = "auto"`, "\napproval = \"auto\"\nstep \"destroy_session\" {}\n", 1)

// A session that holds more than the lock that was judged is not destroyed by a
// step, unless somebody insists.
func TestSessionOfOtherLocksIsNotDestroyed(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]func(*world) (lock, other string){
		"another tool's": func(w *world) (string, string) {
			w.lockKey("ops/other", w.foreign("ops/.lock", "release"))
			return "ops/.lock", "ops/other"
		},
		"aimlock's own": func(w *world) (string, string) {
			w.acquire(w.client(asElsewhere), Request{Names: []string{"a", "b"}})
			return "a", w.keys.Lock("b")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(withPolicy(t, destroying))
				w.apply(c)
				lock, other := hold(w)
				session := w.get(other).Session
				_, err := c.Break(t.Context(), BreakRequest{Name: lock})
				if !errors.Is(err, errStep) || !strings.Contains(err.Error(), "it holds "+other+" too") {
					t.Fatalf("got %v", err)
				}
				if p, q := w.get(w.keys.Lock(lock)), w.get(other); p.Session != session || q.Session != session {
					t.Fatalf("held by %q and %q", p.Session, q.Session)
				}
				if out := w.outcomes(lock); out != records.OutcomeAborted {
					t.Fatalf("outcomes %s", out)
				}
				if _, err := c.Break(t.Context(), BreakRequest{Name: lock, Force: true}); err != nil {
					t.Fatal(err)
				}
				if q := w.get(other); q.Session != "" {
					t.Fatalf("held by %q", q.Session)
				}
			})
		})
	}
}

// Where the hold ended otherwise while its holder was asked, nobody is told that it
// let go.
func TestHoldThatEndsWhileItIsAskedFor(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.deaf(w.acquire(w.client(asElsewhere), one("a")))
		c := w.client(withPolicy(t, asking))
		go func() {
			time.Sleep(5 * time.Second)
			w.destroy(old.Session())
		}()
		out, err := c.Break(t.Context(), BreakRequest{Name: "a"})
		if err != nil || out.Record.Outcome != records.OutcomeReleased || !strings.Contains(out.Dismissed, "not by a release") {
			t.Fatalf("%+v, %v", out, err)
		}
		if b := w.breaks("a"); len(b) != 1 || !strings.Contains(b[0].Detail, "not by a release") {
			t.Fatalf("breaks %+v", b)
		}
	})
}

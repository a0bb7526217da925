package ui

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPoliciesDetail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		v := w.open("view=policies")
		pass(5 * time.Second)
		if got := v.events("policies"); len(got) != 1 || !strings.Contains(got[0], `"active":null`) || !strings.Contains(got[0], "it is called so") {
			t.Fatalf("it shows %q", got)
		}
		if _, _, err := w.locks.Suspend(t.Context(), "a fire"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		if got := v.events("policies"); len(got) != 2 || !strings.Contains(got[1], "a fire") {
			t.Errorf("it shows %q", got)
		}
	})
}

// Every page tells that breaking is suspended, that of one lock which is not HOT too,
// as soon as it is, and for as long.
func TestSuspensionIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.hold("other")
		viewers := []*viewer{w.open("view=lock&id=other"), w.open("view=locks"), w.open("view=rollouts"), w.open("view=policies")}
		says := func(when, want string) {
			t.Helper()
			for i, v := range viewers {
				s := v.events("summary")
				if len(s) == 0 || !strings.Contains(s[len(s)-1], want) {
					t.Errorf("%s, page %d says %q", when, i, s)
				}
			}
		}
		pass(5 * time.Second)
		says("at first", `"suspended":null`)
		if _, _, err := w.holder.Suspend(t.Context(), "a fire"); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		says("suspended", `"by":"tester"`)
		says("suspended", `"reason":"a fire"`)
		// Who comes later learns of it too.
		viewers = append(viewers, w.open("view=lock&id=other"))
		pass(5 * time.Second)
		says("later", `"reason":"a fire"`)
		// What was seen last stays while nothing can be read, and what is not known is said.
		w.net.down.Store(true)
		pass(3 * time.Minute)
		says("without Consul", `"reason":"a fire"`)
		says("without Consul", "whether breaking is suspended is not known: ")
		if _, err := w.holder.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.net.down.Store(false)
		pass(3 * time.Minute)
		says("resumed", `"suspended":null`)
		says("resumed", `"troubles":[]`)
		h.Abandon(t.Context())
	})
}

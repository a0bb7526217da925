package ui

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// A lock that nobody holds any more is still found, with how its last hold ended.
func TestFreeLocksAreFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		last := func(v *viewer) string {
			t.Helper()
			events := v.events("free")
			if len(events) == 0 {
				t.Fatal("it is told of no free lock, not even that there is none")
			}
			var free struct {
				Set []struct {
					Name, Holder, Ended string
					At                  *time.Time
				}
				More int
			}
			if err := json.Unmarshal([]byte(events[len(events)-1]), &free); err != nil {
				t.Fatal(err)
			}
			out := fmt.Sprintf("%d more", free.More)
			for _, f := range free.Set {
				if f.At == nil || f.Holder == "" {
					t.Errorf("%s: when %v, holder %q", f.Name, f.At, f.Holder)
				}
				out += fmt.Sprintf(", %s %s", f.Name, f.Ended)
			}
			return out
		}
		release := func(name string) {
			t.Helper()
			if err := w.hold(name).Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		v := w.open("view=locks")
		pass(10 * time.Second)
		if got := last(v); got != "0 more" {
			t.Errorf("of a new Consul it says %s", got)
		}
		release("zebra")
		release("other")
		doomed := w.hold("doomed")
		if _, err := w.holder.Approve(t.Context(), "doomed", "a test", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := w.holder.Break(t.Context(), locksmith.BreakRequest{Name: "doomed"}); err != nil {
			t.Fatal(err)
		}
		<-doomed.Context().Done()
		if err := doomed.Release(t.Context()); err == nil {
			t.Error("a hold that was broken was let go")
		}
		pass(10 * time.Second)
		if got := last(v); got != "0 more, doomed broken, other let go, zebra let go" {
			t.Errorf("the last one first: it says %s", got)
		}
		// What is held again is free no more, and a page that opens later sees the same.
		again := w.hold("other")
		pass(10 * time.Second)
		later := w.open("view=locks")
		pass(10 * time.Second)
		for _, v := range []*viewer{v, later} {
			if got := last(v); got != "0 more, doomed broken, zebra let go" {
				t.Errorf("after one was taken it says %s", got)
			}
		}
		if err := again.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range shownFree {
			release(fmt.Sprintf("many-%d", i))
		}
		pass(10 * time.Second)
		if got := last(v); !strings.HasPrefix(got, "3 more, many-19 let go, ") || strings.Contains(got, "zebra") {
			t.Errorf("of many it says %s", got)
		}
	})
}

package locksmith

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

// What is old and not needed goes; what is young, among the last, in force or
// owed stays, and so does all that is not aimlock's word about the past.
func TestPrune(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		now := time.Now().UTC()
		old, gone := now.Add(-100*24*time.Hour), map[string]bool{}
		put := func(stays bool, key string, v any) {
			w.put(key, v)
			if !stays {
				gone[key] = true
			}
		}
		for i := range 130 {
			at := old
			if i < 3 {
				at = now // young by its record, though the first by its key
			}
			put(i < 3 || i >= 110, w.keys.Break("a", 0, uint64(100+i), 1), &records.Break{Version: 1, StartedAt: at})
		}
		put(true, w.keys.Break("b", 0, 9, 1), &records.Break{Version: 1, StartedAt: old})
		put(true, w.keys.Breaks("a")+"x", "not a break")
		for i := range 30 {
			put(true, w.keys.Break("c", 1, uint64(i), 1), "unreadable")
		}
		for _, tc := range []struct {
			expires time.Time
			stays   bool
		}{{now.Add(-25 * time.Hour), false}, {now.Add(-23 * time.Hour), true}, {now.Add(time.Hour), true}, {time.Time{}, true}} {
			name := fmt.Sprintf("expires-%d", tc.expires.Unix())
			put(tc.stays, w.keys.Request(name), &records.Request{Version: 1, Expires: tc.expires})
			put(tc.stays, w.keys.Approval(name), &records.Request{Version: 1, Expires: tc.expires})
			put(tc.stays, w.keys.Silence(name), &records.Silence{Version: 1, Expires: tc.expires})
		}
		held := w.acquire(w.client(asElsewhere), one("held"))
		last := w.acquire(w.client(), one("last"))
		if err := last.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			lock, session string
			at            time.Time
			stays         bool
		}{
			{"held", held.Session(), old, true}, {"held", "other", old, false}, {"held", "other", now, true},
			{"last", last.Session(), old, true}, {"last", "other", old, false}, {"missing", "other", old, false},
		} {
			observer := fmt.Sprintf("o-%s-%d", tc.session, tc.at.Unix())
			put(tc.stays, w.keys.Observed(tc.lock, observer), &records.Observed{Version: 1, Lock: tc.lock, Session: tc.session, At: tc.at})
		}
		for _, key := range []string{w.keys.Fence("old"), w.keys.Progress("old"), w.keys.Lock("old"), w.keys.Budget("p"), w.keys.PolicyActive(), w.keys.Rollout("r"), w.keys.Actual("c", "n")} {
			put(true, key, `{"version":1,"at":"2001-01-01T00:00:00Z","started_at":"2001-01-01T00:00:00Z","expires":"2001-01-01T00:00:00Z"}`)
		}
		before := map[string]bool{}
		for line := range strings.SplitSeq(w.dump(), "\n") {
			if key, _, _ := strings.Cut(line, " "); key != "" {
				before[key] = true
			}
		}
		// Several at once, until none finds more.
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if _, err := c.Prune(t.Context(), Retention{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if out, err := c.Prune(t.Context(), Retention{}); err != nil || out != (Pruned{}) {
			t.Fatalf("again: %+v, %v", out, err)
		}
		after := w.dump()
		for key := range before {
			if stands := strings.Contains(after, key+" "); stands == gone[key] {
				t.Errorf("%s: stands %v", key, stands)
			}
		}
		w.stillHolds(held)
	})
}

// One call does a bounded part, and says that there is more; what somebody writes
// meanwhile stays.
func TestPruneInParts(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		old := time.Now().Add(-1000 * time.Hour)
		for i := range maxPruned + 50 {
			w.put(w.keys.Silence(fmt.Sprintf("lock-%04d", i)), &records.Silence{Version: 1, Expires: old})
		}
		mine := w.keys.Silence("lock-0003")
		w.net.before(txnWith("delete-cas"), func() {
			w.put(mine, &records.Silence{Version: 1, Expires: time.Now().Add(time.Hour)})
		})
		total := 0
		for range 3 {
			out, err := c.Prune(t.Context(), Retention{})
			if err != nil || out.Silences > maxPruned {
				t.Fatalf("%+v, %v", out, err)
			}
			total += out.Silences
			if out.More == (total == maxPruned+49) {
				t.Fatalf("%d so far, %+v", total, out)
			}
			if !out.More {
				break
			}
		}
		if total != maxPruned+49 || w.get(mine) == nil {
			t.Fatalf("deleted %d; the one that was set anew: %v", total, w.get(mine))
		}
	})
}

// A refusal is an answer: nothing is asked again for it.
func TestRefusedIsNotRetried(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		old := w.acquire(w.client(asElsewhere), one("a"))
		w.net.before(txnWith("set"), func() {
			if err := old.Release(t.Context()); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		if _, err := c.Approve(t.Context(), "a", "", time.Hour); err == nil {
			t.Fatal("it approves of a holder that is gone")
		}
		if took := time.Since(start); took > time.Second {
			t.Fatalf("it took %s", took)
		}
		if w.get(w.keys.Approval("a")) != nil {
			t.Fatal("an approval that nobody can use")
		}
	})
}

package guard

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hooks"
	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// What it sees and does stands in the journal, and hooks are told.
func TestTells(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		jw, err := journal.Open(dir, journal.Options{Start: journal.Start{Lag: Lag}})
		if err != nil {
			t.Fatal(err)
		}
		rec := locksmith.NewRecorder(jw)
		var mu sync.Mutex
		var told []string
		n, err := hooks.New([]hooks.Config{{Name: "h", On: []string{hooks.Hot, hooks.Unknown, hooks.Break, hooks.Leader}, URL: "http://hook.test/", UnknownAfter: time.Minute}},
			hooks.Options{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				b, err := io.ReadAll(r.Body)
				var e hooks.Event
				if err != nil || json.Unmarshal(b, &e) != nil {
					t.Errorf("the body is no event: %s", b)
				}
				mu.Lock()
				defer mu.Unlock()
				told = append(told, e.Kind+" "+e.Lock)
				return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
			})})
		if err != nil {
			t.Fatal(err)
		}
		c := w.client(asElsewhere)
		w.hold(c, "job-a")
		w.hold(c, "odd")
		policy := always + strings.NewReplacer(`"p"`, `"odd"`, "job-*", "odd", "session.exists", "holder.alive == false").Replace(always)
		s := w.start(policy, func(cfg *Config) {
			cfg.Journal, cfg.Hooks, cfg.Metrics = rec, n, NewMetrics()
			cfg.Client = w.client(func(lc *locksmith.Config) {
				lc.Policies, lc.OnBreak = parse(t, policy), OnBreak(rec, n, cfg.Metrics)
			})
		})
		w.freed("job-a", 30*time.Second)
		time.Sleep(3 * time.Minute)
		s.stop()
		n.Close(context.Background())
		if err := rec.Close(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(told)
		want := []string{"break_begun job-a", "break_done job-a", "hot job-a", "leader " + LeaderLock, "unknown odd"}
		if !slices.Equal(told, want) {
			t.Errorf("hooks were told %q, want %q", told, want)
		}
		var got []string
		for e, err := range journal.Read(dir) {
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case e.Break != nil:
				got = append(got, "break "+e.Break.Event+" "+e.Lock+" "+e.Break.Outcome)
			case e.Leader != nil && e.Leader.Gained:
				got = append(got, "leads")
			case e.Leader != nil:
				got = append(got, "leads no more")
			case e.Observation != nil:
				got = append(got, e.Lock+" "+e.Observation.Verdict.State)
			}
		}
		for _, want := range []string{"job-a HOT", "break begun job-a ", "break ended job-a unlocked", "job-a FREE", "odd UNKNOWN", "leads", "leads no more"} {
			if !slices.Contains(got, want) {
				t.Errorf("the journal does not have %q: %q", want, got)
			}
		}
		if lost := s.metrics.lostEntries.Load(); lost != 0 {
			t.Errorf("%d entries were lost", lost)
		}
	})
}

// Of several locksmiths the one that leads tells of a HOT lock, and the next one
// only once it leads itself.
func TestOneTells(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		hot := func(told *atomic.Int64) func(*Config) {
			n, err := hooks.New([]hooks.Config{{Name: "h", On: []string{hooks.Hot}, URL: "http://hook.test/"}},
				hooks.Options{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					told.Add(1)
					return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
				})})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { n.Close(context.Background()) })
			return func(c *Config) { c.Hooks = n }
		}
		policy := strings.Replace(always, `"auto"`, `"manual"`, 1) // it stays HOT
		var byFirst, bySecond atomic.Int64
		first := w.start(policy, hot(&byFirst))
		first.leads(10 * time.Second)
		second := w.start(policy, hot(&bySecond))
		w.until(10*time.Second, "the second one follows", func() bool { return second.Health().Role == RoleFollower })
		w.hold(w.client(asElsewhere), "job-a")
		w.until(10*time.Second, "it is told", func() bool { return byFirst.Load() == 1 })
		w.stays(time.Minute, "nobody else tells", func() bool { return byFirst.Load() == 1 && bySecond.Load() == 0 })
		first.stop()
		second.leads(time.Minute)
		w.until(10*time.Second, "the next one tells", func() bool { return bySecond.Load() == 1 })
	})
}

package ui

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

const startSpec = "aimlock rollout start SPEC"

// rollout puts the header of an unfinished one of a config into Consul.
func (w *world) rollout(id, config string, state orchestrator.Status) {
	w.t.Helper()
	h := &orchestrator.Header{Configs: []orchestrator.HeaderConfig{{Name: config}}}
	h.Version, h.ID, h.Name, h.State, h.Token, h.CreatedAt = 1, id, "app", state, 5, time.Now()
	if state == orchestrator.Paused {
		h.Pauses, h.Paused = 1, &orchestrator.PauseInfo{Cause: orchestrator.CauseOperator, Why: "hold", At: time.Now()}
	}
	text, err := json.Marshal(h)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.kv.Put(w.t.Context(), keys.Prefix(keys.DefaultPrefix).Rollout(id), text); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) drive(id, config string) *locksmith.Hold {
	w.t.Helper()
	h, err := w.holder.Acquire(w.t.Context(), locksmith.Request{Names: []string{config}, Operation: "rollout app", RolloutID: id})
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// seenDriving is how the last event tells of who drives app-1.
func seenDriving(t *testing.T, v *viewer, event string) string {
	t.Helper()
	events := v.events(event)
	if len(events) == 0 {
		return "nothing was told"
	}
	type told struct {
		Driven *bool
		Words  string
		Ways   []struct{ What, Command string }
		Locks  []struct{ Name, State string }
	}
	var d told
	last := []byte(events[len(events)-1])
	var err error
	if event == "driving" {
		err = json.Unmarshal(last, &d)
	} else {
		var list []struct {
			ID string
			told
			Driving *told
		}
		if err = json.Unmarshal(last, &list); err == nil && len(list) == 1 && list[0].ID == "app-1" {
			if d = list[0].told; list[0].Driving != nil {
				d = *list[0].Driving
			}
		}
	}
	if err != nil {
		t.Fatalf("%v: %s", err, last)
	}
	out := "not known"
	if d.Driven != nil {
		out = fmt.Sprint(*d.Driven)
	}
	for _, l := range d.Locks {
		out += fmt.Sprintf(" %s %s", l.Name, l.State)
	}
	if d.Words != "" {
		out += ": " + d.Words
	}
	for _, w := range d.Ways {
		out += "; " + w.What + ": " + w.Command
	}
	return out
}

// The list, the rollout's page and its lock's page say that nobody drives a rollout that
// is at work, or how a pause ends, from what is followed anyway.
func TestWhoDrives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.rollout("app-1", "app.conf", orchestrator.Running)
		hold := w.drive("app-1", "app.conf")
		pages := map[string]*viewer{"rollouts": w.open("view=rollouts"), "driving": w.open("view=rollout&id=app-1"), "rollouts ": w.open("view=lock&id=app.conf")}
		all := func(when, want string) {
			t.Helper()
			for event, v := range pages {
				if got := seenDriving(t, v, strings.TrimSpace(event)); got != want {
					t.Errorf("%s, event %q: %s\nnot %s", when, event, got, want)
				}
			}
		}
		release := func() {
			t.Helper()
			if err := hold.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		pass(10 * time.Second)
		all("it is driven", "true app.conf HELD")
		release()
		pass(10 * time.Second)
		all("it was let go of", "false app.conf FREE: "+runner.Undriven(startSpec))
		hold = w.drive("another", "app.conf")
		pass(10 * time.Second)
		all("another has its lock", "false app.conf HELD: "+runner.Undriven(startSpec))
		release()
		hold = w.drive("app-1", "app.conf")
		pass(10 * time.Second)
		all("it is driven again", "true app.conf HELD")
		w.rollout("app-1", "app.conf", orchestrator.Paused)
		ways := "; to go on: aimlock rollout resume -pause 1 app-1; to go back: aimlock rollout rollback app-1"
		pass(10 * time.Second)
		all("it is paused", "true app.conf HELD"+ways)
		release()
		pass(10 * time.Second)
		all("it is paused and was let go of", "false app.conf FREE: "+runner.UndrivenPaused(startSpec)+ways)
		// Who opens the page now sees the same, after a moment.
		later := w.open("view=rollouts")
		pass(10 * time.Second)
		if got, want := seenDriving(t, later, "rollouts"), seenDriving(t, pages["rollouts"], "rollouts"); got != want {
			t.Errorf("a later page: %s, not %s", got, want)
		}
	})
}

// A lock that is HOT says itself what becomes of it; one that is not followed says
// nothing, and neither does a rollout whose header is ahead of its lock.
func TestWhoDrivesIsNotGuessed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		config, holder, want string
		after                time.Duration
	}{
		"hot":        {"doomed", "app-1", "false doomed HOT: " + runner.Gone(&orchestrator.Header{State: orchestrator.Baking}, startSpec), 10 * time.Second},
		"another's":  {"doomed", "another", "false doomed HOT", 10 * time.Second},
		"never held": {"app.conf", "", "not known app.conf ", 10 * time.Second},
		"ahead":      {"app.conf", "another", "not known app.conf HELD", settles - time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				v := w.open("view=rollouts")
				if tc.holder != "" {
					defer func(h *locksmith.Hold) { _ = h.Release(t.Context()) }(w.drive(tc.holder, tc.config))
				}
				pass(10 * time.Second)
				w.rollout("app-1", tc.config, orchestrator.Baking)
				pass(tc.after)
				if got := seenDriving(t, v, "rollouts"); got != tc.want {
					t.Errorf("%s, not %s", got, tc.want)
				}
			})
		})
	}
}

// Who drives many rollouts costs Consul no more than who drives one.
func TestWhoDrivesCostsNothing(t *testing.T) {
	t.Parallel()
	cost := func(n int) (asked, waiting int64) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			for i := range n {
				config := fmt.Sprintf("c-%d", i)
				if err := w.drive("x", config).Release(t.Context()); err != nil {
					t.Fatal(err)
				}
				w.rollout(fmt.Sprintf("app-%d", i), config, orchestrator.Running)
			}
			v := w.open("view=rollouts")
			pass(10 * time.Second)
			before := w.net.asked.Load()
			pass(10 * time.Minute)
			asked, waiting = w.net.asked.Load()-before, w.net.waiting.Load()
			if events := v.events("rollouts"); strings.Count(events[len(events)-1], runner.Undriven(startSpec)) != n {
				t.Errorf("of %d it says %s", n, events[len(events)-1])
			}
		})
		return asked, waiting
	}
	// How often a blocking query is begun anew depends on when it was begun first, and
	// is not counted.
	one, onesWait := cost(1)
	many, theirsWait := cost(30)
	if one != many || onesWait != theirsWait || onesWait == 0 {
		t.Errorf("ten minutes of one cost %d requests beside %d that wait, and of 30 %d and %d", one, onesWait, many, theirsWait)
	}
}

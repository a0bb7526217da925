package command

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// The log goes on while it is read: what is newer than the header that told of
// something new comes with that reading, and must not come again with the next.
func TestWatchReadsEachEventOnce(t *testing.T) {
	t.Parallel()
	written, asked := uint64(0), 0
	var broken error
	log := eventLog{read: func(_ context.Context, id string, after uint64) ([]records.RolloutEvent, error) {
		if asked++; id != "w-1" {
			t.Errorf("asked for the events of %q", id)
		}
		var out []records.RolloutEvent
		for n := after + 1; n <= written; n++ {
			out = append(out, records.RolloutEvent{N: n})
		}
		return out, broken
	}}
	var got []uint64
	next := func(header uint64) error {
		events, err := log.next(t.Context(), &orchestrator.Header{ID: "w-1", Events: header})
		for _, e := range events {
			got = append(got, e.N)
		}
		return err
	}
	ahead := []struct{ header, written uint64 }{{0, 0}, {2, 2}, {3, 5}, {4, 5}, {5, 5}, {6, 7}, {8, 8}, {8, 8}}
	for _, step := range ahead {
		written = step.written
		if err := next(step.header); err != nil {
			t.Fatal(err)
		}
	}
	if want := []uint64{1, 2, 3, 4, 5, 6, 7, 8}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if asked != 4 {
		t.Errorf("asked %d times for 4 headers with something new", asked)
	}

	// What could not be read is read with the next header.
	broken, written = errors.New("no leader"), 9
	if err := next(9); err == nil {
		t.Error("an error was not told")
	}
	broken = nil
	if err := next(9); err != nil {
		t.Fatal(err)
	}
	if got[len(got)-1] != 9 {
		t.Errorf("events %v, and 9 was not read again", got)
	}
}

// Nobody has a lock: a start that waits for its window is not nobody, and a paused
// rollout is not gone on with by starting it. Its orchestrator has one that is HOT:
// the break is not all that there is to do.
func TestLocksOfARolloutSayWhatGoesOn(t *testing.T) {
	t.Parallel()
	free := []rolloutLock{{Status: &locksmith.Status{Name: "a.conf", State: locksmith.Free}}}
	session := "s"
	hot := []rolloutLock{{Status: &locksmith.Status{Name: "a.conf", State: locksmith.Hot, Session: &session}, rollout: "r-1"}}
	for _, tc := range []struct {
		state      orchestrator.Status
		list       []rolloutLock
		want, not  string
		isUndriven bool
	}{
		{orchestrator.Waiting, free, "a.conf: FREE: held again when the window opens, by the start that waits for it or by the next tick", "nobody", false},
		{orchestrator.Baking, free, "a.conf: FREE: nobody drives it now: `aimlock rollout start SPEC`, or the next tick", "paused", true},
		{orchestrator.Paused, free, "a.conf: FREE: nobody drives it now, since it is paused; once that is ended, `aimlock rollout start SPEC`, or", "now: `", false},
		{orchestrator.Baking, hot, "a.conf: HOT by this rollout's orchestrator; `aimlock rollout start SPEC` goes on with it, and breaks this lock", "nobody", true},
		{orchestrator.Paused, hot, "a.conf: HOT by this rollout's orchestrator\n", "rollout start", false},
	} {
		h := &orchestrator.Header{ID: "r-1", State: tc.state}
		got := locksText(h, tc.list, "aimlock rollout start SPEC")
		if !strings.Contains(got, tc.want) || strings.Contains(got, tc.not) {
			t.Errorf("%s: %q, want %q in it, and not %q", tc.state, got, tc.want, tc.not)
		}
		if _, ok := undriven(h, tc.list); ok != tc.isUndriven {
			t.Errorf("%s: %s is undriven: %v", tc.state, tc.list[0].State, ok)
		}
	}
}

// Who starts a rollout that is paused reads since when, but for one that was paused
// before his eyes; programs read it in any case.
func TestStateErrorSaysSinceWhen(t *testing.T) {
	t.Parallel()
	m := &Meta{}
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Paused, Paused: &orchestrator.PauseInfo{Cause: orchestrator.CauseOperator, Why: "by root@vm: lunch", At: time.Now().Add(-time.Hour)}}
	since := h.Paused.At.UTC().Format("15:04:05 UTC")
	if got, want := m.stateError(h).Error(), "rollout r-1 is paused since "+since+" (1h0m0s): by root@vm: lunch. "; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q first", got, want)
	}
	if got, want := rolloutText(h), "r-1: paused since "+since+" (1h0m0s)\n"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q first", got, want)
	}
	if v := viewRollout(h, ""); v.PausedSince == nil || !v.PausedSince.Equal(h.Paused.At) {
		t.Errorf("paused_since is %v", v.PausedSince)
	}
	h.Paused.At = time.Now()
	if got := m.stateError(h).Error(); !strings.HasPrefix(got, "rollout r-1 is paused: by root@vm") {
		t.Errorf("%q", got)
	}
	if v := viewRollout(&orchestrator.Header{}, ""); v.PausedSince != nil {
		t.Errorf("paused_since of one that is not is %v", v.PausedSince)
	}
}

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
		{orchestrator.Baking, hot, "a.conf: HOT: its orchestrator does not answer, and is judged gone; `aimlock rollout start SPEC` goes on with it, and breaks this lock", "nobody", true},
		{orchestrator.Paused, hot, "a.conf: HOT: its orchestrator does not answer, and is judged gone; it stays paused, and the command that ends that breaks this lock where the policy lets it; `aimlock rollout start SPEC` then goes on\n", "by this", false},
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

// A program reads who drives a rollout in one field, and is told nothing where that is
// not known or there is nothing to drive.
func TestViewSaysWhoDrives(t *testing.T) {
	t.Parallel()
	session := "s"
	held := func(state, rollout string) rolloutLock {
		return rolloutLock{Status: &locksmith.Status{Name: "a.conf", State: state, Session: &session}, rollout: rollout}
	}
	free := rolloutLock{Status: &locksmith.Status{Name: "a.conf", State: locksmith.Free}}
	yes, no := true, false
	for i, tc := range []struct {
		state   orchestrator.Status
		configs int
		list    []rolloutLock
		want    *bool
	}{
		{orchestrator.Running, 1, []rolloutLock{held(locksmith.Held, "r-1")}, &yes},
		{orchestrator.Paused, 2, []rolloutLock{held(locksmith.Held, "r-1"), held(locksmith.Warm, "r-1")}, &yes},
		{orchestrator.Running, 1, []rolloutLock{held(locksmith.Hot, "r-1")}, &no},
		{orchestrator.Running, 1, []rolloutLock{held(locksmith.Held, "r-2")}, &no},
		{orchestrator.Paused, 1, []rolloutLock{free}, &no},
		{orchestrator.Running, 2, []rolloutLock{held(locksmith.Held, "r-1"), free}, &no},
		{orchestrator.Running, 2, []rolloutLock{held(locksmith.Held, "r-1")}, nil},
		{orchestrator.Running, 1, nil, nil},
		{orchestrator.Waiting, 1, []rolloutLock{free}, nil},
		{orchestrator.Succeeded, 1, []rolloutLock{free}, nil},
	} {
		v := viewRollout(&orchestrator.Header{ID: "r-1", State: tc.state, Configs: make([]orchestrator.HeaderConfig, tc.configs)}, "").withLocks(tc.list)
		if (v.Driven == nil) != (tc.want == nil) || v.Driven != nil && *v.Driven != *tc.want {
			t.Errorf("%d: %s of %d locks: driven is %v", i, tc.state, len(tc.list), v.Driven)
		}
	}
}

// The keys that are offered are those that do something, and nothing is said to go on
// that does not.
func TestWatchHint(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		state    orchestrator.Status
		undriven string
		keys     bool
		want     string
	}{
		{orchestrator.Running, "", true, "q quit (the rollout goes on), e explain, p pause"},
		{orchestrator.Running, "nobody", true, "q quit, e explain, p pause"},
		{orchestrator.RollingBack, "", true, "q quit (the rollout goes on), e explain"},
		{orchestrator.RollingBack, "nobody", true, "q quit, e explain"},
		{orchestrator.Running, "", false, "^C leaves; the rollout goes on"},
		{orchestrator.Running, "nobody", false, "^C leaves"},
	} {
		w := &watchModel{screen: screen{keys: tc.keys}}
		w.Width = 80
		w.board.Header, w.board.Undriven = &orchestrator.Header{State: tc.state}, tc.undriven
		if got := w.hint(); got != tc.want {
			t.Errorf("%s %q: %q, want %q", tc.state, tc.undriven, got, tc.want)
		}
		if w.key("p"); (w.asked == "") != (tc.state == orchestrator.RollingBack) || (w.note == "") != (w.asked != "") {
			t.Errorf("%s: p asks for %q and notes %q", tc.state, w.asked, w.note)
		}
	}
}

// What became of an order is read to its end, on a narrow screen too; and what is left
// on a terminal is broken at its blanks.
func TestWordsAreNotCut(t *testing.T) {
	t.Parallel()
	const note = "resume: done; it goes on without 1 failed node, which is not tried again; no canary is left: the nodes of stage rest are first"
	for _, width := range []int{48, 80, 200} {
		w := &watchModel{}
		w.Width, w.Height, w.note = width, 24, note
		w.board.Header = &orchestrator.Header{ID: "r-1", State: orchestrator.Running, Total: 1}
		lines := strings.Split(w.View().Content, "\n")
		if got := strings.Join(strings.Fields(strings.Join(lines, " ")), " "); !strings.Contains(got, note) || len(lines) > 24 {
			t.Errorf("width %d, %d lines: %s", width, len(lines), got)
		}
	}
	w := &watchModel{}
	w.Width, w.Height, w.note = 20, 8, note
	if lines := w.noteLines(); len(lines) != 2 || len([]rune(lines[1])) > 20 {
		t.Errorf("%q", lines)
	}
}

// Of one that has ended it is said where to look: on what took its place, and how the
// fleet stands now.
func TestAfterEnd(t *testing.T) {
	t.Parallel()
	typed := locksmith.Flags{}.Judging
	at := time.Now()
	h := &orchestrator.Header{ID: "r-1", State: orchestrator.Superseded, SupersededBy: "r-2"}
	if got := afterEnd(h, typed, true); got != "" {
		t.Errorf("of an unfinished one: %q", got)
	}
	h.FinishedAt = &at
	const next = "  next      rollout r-2 took its place: `aimlock rollout watch r-2` follows that\n"
	if got := afterEnd(h, typed, false); got != next {
		t.Errorf("%q, want %q", got, next)
	}
	h.SupersededBy = ""
	h.State, h.Total, h.Stages = orchestrator.Succeeded, 3, []orchestrator.HeaderStage{{End: 3}}
	h.Counts[orchestrator.ClassFailed], h.Counts[orchestrator.ClassApplied] = 1, 2
	const again = "  next      `aimlock rollout start SPEC` of the same serves what failed again, 1 node; a tick does not\n"
	if got := afterEnd(h, typed, false); got != again {
		t.Errorf("%q, want %q", got, again)
	}
	if h.Stages[0].End = 2; afterEnd(h, typed, false) != "" {
		t.Error("a fleet that the stages do not reach whole is served no more")
	}
	const now = "  now       counts and problems are those at its end; `aimlock rollout plan SPEC` says how the fleet stands now\n"
	if got := afterEnd(h, typed, true); got != now {
		t.Errorf("%q, want %q", got, now)
	}
}

package command

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// drawn is the view as lines.
func drawn(m tea.Model) []string {
	content := m.View().Content
	return strings.Split(content, "\n")
}

// fits checks that a view is no larger than its screen, and holds nothing that a
// terminal acts on or, without UTF-8, cannot show.
func fits(t *testing.T, m tea.Model, s board.Screen) {
	t.Helper()
	lines := drawn(m)
	if len(lines) > s.Height {
		t.Errorf("%dx%d: %d lines", s.Width, s.Height, len(lines))
	}
	for _, l := range lines {
		if ansi.StringWidth(l) > s.Width {
			t.Errorf("%dx%d: too wide: %q", s.Width, s.Height, l)
		}
		for _, r := range l {
			if r == '\x1b' || !unicode.IsPrint(r) || !s.UTF8 && r > '~' {
				t.Errorf("%dx%d: %q in %q", s.Width, s.Height, r, l)
			}
		}
	}
}

func press(m tea.Model, keys ...string) tea.Cmd {
	var cmd tea.Cmd
	for _, k := range keys {
		msg := tea.KeyPressMsg{Code: rune(k[0]), Text: k}
		switch k {
		case "down":
			msg = tea.KeyPressMsg{Code: tea.KeyDown}
		case "up":
			msg = tea.KeyPressMsg{Code: tea.KeyUp}
		case "end":
			msg = tea.KeyPressMsg{Code: tea.KeyEnd}
		case "enter":
			msg = tea.KeyPressMsg{Code: tea.KeyEnter}
		}
		_, cmd = m.Update(msg)
	}
	return cmd
}

func testLockScreen(t *testing.T, locks map[string]string) *lockScreen {
	held, id, tool := 90.0, "s", "consul-lock\x1b[31m"
	at := time.Now()
	b := &lockBoard{m: newMeta(t.Context(), IO{Stderr: io.Discard}), all: true, live: true, rows: map[string]*lockRow{}}
	for key, state := range locks {
		b.rows[key] = &lockRow{at: at, st: &locksmith.Status{
			Name: key, Key: key, State: state, Session: &id, HeldFor: &held, Holder: &locksmith.HolderView{Tool: &tool},
			Rule: "hot \"long\"", Reason: "held for 90 s; ünï\x1b[2J",
		}}
	}
	v := &lockScreen{board: b}
	v.keys = true
	v.explain = func(name string) tea.Cmd {
		return asking(t.Context(), func(context.Context) tea.Msg {
			return screenText{title: name, text: strings.Repeat("cause of "+name+"\x1b[2J\n", 50)}
		})
	}
	return v
}

var someLocks = map[string]string{
	"a": locksmith.Held, "b\x1b[2J": locksmith.Held, "c/with/a/long/name/that/does/not/fit/anywhere": locksmith.Held,
	"ünï/cödé": locksmith.Held, "z": locksmith.Hot,
}

// The table of lock watch fits every terminal, shows the gravest locks first, and
// lets no foreign code through.
func TestLockScreenFits(t *testing.T) {
	t.Parallel()
	for _, utf8 := range []bool{true, false} {
		for _, width := range []int{1, 10, 20, 40, 69, 70, 80, 120, 200} {
			for _, height := range []int{1, 2, 4, 6, 24} {
				v := testLockScreen(t, someLocks)
				v.UTF8 = utf8
				v.Update(tea.WindowSizeMsg{Width: width, Height: height})
				fits(t, v, v.Screen)
				v.Update(screenNote{"read all keys: Consul at 127.0.0.1:8500: did not answer\x1b[2J\nat all"})
				fits(t, v, v.Screen)
				press(v, "down", "down", "p")
				fits(t, v, v.Screen)
				v.Update(press(v, "e")())
				fits(t, v, v.Screen)
				if width >= 40 && height >= 6 && !strings.Contains(strings.Join(drawn(v), "\n"), "cause of ") {
					t.Errorf("%dx%d: the explanation is not shown", width, height)
				}
			}
		}
	}
	v := testLockScreen(t, someLocks)
	v.UTF8 = true
	// The heading stands over its columns.
	for _, width := range []int{40, 80} {
		v.Update(tea.WindowSizeMsg{Width: width, Height: 24})
		head, first := drawn(v)[0], drawn(v)[1]
		if at := strings.Index(head, "STATE"); at < 0 || at != strings.Index(first, locksmith.Hot) || strings.Index(head, "HELD FOR") != strings.Index(first, "1m30s") {
			t.Errorf("at %d columns the heading and the first lock are\n%s\n%s", width, head, first)
		}
	}
	v.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	if l := drawn(v)[1]; !strings.HasPrefix(l, "> z ") || !strings.Contains(l, "1m30s") {
		t.Errorf("first comes %q", l)
	}
	v.Update(tea.WindowSizeMsg{Width: 80, Height: 5})
	if all := strings.Join(drawn(v), "\n"); !strings.Contains(all, "1 to 2 of 5") {
		t.Errorf("nothing tells of the rest:\n%s", all)
	}
	press(v, "end")
	if all := strings.Join(drawn(v), "\n"); !strings.Contains(all, "4 to 5 of 5") || !strings.Contains(all, "> ünï") {
		t.Errorf("the last row is not shown:\n%s", all)
	}
}

// At 40 columns the keys are still all told.
func TestHintsFit(t *testing.T) {
	t.Parallel()
	v := testLockScreen(t, someLocks)
	w := &watchModel{}
	w.keys = true
	w.Update(watchHeader{h: &orchestrator.Header{ID: "r-1", State: orchestrator.Running, Total: 4}})
	has := func(m tea.Model, width int, words ...string) {
		t.Helper()
		m.Update(tea.WindowSizeMsg{Width: width, Height: 20})
		lines := drawn(m)
		for _, word := range words {
			if last := lines[len(lines)-1]; !strings.Contains(last, word) || strings.Contains(last, "...") {
				t.Errorf("at %d columns the hint is %q, without %q", width, last, word)
			}
		}
	}
	for _, width := range []int{40, 80, 200} {
		has(v, width, "q quit", "e explain", "p freeze the view")
		has(w, width, "q quit", "e explain", "p pause")
	}
	press(v, "p")
	press(w, "p")
	has(v, 40, "FROZEN", "p goes on", "q quit")
	has(w, 40, "pause", "y: yes", "no")
	has(w, 80, "pause the rollout", "any other key")
}

// Without UTF-8 a terminal gets ASCII; a pipe keeps what others wrote.
func TestASCIILines(t *testing.T) {
	t.Parallel()
	const in = "nöde: cut off…\nnext\n"
	for _, c := range []struct {
		utf8, screen bool
		want         string
	}{
		{true, true, in}, {true, false, in}, {false, false, "nöde: cut off...\nnext\n"}, {false, true, "n?de: cut off...\nnext\n"},
	} {
		if got := asciiLines(in, c.utf8, c.screen); got != c.want {
			t.Errorf("utf8 %v, screen %v: %q, want %q", c.utf8, c.screen, got, c.want)
		}
	}
}

func TestLockScreenKeys(t *testing.T) {
	t.Parallel()
	v := testLockScreen(t, map[string]string{"a": locksmith.Held, "b": locksmith.Held})
	v.UTF8 = true
	v.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	press(v, "down")
	// The choice stays with its lock when another one comes before it.
	v.board.rows["0"] = &lockRow{st: &locksmith.Status{Name: "0", Key: "0", State: locksmith.Held}}
	if all := strings.Join(drawn(v), "\n"); !strings.Contains(all, "> b ") {
		t.Errorf("the choice moved:\n%s", all)
	}
	// Held still, nothing moves; then it goes on.
	press(v, "p")
	delete(v.board.rows, "a")
	v.board.rows["b"].st.State = locksmith.Held
	if all := strings.Join(drawn(v), "\n"); !strings.Contains(all, "  a ") || !strings.Contains(all, "FROZEN") {
		t.Errorf("it did not stand still:\n%s", all)
	}
	press(v, "p")
	if all := strings.Join(drawn(v), "\n"); strings.Contains(all, "  a ") || strings.Contains(all, "FROZEN") {
		t.Errorf("it still stands:\n%s", all)
	}
	v.Update(press(v, "enter")())
	if v.page == nil || !strings.Contains(drawn(v)[1], "cause of b") {
		t.Fatalf("nothing is explained: %q", drawn(v))
	}
	press(v, "end")
	if l := drawn(v); !strings.HasPrefix(l[len(l)-1], "100%") {
		t.Errorf("the end is not shown: %q", l[len(l)-1])
	}
	press(v, "q")
	if v.page != nil || v.left != "" {
		t.Error("q did not lead back to the table")
	}
	v.Update(screenText{err: errors.New("no\x1b way")})
	if l := drawn(v); v.page != nil || !strings.Contains(l[len(l)-2], "no") {
		t.Errorf("the error is not told: %q", l)
	}
	if press(v, "q") == nil || v.left != "q" {
		t.Error("q does not leave")
	}
}

// A key that changes a rollout asks first, and its answer is told.
func TestWatchKeys(t *testing.T) {
	t.Parallel()
	var given []orchestrator.Verb
	w := &watchModel{
		order: func(v orchestrator.Verb) tea.Cmd {
			given = append(given, v)
			return func() tea.Msg { return screenNote{string(v) + ": done"} }
		},
		explain: func(*orchestrator.Header) tea.Cmd {
			return func() tea.Msg { return screenText{title: "t", text: "because"} }
		},
	}
	w.keys, w.UTF8 = true, true
	w.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	press(w, "p") // nothing is known yet
	h := &orchestrator.Header{ID: "r-1", Name: "r", State: orchestrator.Running, Stages: []orchestrator.HeaderStage{{Name: "all", End: 4, Done: 1}}, Total: 4}
	w.Update(watchHeader{h: h})
	last := func() string {
		l := drawn(w)
		return l[len(l)-1]
	}
	if !strings.Contains(last(), "p pause") {
		t.Errorf("hint %q", last())
	}
	press(w, "p")
	if !strings.Contains(last(), "pause the rollout? y: yes") {
		t.Errorf("it does not ask: %q", last())
	}
	press(w, "n")
	if len(given) > 0 || w.left != "" {
		t.Errorf("no was not taken for no: %v %q", given, w.left)
	}
	press(w, "p")
	w.Update(press(w, "y")())
	if len(given) != 1 || given[0] != orchestrator.Pause || !strings.Contains(w.note, "done") {
		t.Errorf("orders %v, note %q", given, w.note)
	}
	h.State, h.Paused = orchestrator.Paused, &orchestrator.PauseInfo{Cause: orchestrator.CauseOperator, Why: "by a key"}
	w.Update(watchHeader{h: h})
	if !strings.Contains(last(), "p resume") {
		t.Errorf("hint %q", last())
	}
	press(w, "p", "y")
	if len(given) != 2 || given[1] != orchestrator.Resume {
		t.Errorf("orders %v", given)
	}
	h.Paused.Cause, h.Counts[orchestrator.ClassFailed] = orchestrator.CauseFailure, 1
	w.Update(watchHeader{h: h})
	press(w, "p")
	if !strings.Contains(last(), "go on without the failed nodes? y: yes") {
		t.Errorf("it asks %q", last())
	}
	press(w, "n")
	h.State, h.Paused = orchestrator.Baking, nil
	w.nobody = "nobody drives it"
	w.Update(watchHeader{h: h, undriven: true})
	if all := strings.Join(drawn(w), "\n"); !strings.Contains(all, "nobody drives it") {
		t.Errorf("it is not told that nobody drives it:\n%s", all)
	}
	w.Update(watchHeader{h: h})
	if all := strings.Join(drawn(w), "\n"); strings.Contains(all, "nobody drives it") {
		t.Errorf("it is still told that nobody drives it:\n%s", all)
	}
	w.Update(press(w, "e")())
	if l := drawn(w); !strings.Contains(l[1], "because") {
		t.Errorf("nothing is explained: %q", l)
	}
	press(w, "q", "q")
	if w.left != "q" {
		t.Error("q does not leave")
	}
	for _, width := range []int{10, 40, 80, 200} {
		for _, height := range []int{2, 6, 24} {
			w.UTF8 = !w.UTF8
			w.Update(tea.WindowSizeMsg{Width: width, Height: height})
			fits(t, w, w.Screen)
		}
	}
}

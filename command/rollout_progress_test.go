package command

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// glass is a terminal as far as the bars need one.
type glass struct {
	lines    []string
	row, col int
}

func (g *glass) Write(b []byte) (int, error) {
	s := string(b)
	for s != "" {
		var up int
		switch {
		case strings.HasPrefix(s, "\x1b[J"):
			line := g.at(g.row)
			g.lines = append(g.lines[:g.row:g.row], fmt.Sprintf("%-*.*s", g.col, g.col, line))
			s = s[3:]
			continue
		case strings.HasPrefix(s, "\x1b["):
			if _, err := fmt.Sscanf(s, "\x1b[%dA", &up); err != nil {
				return 0, err
			}
			g.row = max(0, g.row-up)
			s = s[strings.IndexByte(s, 'A')+1:]
			continue
		case s[0] == '\r':
			g.col = 0
		case s[0] == '\n':
			g.row, g.col = g.row+1, 0
		default:
			line := fmt.Sprintf("%-*s", g.col+1, g.at(g.row))
			g.lines[g.row] = line[:g.col] + s[:1] + line[g.col+1:]
			g.col++
		}
		s = s[1:]
	}
	return len(b), nil
}

func (g *glass) at(row int) string {
	for len(g.lines) <= row {
		g.lines = append(g.lines, "")
	}
	return g.lines[row]
}

func (g *glass) String() string {
	return strings.TrimRight(strings.Join(g.lines, "\n"), "\n ")
}

// Whatever is written to stderr while bars stand, and whatever a terminal echoes, the
// bars are gone in the end and nothing else is. What a shell has written while the
// process was stopped stays, and is no margin.
func TestBarsLeaveNothing(t *testing.T) {
	t.Parallel()
	g := &glass{}
	hidden := false
	p := &progress{w: g, live: true, screen: board.Screen{Width: 60}, hidden: func() bool { return hidden }, woken: make(chan os.Signal, 1)}
	h := orchestrator.Header{State: orchestrator.Running, Stage: "all", Total: 2, Stages: []orchestrator.HeaderStage{{Name: "all", End: 2}}}
	tell := func(words string) { p.tell(runner.Progress{Text: words, Header: h}) }
	wants := func(want string) {
		t.Helper()
		if got := g.String(); got != want {
			t.Fatalf("on the screen stands\n%s\nwant\n%s", got, want)
		}
	}
	bars := "> all  ................................................. 0/2\n  running, stage all: 2 in all"
	_, _ = g.Write([]byte("$ aimlock rollout start\n"))
	tell("one")
	wants("$ aimlock rollout start\none\n" + bars)
	_, _ = fmt.Fprintln(p, "[WARN] of another\nof two lines")
	tell("")
	wants("$ aimlock rollout start\none\n[WARN] of another\nof two lines\n" + bars)

	_, _ = g.Write([]byte("^C"))
	p.close()
	wants("$ aimlock rollout start\none\n[WARN] of another\nof two lines")

	g = &glass{}
	p.w = g
	tell("one")
	_, _ = g.Write([]byte("[1]+ Stopped\n$ "))
	hidden = true
	p.woken <- syscall.SIGCONT
	tell("two")
	p.close()
	_, _ = fmt.Fprintln(p, "three")
	wants("one\n" + bars + "\n[1]+ Stopped\n$ \ntwo\nthree")

	var out bytes.Buffer
	p = &progress{w: &out, hidden: func() bool { return false }}
	tell("one")
	p.close()
	if out.String() != "one\n" {
		t.Errorf("in a pipe: %q", out.String())
	}
}

// What is left of a bake counts down though nothing else happens, and not over what
// somebody else types.
func TestBarsCountABakeDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g, ended := &glass{}, make(chan struct{})
		var hidden atomic.Bool
		spec := &orchestrator.Spec{Stages: []orchestrator.Stage{{Name: "all", Bake: 10 * time.Second}}}
		p := &progress{w: g, live: true, spec: spec, screen: board.Screen{Width: 60}, hidden: hidden.Load, woken: make(chan os.Signal, 1)}
		since := time.Now()
		p.tell(runner.Progress{Header: orchestrator.Header{
			State: orchestrator.Baking, BakingSince: &since, Stage: "all", Total: 1, Stages: []orchestrator.HeaderStage{{Name: "all", End: 1, Done: 1}},
		}})
		go p.everySecond(ended)
		shows := func(after time.Duration, want string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			if got := g.String(); !strings.Contains(got, want) || strings.Count(got, "> all") != 1 {
				t.Errorf("on the screen stands\n%s\nwant %q", got, want)
			}
		}
		shows(0, "bakes 10s")
		shows(3500*time.Millisecond, "bakes 7s")
		hidden.Store(true)
		shows(2*time.Second, "bakes 7s")
		hidden.Store(false)
		shows(6*time.Second, "baked")
		close(ended)
	})
}

package command

import (
	"fmt"
	"io"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// progress shows how a rollout moves: bars that are redrawn in place on a
// terminal, and plain lines elsewhere. It is used by one goroutine.
type progress struct {
	w      io.Writer
	screen board.Screen
	live   bool
	drawn  int // lines of the bars on the screen
	last   string
	lastT  time.Time
}

// progress makes the display of a command; it writes to Stderr.
func (m *Meta) progress() *progress {
	width, ok := Terminal(m.Stderr)
	return &progress{
		w: m.Stderr, live: ok && m.Env("TERM") != "dumb",
		screen: board.Screen{Width: width - 1, Color: m.Color(m.Stderr), UTF8: m.UTF8()},
	}
}

// plainEvery is the least time between two lines of mere numbers.
const plainEvery = 2 * time.Second

func (p *progress) tell(ev runner.Progress) {
	if ev.Text != "" {
		line := text.Printable(orchestrator.Ends(ev.Text, 400))
		if ev.Node != "" {
			line = ev.Node + ": " + line
		}
		p.line(line)
	}
	h := &ev.Header
	if p.live {
		p.draw(h)
		return
	}
	if now := board.Headline(h); ev.Text == "" && now != p.last && time.Since(p.lastT) >= plainEvery {
		p.last, p.lastT = now, time.Now()
		p.line(now)
	}
}

// line writes one line above the bars.
func (p *progress) line(s string) {
	p.erase()
	_, _ = fmt.Fprintln(p.w, s)
}

func (p *progress) erase() {
	if p.drawn > 0 {
		_, _ = fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

func (p *progress) draw(h *orchestrator.Header) {
	p.erase()
	lines := append(board.Bars(h, p.screen), text.Clip("  "+text.Printable(board.Headline(h)), max(10, p.screen.Width-4)))
	for _, l := range lines {
		_, _ = fmt.Fprintln(p.w, l)
	}
	p.drawn = len(lines)
}

func (p *progress) close() { p.erase() }

package command

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// progress shows how a rollout moves: bars that are redrawn in place on a
// terminal, and plain lines elsewhere. It is used by one goroutine.
type progress struct {
	w     io.Writer
	width int
	live  bool
	drawn int // lines of the bars on the screen
	last  string
	lastT time.Time
}

// progress makes the display of a command; it writes to Stderr.
func (m *Meta) progress() *progress {
	width, ok := Terminal(m.Stderr)
	return &progress{w: m.Stderr, width: width, live: ok && m.Env("TERM") != "dumb"}
}

// plainEvery is the least time between two lines of mere numbers.
const plainEvery = 2 * time.Second

func (p *progress) tell(ev runner.Progress) {
	if ev.Text != "" {
		line := text.Clip(text.Printable(ev.Text), 400)
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
	if now := headline(h); ev.Text == "" && now != p.last && time.Since(p.lastT) >= plainEvery {
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
	lines := bars(h, p.width)
	for _, l := range lines {
		_, _ = fmt.Fprintln(p.w, l)
	}
	p.drawn = len(lines)
}

func (p *progress) close() { p.erase() }

// bars are the stages of a rollout as bars no wider than width.
func bars(h *orchestrator.Header, width int) []string {
	name := 4
	for _, s := range h.Stages {
		name = max(name, min(len(s.Name), 20))
	}
	out := make([]string, 0, len(h.Stages)+1)
	for i, s := range h.Stages {
		total := s.End - s.From
		mark := " "
		if i == h.StageIndex && h.FinishedAt == nil {
			mark = ">"
		}
		head := fmt.Sprintf("%s %-*s ", mark, name, text.Clip(s.Name, name))
		tail := fmt.Sprintf(" %d/%d", s.Done, total)
		size := min(40, width-len(head)-len(tail)-3)
		bar := ""
		if size >= 5 {
			full := size
			if total > 0 {
				full = size * s.Done / total
			}
			bar = "[" + strings.Repeat("#", full) + strings.Repeat(".", size-full) + "]"
		}
		out = append(out, text.Clip(head+bar+tail, width-1))
	}
	return append(out, text.Clip("  "+headline(h), max(10, width-4)))
}

package command

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// progress shows how a rollout moves: bars that are redrawn in place on a
// terminal, and plain lines elsewhere. While bars can stand, all that this process
// writes to stderr passes through it: what it did not write itself it could not erase.
type progress struct {
	w      io.Writer
	screen board.Screen
	live   bool
	// hidden tells that somebody else types on this terminal now.
	hidden func() bool
	// woken has a SIGCONT.
	woken chan os.Signal
	// giveBack ends the detour of stderr and the redrawing; nil: there is none.
	giveBack func()
	// spec says how long a stage bakes.
	spec *orchestrator.Spec

	mu    sync.Mutex
	h     *orchestrator.Header // nil: there is nothing to show
	bars  []string             // as they stand, or stood before a line was written
	drawn int                  // lines of the bars on the screen
	last  string
	lastT time.Time
}

// progress makes the display of a command; it writes to Stderr. It must be closed.
func (m *Meta) progress(spec *orchestrator.Spec) *progress {
	width, ok := Terminal(m.Stderr)
	p := &progress{
		w: m.Stderr, spec: spec, live: ok && m.Env("TERM") != "dumb", hidden: m.inBackground, woken: make(chan os.Signal, 1),
		screen: board.Screen{Width: width - 1, Color: m.Color(m.Stderr), UTF8: m.UTF8()},
	}
	if p.live {
		signal.Notify(p.woken, syscall.SIGCONT)
		back := m.stderr.divert(p)
		ended := make(chan struct{})
		var clock sync.WaitGroup
		clock.Go(func() { p.everySecond(ended) })
		p.giveBack = func() {
			close(ended)
			clock.Wait()
			back()
		}
	}
	return p
}

// everySecond draws the bars anew while they stand, since what is left of a bake is in
// them, until ended is closed.
func (p *progress) everySecond(ended <-chan struct{}) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ended:
			return
		case <-t.C:
			p.redraw()
		}
	}
}

func (p *progress) redraw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.h == nil || p.hidden() {
		return
	}
	if bars := p.render(); !slices.Equal(bars, p.bars) {
		p.bars = bars
		p.draw()
	}
}

// render are the bars of what was last told.
func (p *progress) render() []string {
	now := time.Now()
	headline := "  " + text.Printable(board.Headline(p.h, now))
	return append(board.Bars(p.h, p.spec, now, p.screen), text.Clip(headline, max(10, p.screen.Width-4)))
}

// plainEvery is the least time between two lines of mere numbers.
const plainEvery = 2 * time.Second

func (p *progress) tell(ev runner.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev.Text != "" {
		line := text.Printable(orchestrator.Ends(ev.Text, 400))
		if ev.Node != "" {
			line = ev.Node + ": " + line
		}
		p.line(line)
	}
	h := &ev.Header
	switch {
	case p.live && h.Total == 0:
		p.h, p.bars = nil, nil // it is not planned yet: nothing moves
		return
	case p.live:
		p.h = h
		p.bars = p.render()
		p.draw()
		return
	}
	if now := board.Headline(h, time.Now()); ev.Text == "" && now != p.last && time.Since(p.lastT) >= plainEvery {
		p.last, p.lastT = now, time.Now()
		p.line(now)
	}
}

// Write puts what others write to stderr above the bars.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	n, err := p.w.Write(b)
	if err == nil && bytes.HasSuffix(b, []byte("\n")) {
		p.draw()
	}
	return n, err
}

// line writes one line above the bars.
func (p *progress) line(s string) {
	p.erase()
	_, _ = fmt.Fprintln(p.w, foldedFor(p.w, s))
}

func (p *progress) erase() {
	select {
	case <-p.woken:
		// The shell has written below the bars meanwhile, and its prompt may stand in
		// this line: what stands is not ours to erase.
		_, _ = fmt.Fprintln(p.w)
		p.drawn = 0
	default:
	}
	if p.drawn > 0 {
		_, _ = fmt.Fprintf(p.w, "\r\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

func (p *progress) draw() {
	p.erase()
	if p.hidden() {
		return
	}
	for _, l := range p.bars {
		_, _ = fmt.Fprintln(p.w, l)
	}
	p.drawn = len(p.bars)
}

// close takes the bars away, for good.
func (p *progress) close() {
	p.mu.Lock()
	p.erase()
	p.h, p.bars = nil, nil
	back := p.giveBack
	p.giveBack = nil
	p.mu.Unlock()
	// A write to stderr holds its lock before this one's.
	if back != nil {
		signal.Stop(p.woken)
		back()
	}
}

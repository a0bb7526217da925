package command

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"charm.land/bubbles/v2/viewport"
	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
)

// askTime bounds what a key asks of Consul: an explanation, an order.
const askTime = 30 * time.Second

// Messages to any full-screen view.
type (
	// screenSecond redraws what only time changes.
	screenSecond struct{}
	// screenNote is a line that is told below; "" takes it away.
	screenNote struct{ line string }
	// screenText is what was asked for, to be read page by page.
	screenText struct {
		title, text string
		err         error
	}
)

// everySecond redraws what only time changes.
func everySecond() tea.Cmd {
	return tea.Tick(time.Second, func(time.Time) tea.Msg { return screenSecond{} })
}

// live tells whether a full-screen view can be drawn on stdout. Elsewhere lines
// are written: into a pipe, a file, the log of a job, a terminal that cannot move
// its cursor, one that somebody else types on.
func (m *Meta) live() bool {
	_, ok := Terminal(m.Stdout)
	return ok && !m.JSON && m.Env("TERM") != "dumb" && !m.inBackground()
}

// inBackground tells whether this is a job in the background of its terminal
// (`aimlock rollout watch &`): the kernel stops one that reads from it, or changes it.
func (m *Meta) inBackground() bool {
	f, ok := m.Stdin.(*os.File)
	if !ok {
		return false
	}
	front, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && front != unix.Getpgrp()
}

// hasKeys tells whether keys can be read.
func (m *Meta) hasKeys() bool {
	f, ok := m.Stdin.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// screen is what full-screen views have in common: the terminal's size, a text
// that covers all else while it is read, and a line of notes.
type screen struct {
	board.Screen
	// keys can be read.
	keys bool
	note string
	// left is the key that ended the view.
	left string
	page *page
}

// page is a text that is read.
type page struct {
	title string
	raw   string
	view  viewport.Model
}

// handle deals with what all views do alike; done tells that msg was such.
func (s *screen) handle(msg tea.Msg) (cmd tea.Cmd, done bool) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		s.Width, s.Height = msg.Width, msg.Height
		if s.Width <= 0 || s.Height <= 0 {
			s.Width, s.Height = 80, 24 // a terminal that does not say
		}
		s.layOut()
	case screenSecond:
		return everySecond(), true
	case screenNote:
		s.note = msg.line
	case screenText:
		if s.note = ""; msg.err != nil {
			s.note = msg.err.Error()
			return nil, true
		}
		s.page = &page{title: msg.title, raw: msg.text, view: viewport.New()}
		s.layOut()
	case tea.KeyPressMsg:
		return s.press(msg)
	default:
		return nil, false
	}
	return nil, true
}

func (s *screen) press(msg tea.KeyPressMsg) (tea.Cmd, bool) {
	k := msg.String()
	if k == "ctrl+c" {
		s.left = k
		return tea.Quit, true
	}
	if s.page == nil {
		return nil, false
	}
	switch k {
	case "q", "esc", "e", "enter":
		s.page = nil
	case "g", "home":
		s.page.view.GotoTop()
	case "G", "end":
		s.page.view.GotoBottom()
	default:
		var cmd tea.Cmd
		s.page.view, cmd = s.page.view.Update(msg)
		return cmd, true
	}
	return nil, true
}

// quit ends the view for a key.
func (s *screen) quit(key string) tea.Cmd {
	s.left = key
	return tea.Quit
}

// layOut breaks the page's text to the terminal's width.
func (s *screen) layOut() {
	if s.page == nil || s.Width <= 0 {
		return
	}
	v := &s.page.view
	v.SetWidth(s.Width)
	v.SetHeight(max(1, s.Height-2))
	v.SetContent(ansi.Wrap(s.clean(s.page.raw), s.Width, ""))
}

// clean makes lines of foreign text safe for the terminal at hand.
func (s *screen) clean(lines string) string {
	out := strings.Split(strings.TrimRight(lines, "\n"), "\n")
	for i, l := range out {
		if out[i] = text.Printable(l); !s.UTF8 {
			out[i] = text.ASCII(out[i])
		}
	}
	return strings.Join(out, "\n")
}

// cut fits clean text to one line.
func (s *screen) cut(line string, width int) string {
	if ansi.StringWidth(line) <= width {
		return line
	}
	dots := "…"
	if !s.UTF8 {
		dots = "..."
	}
	return ansi.Truncate(line, max(0, width), dots)
}

// roomy is the first hint that the screen has room for, else the last one: keys that
// are cut off at the side are not known.
func (s *screen) roomy(hints ...string) string {
	for _, h := range hints {
		if ansi.StringWidth(h) <= s.Width {
			return h
		}
	}
	return hints[len(hints)-1]
}

// frame is what stands on the screen: the page, or lines with the note and a hint
// below. The hint stays where there is no room for all.
func (s *screen) frame(lines []string, hint string) tea.View {
	v := tea.NewView("")
	v.AltScreen = true
	if s.Width <= 0 || s.Height <= 0 {
		return v // it is not known yet
	}
	if s.page != nil {
		hint = "q back, arrows and space move"
		if n := s.page.view.TotalLineCount(); n > s.page.view.Height() {
			hint = fmt.Sprintf("%d%%  %s", int(s.page.view.ScrollPercent()*100), hint)
		}
		all := strings.Split(s.page.view.View(), "\n")
		all = append([]string{s.cut(s.clean(s.page.title), s.Width)}, append(all, s.cut(hint, s.Width))...)
		v.SetContent(strings.Join(all[:min(len(all), s.Height)], "\n"))
		return v
	}
	tail := s.noteLines()
	tail = append(tail, s.cut(s.clean(hint), s.Width))
	if room := s.Height - len(tail); len(lines) > room {
		lines = lines[:max(0, room)]
	}
	all := slices.Concat(lines, tail)
	v.SetContent(strings.Join(all[:min(len(all), s.Height)], "\n"))
	return v
}

// noteMost is how many lines a note may take.
const noteMost = 3

// noteLines are the note as it stands on the screen, broken at its blanks: what became
// of an order is told at its end.
func (s *screen) noteLines() []string {
	if s.note == "" || s.Width <= 0 {
		return nil
	}
	lines := board.Lines(s.clean(strings.ReplaceAll(s.note, "\n", " ")), s.Width)
	if most := max(1, min(noteMost, s.Height/4)); len(lines) > most {
		rest := strings.Join(lines[most-1:], " ")
		lines = append(lines[:most-1], rest)
	}
	for i := range lines {
		lines[i] = s.cut(lines[i], s.Width)
	}
	return lines
}

// asking runs what a key asks for beside the view, with a bound.
func asking(ctx context.Context, do func(context.Context) tea.Msg) tea.Cmd {
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		return do(ctx)
	}
}

// newScreen is for the view of a command.
func (m *Meta) newScreen() screen {
	return screen{Screen: board.Screen{Color: m.Color(m.Stdout), UTF8: m.UTF8()}, keys: m.hasKeys()}
}

// onScreen draws a view on the terminal's other screen until a key ends it or
// feed returns, and leaves the terminal as it was, whatever ends it. What would
// be written to stderr meanwhile comes as a note: it would stand across the view.
// feed tells the view what is new.
func (m *Meta) onScreen(ctx context.Context, model tea.Model, s *screen, feed func(ctx context.Context, send func(tea.Msg)) error) error {
	profile := colorprofile.ASCII
	if s.Color {
		profile = colorprofile.ANSI
	}
	opts := []tea.ProgramOption{
		tea.WithOutput(m.Stdout), tea.WithoutSignalHandler(), tea.WithFPS(10), tea.WithColorProfile(profile),
		tea.WithEnvironment([]string{"TERM=" + m.Env("TERM")}),
	}
	if s.keys {
		opts = append(opts, tea.WithInput(m.Stdin))
	} else {
		opts = append(opts, tea.WithInput(nil))
	}
	p := tea.NewProgram(model, opts...)
	notes := make(chan string, 16)
	defer m.stderr.divert(&noteWriter{notes: notes})()

	// The feeder ends the display, and the display's end ends the feeder.
	g, fctx := errgroup.WithContext(ctx)
	fctx, stop := context.WithCancel(fctx)
	defer stop()
	g.Go(func() error {
		defer p.Quit()
		return feed(fctx, p.Send)
	})
	g.Go(func() error {
		for {
			select {
			case line := <-notes:
				p.Send(screenNote{line})
			case <-fctx.Done():
				return nil
			}
		}
	})
	_, drawErr := p.Run()
	left := s.left
	stop()
	err := g.Wait()
	switch {
	case drawErr != nil:
		return fmt.Errorf("draw on the terminal: %w", drawErr)
	case left == "ctrl+c":
		return exit(signals.Error{Signal: syscall.SIGINT}.ExitCode())
	case left != "":
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// noteWriter tells each whole line as a note, and never waits: the view itself may
// write. Only the last note is shown, so that one which finds no room is no loss.
type noteWriter struct {
	notes chan<- string
	rest  []byte
}

// Write is serialised by diversion.
func (w *noteWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		line, after, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		w.rest = after
		select {
		case w.notes <- string(line):
		default:
		}
	}
}

// diversion is a process's stderr, which a full-screen view takes over while it
// stands.
type diversion struct {
	mu sync.Mutex
	to io.Writer
}

// Write writes to where it goes now.
func (d *diversion) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.to.Write(b)
}

// divert sends what is written to another place, until back is called.
func (d *diversion) divert(to io.Writer) (back func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.to
	d.to = to
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.to = was
	}
}

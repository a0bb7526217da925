package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

func newRolloutWatch(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Follow a rollout until it ends",
		Usage:    "[options] [ID|NAME]",
		Description: `Follows a rollout by blocking queries. On a terminal it shows the stages as bars,
the nodes that have been in flight for longest, failures with their output, how
long it still takes, and the log; q leaves it, and the rollout goes on. Elsewhere
it writes a plain line for each change, and with -json one object a line.

It ends with the rollout, and changes nothing.`,
		Examples: []example{{"Look on", "aimlock rollout watch"}, {"In a job's log", "aimlock rollout watch aim-lock-config | cat"}},
		Groups:   groupConsul | groupJSON,
		MaxArgs:  1,
		Complete: completeRollouts,
		Run: func(ctx context.Context, in *input) error {
			r, id, err := m.rolloutOf(ctx, in.Args)
			if err != nil {
				return err
			}
			if _, ok := Terminal(m.Stdout); ok && !m.JSON && m.Env("TERM") != "dumb" {
				return m.watchLive(ctx, r, id)
			}
			return m.watchPlain(ctx, r, id)
		},
	}
}

// watchPlain writes a line for each change: what the log says, and how many
// nodes are where.
func (m *Meta) watchPlain(ctx context.Context, r *runner.Runner, id string) error {
	var end *orchestrator.Header
	var failed error
	last, seen := "", uint64(0)
	err := r.Watch(ctx, id, func(h *orchestrator.Header) bool {
		first := end == nil
		end = h
		if m.JSON {
			failed = m.printLine(viewRollout(h, ""))
			return failed == nil
		}
		if h.Events > seen && !first {
			var events []records.RolloutEvent
			if events, failed = r.Events(ctx, id, seen); failed != nil {
				return false
			}
			for _, e := range events {
				if e.Text != "" {
					m.Printf("%s  %s\n", e.At.UTC().Format("15:04:05"), eventText(&e))
				}
			}
		}
		seen = max(seen, h.Events)
		if line := board.Headline(h); line != last {
			last = line
			m.Printf("%s  %s\n", time.Now().UTC().Format("15:04:05"), text.Printable(line))
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return rolloutError(err)
	}
	if !m.JSON {
		m.Printf("%s", rolloutText(end))
	}
	return nil
}

// eventText is an event on one line.
func eventText(e *records.RolloutEvent) string {
	words := text.Clip(text.Printable(e.Text), 300)
	if e.Node != "" {
		words = text.Printable(e.Node) + ": " + words
	}
	return words
}

// Messages to the live display.
type (
	watchHeader struct {
		h      *orchestrator.Header
		events []records.RolloutEvent
		err    error // of reading the events
	}
	watchSpec   struct{ spec *orchestrator.Spec }
	watchSecond struct{}
)

// watchModel is the live display: what was last told of the rollout.
type watchModel struct {
	board  board.Model
	screen board.Screen
	// key is what it was left by.
	key string
}

// eventsKept bounds the log that is shown.
const eventsKept = 200

// everySecond redraws what only time changes.
func everySecond() tea.Cmd {
	return tea.Tick(time.Second, func(time.Time) tea.Msg { return watchSecond{} })
}

func (w *watchModel) Init() tea.Cmd { return everySecond() }

func (w *watchModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.KeyPressMsg:
		switch k := msg.String(); k {
		case "q", "esc", "ctrl+c":
			w.key = k
			return w, tea.Quit
		}
	case tea.WindowSizeMsg:
		w.screen.Width, w.screen.Height = msg.Width, msg.Height
	case watchSecond:
		return w, everySecond()
	case watchSpec:
		w.board.Spec = msg.spec
	case watchHeader:
		w.board.Header, w.board.Note = msg.h, ""
		w.board.Events = append(w.board.Events, msg.events...)
		if n := len(w.board.Events); n > eventsKept {
			w.board.Events = w.board.Events[n-eventsKept:]
		}
		if msg.err != nil {
			w.board.Note = msg.err.Error()
		}
	}
	return w, nil
}

func (w *watchModel) View() tea.View {
	v := tea.NewView("")
	v.AltScreen = true
	if w.board.Header != nil && w.screen.Width > 0 {
		w.board.Now = time.Now()
		v.SetContent(strings.Join(board.Render(w.board, w.screen), "\n"))
	}
	return v
}

// watchLive draws on the terminal's other screen, and leaves it as it was,
// whatever ends it.
func (m *Meta) watchLive(ctx context.Context, r *runner.Runner, id string) error {
	model := &watchModel{screen: board.Screen{Color: m.Color(m.Stdout), UTF8: m.UTF8()}}
	model.board.Hint = "q leaves; the rollout goes on"
	profile := colorprofile.ASCII
	if model.screen.Color {
		profile = colorprofile.ANSI
	}
	opts := []tea.ProgramOption{
		tea.WithOutput(m.Stdout), tea.WithoutSignalHandler(), tea.WithFPS(10), tea.WithColorProfile(profile),
		tea.WithEnvironment([]string{"TERM=" + m.Env("TERM")}),
	}
	if f, ok := m.Stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		opts = append(opts, tea.WithInput(m.Stdin))
	} else {
		opts = append(opts, tea.WithInput(nil))
		model.board.Hint = "^C leaves; the rollout goes on"
	}
	p := tea.NewProgram(model, opts...)

	// The feeder ends the display, and the display's end ends the feeder.
	g, fctx := errgroup.WithContext(ctx)
	fctx, stop := context.WithCancel(fctx)
	g.Go(func() error {
		defer p.Quit()
		return feedWatch(fctx, r, id, p.Send)
	})
	_, drawErr := p.Run()
	left := model.key != ""
	stop()
	err := g.Wait()
	switch {
	case drawErr != nil:
		return fmt.Errorf("draw on the terminal: %w", drawErr)
	case model.key == "ctrl+c":
		return exit(signals.Error{Signal: syscall.SIGINT}.ExitCode())
	case left:
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return rolloutError(err)
	}
	if h := model.board.Header; h != nil {
		m.Printf("%s", rolloutText(h))
	}
	return nil
}

// feedWatch tells the display what becomes of a rollout, until that ends.
func feedWatch(ctx context.Context, r *runner.Runner, id string, send func(tea.Msg)) error {
	seen, stages := uint64(0), false
	return r.Watch(ctx, id, func(h *orchestrator.Header) bool {
		msg := watchHeader{h: h}
		if h.Events > seen {
			if msg.events, msg.err = r.Events(ctx, id, seen); msg.err == nil {
				seen = h.Events
			}
		}
		send(msg)
		if !stages && h.PlanChunks > 0 {
			// The estimate needs it; all else does without.
			if plan, err := r.PlanOf(ctx, h); err == nil {
				stages = true
				send(watchSpec{&plan.Spec})
			}
		}
		return true
	})
}

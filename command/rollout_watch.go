package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/records"
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
long it still takes or that nobody drives it, and the log. There q leaves, and the
rollout goes on; e explains the lock; p pauses the rollout or lets it go on, after
a question.
Elsewhere it writes a plain line for each change, and with -json one object a line.

It ends with the rollout, and changes nothing but by p. Where none is unfinished it
shows the newest one, and says so: the ID is what "rollout start" prints first.`,
		Examples: []example{{"Look on", "aimlock rollout watch"}, {"In a job's log", "aimlock rollout watch aim-lock-config | cat"}},
		Groups:   groupConsul | groupJSON | groupPolicy,
		MaxArgs:  1,
		Complete: completeRollouts,
		Run: func(ctx context.Context, in *input) error {
			r, id, err := m.rolloutOf(ctx, in.Args)
			if err != nil {
				return err
			}
			h, err := headerOf(ctx, r, id)
			if err != nil {
				return rolloutError(err)
			}
			if h.FinishedAt != nil && !slices.Contains(in.Args, id) {
				m.Notef("%s\n", nothingToWatch(h, in.Args, time.Now()))
			}
			if !m.live() {
				return m.watchPlain(ctx, r, id)
			}
			if h.FinishedAt != nil {
				// There is nothing to follow: what is typed meanwhile is the shell's.
				m.tellWords(rolloutText(h) + afterEnd(h, m.given.Judging, true))
				return nil
			}
			return m.watchLive(ctx, r, id)
		},
	}
}

// nothingToWatch says that a rollout which has ended is shown because none is to be
// followed: neither of the name that was given, nor any.
func nothingToWatch(h *orchestrator.Header, name []string, now time.Time) string {
	of := ""
	if len(name) > 0 {
		of = " of the name " + text.Printable(name[0])
	}
	ago := max(0, now.Sub(*h.FinishedAt)).Round(time.Second)
	return fmt.Sprintf("No rollout%s is unfinished: this is the newest one, %s, which ended %s (%s ago).", of, h.ID, text.Time(*h.FinishedAt), text.Duration(ago))
}

// headerOf reads the header of a rollout alone: the counts are those of its last
// decision.
func headerOf(ctx context.Context, r *runner.Runner, id string) (head *orchestrator.Header, err error) {
	err = r.Watch(ctx, id, func(h *orchestrator.Header, _ bool) bool {
		head = h
		return false
	})
	return head, err
}

// watchPlain writes a line for each change: what the log says, and how many
// nodes are where.
func (m *Meta) watchPlain(ctx context.Context, r *runner.Runner, id string) error {
	var end *orchestrator.Header
	var failed error
	last, log := "", eventLog{read: r.Events}
	left, late := false, false
	err := r.Watch(ctx, id, func(h *orchestrator.Header, undriven bool) bool {
		first := end == nil
		end = h
		if m.JSON {
			v := viewRollout(h, "")
			if undriven {
				v.Driven = new(bool)
			}
			failed = m.printLine(v)
			return failed == nil
		}
		if undriven != left {
			if left = undriven; left {
				m.tellWords(fmt.Sprintf("%s  %s\n", time.Now().UTC().Format("15:04:05"), runner.Undriven(m.startAgain())))
			} else {
				last = "" // the numbers are told anew when it goes on
			}
		}
		if first {
			log.seen, late = h.Events, h.FinishedAt != nil
		}
		var events []records.RolloutEvent
		if events, failed = log.next(ctx, h); failed != nil {
			return false
		}
		for _, e := range events {
			if e.Text != "" {
				m.tellWords(fmt.Sprintf("%s  %s\n", e.At.UTC().Format("15:04:05"), eventText(&e)))
			}
		}
		if line := board.Headline(h, time.Now()); line != last {
			last = line
			m.tellWords(fmt.Sprintf("%s  %s\n", time.Now().UTC().Format("15:04:05"), text.Printable(line)))
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return rolloutError(err)
	}
	if !m.JSON {
		m.tellWords(rolloutText(end) + afterEnd(end, m.given.Judging, late))
	}
	return nil
}

// eventLog reads each event of a rollout once.
type eventLog struct {
	seen uint64
	read func(ctx context.Context, id string, after uint64) ([]records.RolloutEvent, error)
}

// next are the events that were not read yet. They may be newer than h: what is
// written between the two reads comes with the second one.
func (l *eventLog) next(ctx context.Context, h *orchestrator.Header) ([]records.RolloutEvent, error) {
	if h.Events <= l.seen {
		return nil, nil
	}
	events, err := l.read(ctx, h.ID, l.seen)
	if err != nil {
		return nil, err
	}
	l.seen = h.Events
	if n := len(events); n > 0 {
		l.seen = max(l.seen, events[n-1].N)
	}
	return events, nil
}

// eventText is an event on one line.
func eventText(e *records.RolloutEvent) string {
	words := text.Printable(orchestrator.Ends(e.Text, 300))
	if e.Node != "" {
		words = text.Printable(e.Node) + ": " + words
	}
	return words
}

// Messages to the live display.
type (
	watchHeader struct {
		h        *orchestrator.Header
		undriven bool
		events   []records.RolloutEvent
		err      error // of reading the events
	}
	watchSpec struct {
		spec *orchestrator.Spec
		past *orchestrator.Answers
	}
)

// watchModel is the live display: what was last told of the rollout.
type watchModel struct {
	screen
	board board.Model
	// asked is the order that waits for a yes.
	asked orchestrator.Verb
	// order gives it, and says how it went.
	order func(orchestrator.Verb) tea.Cmd
	// nobody says that nobody drives the rollout, and what goes on with it.
	nobody string
	// explain tells of the locks that the rollout needs.
	explain func(*orchestrator.Header) tea.Cmd
}

// eventsKept bounds the log that is shown.
const eventsKept = 200

func (w *watchModel) Init() tea.Cmd { return everySecond() }

func (w *watchModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	if cmd, done := w.handle(msg); done {
		return w, cmd
	}
	switch msg := msg.(type) {
	case tea.KeyPressMsg:
		return w, w.key(msg.String())
	case watchSpec:
		w.board.Spec, w.board.Past = msg.spec, msg.past
	case watchHeader:
		w.board.Header, w.board.Note, w.board.Undriven = msg.h, "", ""
		if msg.undriven {
			w.board.Undriven = w.nobody
		}
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

func (w *watchModel) key(k string) tea.Cmd {
	h := w.board.Header
	if w.asked != "" {
		verb := w.asked
		if w.asked = ""; k == "y" || k == "Y" {
			w.note = string(verb) + "…"
			return w.order(verb)
		}
		w.note = "nothing was done"
		return nil
	}
	switch k {
	case "q", "esc":
		return w.quit(k)
	case "e":
		if h != nil {
			w.note = "reading what is known of its lock…"
			return w.explain(h)
		}
	case "p":
		if h == nil || h.State.Terminal() {
			break
		}
		if h.State == orchestrator.RollingBack {
			w.note = "it is rolling back, which cannot be paused"
			break
		}
		// What ends a pause is promote where the rollout waits for that.
		if w.asked = orchestrator.Pause; h.State == orchestrator.Paused {
			w.asked = wayOn(h)
		}
	}
	return nil
}

// hint is the last line: what keys do.
func (w *watchModel) hint() string {
	if h := w.board.Header; w.asked == orchestrator.Resume && h.Paused != nil && h.Paused.Cause == orchestrator.CauseFailure && h.Counts[orchestrator.ClassFailed] > 0 {
		return w.roomy("go on without the failed nodes? y: yes, any other key: no", "go on without failed? y: yes, others: no")
	}
	if w.asked != "" {
		return w.roomy(fmt.Sprintf("%s the rollout? y: yes, any other key: no", w.asked), fmt.Sprintf("%s? y: yes, others: no", w.asked))
	}
	if !w.keys {
		if w.board.Undriven != "" {
			return "^C leaves"
		}
		return w.roomy("^C leaves; the rollout goes on", "^C leaves")
	}
	h := w.board.Header
	switch {
	case h == nil || h.State.Terminal():
		return w.roomy("q quit, e explain", "q, e")
	case h.State == orchestrator.Paused:
		return w.roomy(fmt.Sprintf("q quit, e explain, p %s", wayOn(h)), "q, e, p")
	}
	quit := "q quit (the rollout goes on)"
	if w.board.Undriven != "" {
		quit = "q quit" // it does not go on
	}
	if h.State == orchestrator.RollingBack {
		return w.roomy(quit+", e explain", "q quit, e explain", "q, e")
	}
	return w.roomy(quit+", e explain, p pause", "q quit, e explain, p pause", "q, e, p")
}

func (w *watchModel) View() tea.View {
	var lines []string
	if w.board.Header != nil && w.Width > 0 {
		w.board.Now = time.Now()
		s := w.Screen
		s.Height = max(1, s.Height-1-len(w.noteLines()))
		lines = board.Render(w.board, s)
		for len(lines) < s.Height {
			lines = append(lines, "")
		}
	}
	return w.frame(lines, w.hint())
}

// watchLive follows a rollout in a full-screen view.
func (m *Meta) watchLive(ctx context.Context, r *runner.Runner, id string) error {
	c, err := m.Locksmith()
	if err != nil {
		return err
	}
	model := &watchModel{screen: m.newScreen(), nobody: runner.Undriven(m.startAgain())}
	model.board.Typed = m.given.Judging
	model.order = func(verb orchestrator.Verb) tea.Cmd {
		o := runner.Order{ID: id, Verb: verb, Reason: "by a key of rollout watch"}
		if h := model.board.Header; h != nil {
			o.Pause = h.Pauses // the one that was looked at
			if verb == orchestrator.Promote {
				o.Stage = h.Stage
			}
		}
		return asking(ctx, func(ctx context.Context) tea.Msg {
			h, err := r.Command(ctx, o)
			switch {
			case err != nil:
				return screenNote{text.Printable(rolloutError(err).Error())}
			case h.Command != nil && !h.Command.OK:
				return screenNote{fmt.Sprintf("%s was refused: %s", verb, h.Command.Result)}
			}
			return screenNote{r.Became(ctx, h, verb, m.startAgain())}
		})
	}
	model.explain = func(h *orchestrator.Header) tea.Cmd {
		return asking(ctx, func(ctx context.Context) tea.Msg {
			var all strings.Builder
			for _, cfg := range h.Configs {
				one, err := m.explainText(ctx, c, cfg.Name, "", true)
				if err != nil {
					return screenText{err: err}
				}
				all.WriteString(one + "\n")
			}
			return screenText{title: h.ID, text: rolloutText(h) + "\n" + all.String()}
		})
	}
	err = m.onScreen(ctx, model, &model.screen, func(ctx context.Context, send func(tea.Msg)) error {
		return feedWatch(ctx, r, id, send)
	})
	if err != nil {
		return rolloutError(err)
	}
	if h := model.board.Header; h != nil {
		all := rolloutText(h) + afterEnd(h, m.given.Judging, false)
		left := model.board.Undriven
		if h.State == orchestrator.Paused {
			left = board.ETA(h, nil, nil, time.Now(), m.given.Judging)
		}
		if left != "" {
			// The commands are whole here, also where the screen was too narrow.
			all += fmt.Sprintf("  %-9s %s\n", "left", text.Printable(left))
		}
		m.tellWords(all)
	}
	return nil
}

// feedWatch tells the display what becomes of a rollout, until that ends.
func feedWatch(ctx context.Context, r *runner.Runner, id string, send func(tea.Msg)) error {
	log, stages := eventLog{read: r.Events}, false
	return r.Watch(ctx, id, func(h *orchestrator.Header, undriven bool) bool {
		msg := watchHeader{h: h, undriven: undriven}
		msg.events, msg.err = log.next(ctx, h)
		send(msg)
		if !stages && h.PlanChunks > 0 {
			// The estimate needs it; all else does without.
			if plan, err := r.PlanOf(ctx, h); err == nil {
				stages = true
				send(watchSpec{&plan.Spec, measured(ctx, r, h, &plan.Spec)})
			}
		}
		return true
	})
}

// measured is how long nodes took in former rollouts of a rollout's configs, where no
// node of its own was measured yet; nil: it is not needed, or not known.
func measured(ctx context.Context, r *runner.Runner, h *orchestrator.Header, spec *orchestrator.Spec) *orchestrator.Answers {
	if h.Answers != nil && h.Answers.N > 0 {
		return nil
	}
	past, err := r.Past(ctx, spec)
	if err != nil {
		return nil
	}
	return &past.Answers
}

// Package board draws how a rollout stands as lines of text: for rollout watch,
// and for whoever drives one on a terminal. It is pure: what it draws depends on
// what it is handed, so that it is tested at every width. It imports the core,
// records and text, and lipgloss and its progress bar for bars and colours.
package board

import (
	"fmt"
	"image/color"
	"slices"
	"strings"
	"time"

	"charm.land/bubbles/v2/progress"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Screen is what is drawn on.
type Screen struct {
	// Width is the columns that a line may take, Height the lines; a Height of
	// 0 is no bound.
	Width, Height int
	// Color allows the sixteen colours of terminals.
	Color bool
	// UTF8 allows what is not ASCII.
	UTF8 bool
}

// Model is what is drawn.
type Model struct {
	Header *orchestrator.Header
	// Spec is for the estimate; nil where it is not known.
	Spec *orchestrator.Spec
	// Past is how long nodes took in former rollouts of its configs; nil where it is
	// not known.
	Past *orchestrator.Answers
	// Events are the last ones of the log, the newest last.
	Events []records.RolloutEvent
	// Note says what cannot be read now.
	Note string
	// Undriven says that nobody brings the rollout forward, and what does; "" while
	// somebody does, or it is not known.
	Undriven string
	// Typed are the commands that it names.
	Typed Typed
	// Hint is the last line: the keys.
	Hint string
	Now  time.Time
}

const (
	// minBar is the least bar worth to be drawn, maxBar the widest.
	minBar, maxBar = 6, 72
	maxName        = 24
)

// Render draws the whole board: never more lines than Height, none wider than
// Width.
func Render(m Model, s Screen) []string {
	s.Width = max(s.Width, 10)
	p := &painter{s: s, m: &m, h: m.Header}
	head := p.head()
	var tail []string
	if m.Note != "" {
		tail = append(tail, p.paint(p.fit(p.clean(m.Note), s.Width), yellow))
	}
	if m.Hint != "" {
		tail = append(tail, p.fit(p.clean(m.Hint), s.Width))
	}
	facts := p.facts()
	stages := p.stages()
	rest := p.failures()
	rest = append(rest, p.log()...)
	if s.Height > 0 {
		room := s.Height - len(head) - len(tail)
		facts = facts[:min(len(facts), max(0, room-min(3, len(stages))))]
		room -= len(facts)
		stages = p.around(stages, max(0, room))
		room -= len(stages)
		rest = rest[:min(len(rest), max(0, room))]
	}
	out := slices.Concat(head, stages, facts, rest, tail)
	if s.Height > 0 && len(out) > s.Height {
		out = out[:s.Height]
	}
	return out
}

// Bars draws the stages alone.
func Bars(h *orchestrator.Header, spec *orchestrator.Spec, now time.Time, s Screen) []string {
	s.Width = max(s.Width, 10)
	p := &painter{s: s, m: &Model{Header: h, Spec: spec, Now: now}, h: h}
	return p.stages()
}

// Headline is one line about where a rollout stands, which now alone changes no more
// than once a day.
func Headline(h *orchestrator.Header, now time.Time) string {
	if unplanned(h) {
		return fmt.Sprintf("%s, and has not begun", h.State)
	}
	state := string(h.State)
	if since := pausedAt(h, now); since != "" {
		state += " " + since
	}
	return fmt.Sprintf("%s, stage %s: %s", state, h.Stage, Counts(h))
}

// Counts names the classes that have nodes.
func Counts(h *orchestrator.Header) string {
	words := fmt.Sprintf("%d in all", h.Total)
	if all := h.Counts.Words(); all != "" {
		words += ", " + all
	}
	return words
}

// Stage is one line about the nodes of a stage. Its first number is always of those
// that have applied it, as on the page: how many had their turn is none that says
// how the stage stands.
func Stage(hs *orchestrator.HeaderStage) string {
	words := fmt.Sprintf("%d of %d applied", hs.Counts[orchestrator.ClassApplied], hs.End-hs.From)
	if rest := Others(hs.Counts); rest != "" {
		words += ": " + rest
	}
	return words
}

// Others names the nodes of a stage that are neither applied nor still to come.
func Others(c orchestrator.Counts) string {
	return c.Words(orchestrator.ClassApplied, orchestrator.ClassPending)
}

// The colours are those of the terminal's own palette.
const (
	red, green, yellow, cyan = lipgloss.Red, lipgloss.Green, lipgloss.Yellow, lipgloss.Cyan
	dim                      = lipgloss.BrightBlack
)

type painter struct {
	s Screen
	m *Model
	h *orchestrator.Header
}

// clean makes foreign text safe for the terminal at hand.
func (p *painter) clean(s string) string {
	s = text.Printable(s)
	if p.s.UTF8 {
		return s
	}
	return text.ASCII(s)
}

func (p *painter) dots() string {
	if p.s.UTF8 {
		return "…"
	}
	return "..."
}

// fit cuts a line of clean text to a number of columns.
func (p *painter) fit(s string, n int) string {
	if ansi.StringWidth(s) <= n {
		return s
	}
	return ansi.Truncate(s, max(0, n), p.dots())
}

func (p *painter) paint(s string, c color.Color) string {
	if !p.s.Color || c == nil {
		return s
	}
	return lipgloss.NewStyle().Foreground(c).Render(s)
}

// StateColor is the colour of a rollout's state.
func StateColor(st orchestrator.Status) color.Color {
	switch st {
	case orchestrator.Failed, orchestrator.RolledBack, orchestrator.RollingBack:
		return red
	case orchestrator.Paused, orchestrator.Aborted, orchestrator.Superseded, orchestrator.Waiting:
		return yellow
	case orchestrator.Succeeded:
		return green
	}
	return cyan
}

// head names the rollout, its state and why.
func (p *painter) head() []string {
	h := p.h
	state := string(h.State)
	age := ""
	if h.StartedAt != nil {
		end := p.m.Now
		if h.FinishedAt != nil {
			end = *h.FinishedAt
		}
		age = Duration(end.Sub(*h.StartedAt))
	}
	why, lines := Why(h), 2
	if since := PausedSince(h, p.m.Now); since != "" {
		// A number beside "paused" is read as how long it is.
		age = ""
		if ansi.StringWidth(p.clean(h.ID)+"  "+state+" "+since) <= p.s.Width {
			state += " " + since
		} else if why = since + ": " + why; Why(h) == "" {
			why = since
		} else {
			lines = p.few()
		}
	}
	tail := state
	if age != "" {
		tail += "  " + age
	}
	id := p.fit(p.clean(h.ID), max(8, p.s.Width-ansi.StringWidth(tail)-2))
	first := id + "  " + p.paint(state, StateColor(h.State))
	if age != "" {
		first += "  " + age
	}
	out := []string{p.fit(first, p.s.Width)}
	if why != "" {
		out = append(out, p.words("  ", why, lines, StateColor(h.State))...)
	}
	if p.m.Undriven != "" {
		out = append(out, p.words("  ", p.m.Undriven, p.few()+1, yellow)...)
	}
	for _, c := range h.Configs {
		out = append(out, p.fit(p.clean(fmt.Sprintf("  %s %s", c.Name, c.Revision)), p.s.Width))
	}
	return append(out, "")
}

// Why says why a rollout is in its state, where there is something to say.
func Why(h *orchestrator.Header) string {
	if h.Paused != nil {
		return h.Paused.Why
	}
	return h.Reason
}

// few is how many lines a text may take.
func (p *painter) few() int {
	if p.s.Width < 60 {
		return 3
	}
	return 2
}

// wrap breaks a text into at most n lines, also at the hyphens in its words.
func (p *painter) wrap(margin, s string, n int, c color.Color) []string {
	w := max(8, p.s.Width-len(margin))
	return p.atMost(margin, strings.Split(ansi.Wrap(p.clean(s), w, ""), "\n"), n, c)
}

// words breaks a text that may name a command into at most n lines, at its blanks.
func (p *painter) words(margin, s string, n int, c color.Color) []string {
	return p.atMost(margin, wrapBlanks(p.clean(s), max(8, p.s.Width-len(margin))), n, c)
}

// atMost keeps n of a text's lines, and cuts the last one.
func (p *painter) atMost(margin string, lines []string, n int, c color.Color) []string {
	w := max(8, p.s.Width-len(margin))
	if len(lines) > n {
		rest := strings.Join(lines[n-1:], " ")
		lines = append(lines[:n-1], p.fit(rest, w))
	}
	for i, l := range lines {
		lines[i] = p.paint(p.fit(margin+strings.TrimRight(l, " "), p.s.Width), c)
	}
	return lines
}

// marks of a stage: done, at work, to come.
func (p *painter) mark(i int) (string, color.Color) {
	utf, ascii, c := " ", " ", color.Color(dim)
	switch hs := p.h.Stages[i]; {
	case i == p.h.StageIndex && p.h.FinishedAt == nil:
		utf, ascii, c = "▶", ">", StateColor(p.h.State)
	case hs.Counts[orchestrator.ClassRolledBack]+hs.Counts[orchestrator.ClassSuperseded] > 0:
	case hs.Left() == 0 && i <= p.h.StageIndex && (hs.Done > 0 || hs.From == hs.End):
		utf, ascii, c = "✓", "+", green
	}
	if p.s.UTF8 {
		return utf, c
	}
	return ascii, c
}

// stages are the bars, one line a stage.
func (p *painter) stages() []string {
	if unplanned(p.h) {
		return nil
	}
	name, tail := 4, 0
	for i := range p.h.Stages {
		hs := &p.h.Stages[i]
		name = max(name, min(ansi.StringWidth(p.clean(hs.Name)), maxName))
		tail = max(tail, len(fmt.Sprintf("%d/%d", hs.Counts[orchestrator.ClassApplied], hs.End-hs.From)))
	}
	name = min(name, max(4, p.s.Width/4))
	width := min(maxBar, p.s.Width-name-tail-4)
	for i := range p.h.Stages {
		if n := len(p.stageNote(i)); n > 0 && width-n-2 >= 2*minBar {
			width = min(width, p.s.Width-name-tail-6-n)
		}
	}
	out := make([]string, 0, len(p.h.Stages))
	for i := range p.h.Stages {
		hs := &p.h.Stages[i]
		applied, total := hs.Counts[orchestrator.ClassApplied], hs.End-hs.From
		mark, c := p.mark(i)
		label := p.fit(p.clean(hs.Name), name)
		label += strings.Repeat(" ", max(0, name-ansi.StringWidth(label)))
		bar := ""
		if width >= minBar {
			bar = p.bar(width, applied, total, c) + " "
			if p.h.Total == 0 || total == 0 && i > p.h.StageIndex && p.h.FinishedAt == nil {
				bar = p.bar(width, 0, 1, c) + " " // it is not planned yet, or not its turn
			}
		}
		line := p.paint(mark, c) + " " + label + " " + bar + fmt.Sprintf("%*s", tail, fmt.Sprintf("%d/%d", applied, total))
		if note := p.stageNote(i); note != "" && ansi.StringWidth(line)+2+len(note) <= p.s.Width {
			line += "  " + note
		}
		out = append(out, p.fit(line, p.s.Width))
	}
	return out
}

// stageNote is what a stage is at beside its nodes.
func (p *painter) stageNote(i int) string {
	h := p.h
	if i != h.StageIndex || h.FinishedAt != nil || h.State != orchestrator.Baking || h.BakingSince == nil {
		return Others(h.Stages[i].Counts)
	}
	if p.m.Spec != nil && i < len(p.m.Spec.Stages) {
		st := &p.m.Spec.Stages[i]
		if left := h.BakingSince.Add(st.Bake).Sub(p.m.Now); left > 0 {
			return "bakes " + Duration(left)
		}
		switch {
		case len(st.Gate) > 0 && !passed(h, h.Stage):
			return "asks its gates"
		case st.Promote != "":
			return "awaits promote"
		}
		return "baked"
	}
	return "bakes"
}

// bar is a bar of the progress library, in the colours and the characters that
// the terminal has.
func (p *painter) bar(width, done, total int, c color.Color) string {
	full, empty := '#', '.'
	if p.s.UTF8 {
		full, empty = '█', '░'
	}
	part := 1.0
	if total > 0 {
		part = float64(done) / float64(total)
	}
	b := progress.New(progress.WithWidth(width), progress.WithoutPercentage(), progress.WithFillCharacters(full, empty), progress.WithColors(c))
	b.EmptyColor = dim
	s := b.ViewAs(part)
	if !p.s.Color {
		return ansi.Strip(s)
	}
	return s
}

// around keeps n of the stages' lines, those around the present one.
func (p *painter) around(lines []string, n int) []string {
	if len(lines) <= n {
		return lines
	}
	from := min(max(0, p.h.StageIndex-n/2), len(lines)-n)
	return lines[from : from+n]
}

// labelWidth is how far the values of facts stand from the margin.
const labelWidth = 11

// fact is a label and its value, over two lines where one is too short.
func (p *painter) fact(name, value string) []string {
	lines := p.words(strings.Repeat(" ", labelWidth), value, p.few(), nil)
	lines[0] = p.fit(fmt.Sprintf("%-*s", labelWidth, name)+strings.TrimLeft(lines[0], " "), p.s.Width)
	return lines
}

// facts are the numbers, who is in flight, and how long it still takes.
func (p *painter) facts() []string {
	h := p.h
	out := []string{""}
	if h.State == orchestrator.Paused {
		out = append(out, p.ways()...)
		if bake := Bake(h, p.m.Spec, p.m.Now); bake != "" {
			out = append(out, p.fact("bake", bake)...)
		}
	}
	if h.Total > 0 {
		out = append(out, p.fact("nodes", Counts(h))...)
	}
	if h.InFlight > 0 {
		words := fmt.Sprint(h.InFlight)
		for i, f := range h.Flying {
			sep := ", "
			if i == 0 {
				sep = ": "
			}
			next := fmt.Sprintf("%s%s for %s", sep, f.Node, Duration(p.m.Now.Sub(f.Since)))
			if i > 0 && ansi.StringWidth(words+next)+16 > p.s.Width {
				words += ", " + p.dots()
				break
			}
			words += next
		}
		out = append(out, p.fact("in flight", words)...)
	}
	if h.FinishedAt == nil && h.State != orchestrator.Paused && p.m.Undriven == "" && p.m.Spec != nil {
		out = append(out, p.fact("left", ETA(h, p.m.Spec, p.m.Past, p.m.Now, p.m.Typed))...)
	}
	for i := range h.Gates {
		if g := &h.Gates[i]; g.Stage == h.Stage {
			out = append(out, p.fact("gate", GateText(g))...)
		}
	}
	return out
}

// passed reports whether all gates of a stage that a header knows of have passed.
func passed(h *orchestrator.Header, stage string) bool {
	n := 0
	for i := range h.Gates {
		if g := &h.Gates[i]; g.Stage == stage {
			if n++; g.State != orchestrator.GatePassed && g.State != orchestrator.GateOverruled {
				return false
			}
		}
	}
	return n > 0
}

// GateText says how a gate stands.
func GateText(g *orchestrator.GateStatus) string { return g.Name + ": " + GateState(g) }

// GateState is that with its counts and its last answer, without its name.
func GateState(g *orchestrator.GateStatus) string {
	words := fmt.Sprintf("%s, %d of %d passes", g.State, g.Passed, g.Needs)
	for _, c := range []struct {
		n    int
		name string
	}{{g.Failed, "failed"}, {g.Unknown, "unknown"}, {g.Errors, "errors in a row"}} {
		if c.n > 0 {
			words += fmt.Sprintf(", %d %s", c.n, c.name)
		}
	}
	if last := g.LastWords(); last != "" {
		words += "; last: " + last
	}
	return words
}

// ETA says how long a rollout still takes, as far as it is known. Until one of its own
// nodes was measured, past is what it rests on, as a plan does; nil: it is not known.
func ETA(h *orchestrator.Header, spec *orchestrator.Spec, past *orchestrator.Answers, now time.Time, typed Typed) string {
	switch h.State {
	case orchestrator.Paused:
		if h.Paused != nil && h.Paused.Cause == orchestrator.CauseFailure {
			var ways []string
			for _, w := range Ways(h, typed) {
				ways = append(ways, fmt.Sprintf("`%s` (%s)", w.Command, w.What))
			}
			last := len(ways) - 1
			return "nothing happens before " + strings.Join(ways[:last], ", ") + " or " + ways[last]
		}
		return fmt.Sprintf("nothing happens before `%s` or `rollback`", typed.on(h.WayOn(), h))
	case orchestrator.RollingBack:
		return "until every node is back"
	}
	answers := h.Answers
	if answers == nil || answers.N == 0 {
		answers = past
	}
	e := orchestrator.EstimateRest(h, spec, answers, now)
	if e.Known && e.Total() <= 0 && e.Gates == 0 && e.Manual == 0 {
		return "it should go on any moment"
	}
	return EstimateText(e, answers)
}

// EstimateText says an estimate in words.
func EstimateText(e orchestrator.Estimate, a *orchestrator.Answers) string {
	words := "unknown: no node of this config was measured yet"
	if e.Known {
		words = "about " + Duration(e.Total())
	}
	var of []string
	if e.Known {
		of = append(of, fmt.Sprintf("%s a node of %d measured", Duration(a.Mean()), a.N))
	}
	if e.Bakes > 0 {
		of = append(of, "bakes "+Duration(e.Bakes))
	}
	switch {
	case e.Gates == 1:
		of = append(of, "1 gate takes its own time")
	case e.Gates > 1:
		of = append(of, fmt.Sprintf("%d gates take their own time", e.Gates))
	}
	if e.Manual > 0 {
		of = append(of, "then an operator's promote")
	}
	if len(of) > 0 {
		words += " (" + strings.Join(of, "; ") + ")"
	}
	return words
}

// failures are the nodes that failed, with what they said.
func (p *painter) failures() []string {
	n := len(p.h.Problems)
	if n == 0 {
		return nil
	}
	out := []string{"", p.paint("failures", red)}
	shown := min(n, 5)
	for _, x := range slices.Backward(p.h.Problems[n-shown:]) {
		words := fmt.Sprintf("%s: %s: %s", x.Node, x.Class, x.Why)
		// Lines that end between words hold less than their width.
		words = orchestrator.Ends(words, max(1, p.few()*(p.s.Width-12)))
		out = append(out, p.wrap("  ", words, p.few(), nil)...)
	}
	if n > shown {
		out = append(out, p.fit(fmt.Sprintf("  and %d more; rollout status shows them", n-shown), p.s.Width))
	}
	return out
}

// log are the last events that are not of nodes, the newest first.
func (p *painter) log() []string {
	var out []string
	for _, e := range slices.Backward(p.m.Events) {
		if e.Text == "" || e.Kind == records.EventNode {
			continue
		}
		if len(out) == 0 {
			out = append(out, "", p.paint("log", dim))
		}
		out = append(out, p.fit(fmt.Sprintf("  %s  %s", e.At.UTC().Format("15:04:05"), p.clean(e.Text)), p.s.Width))
	}
	return out
}

// Duration shows a duration as all of the program does, and none finer than people
// say it.
func Duration(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < 10*time.Second:
		d = d.Round(100 * time.Millisecond)
	case d < time.Hour:
		d = d.Round(time.Second)
	case d < 48*time.Hour:
		d = d.Round(time.Minute)
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.String()
}

// Package htmlreport writes the story of one rollout as an HTML page in one file:
// it asks nothing of the network, runs no script, and says so by a policy that
// browsers hold it to. Whatever nodes or operators wrote is foreign text and
// stays text. It imports runner, for the story, the core, records and text.
package htmlreport

import (
	"crypto/sha256"
	_ "embed" // the page's template and style
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

//go:embed page.gohtml
var pageSource string

//go:embed page.css
var style string

// gridNodes bounds the nodes that are drawn one by one; of a larger fleet the
// stages show their counts alone.
const gridNodes = 20_000

// Write writes the page as of now.
func Write(w io.Writer, s *runner.Story, now time.Time) error {
	t, err := template.New("page").Parse(pageSource)
	if err != nil {
		return fmt.Errorf("the page's template: %w", err)
	}
	if err := t.Execute(w, newPage(s, now)); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// Policy is the content security policy that stands in the page: its one style,
// and nothing else.
func Policy() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'"
}

// page is what the template shows. Texts in it are printable; the template
// escapes them.
type page struct {
	Style  template.CSS
	Policy string

	ID, Name, State, StateClass, Why string
	Made                             string
	Facts                            []fact
	Counts                           []count
	Chart                            *chart
	Stages                           []stage
	GridSize                         string
	Failures                         []failure
	MoreFailures                     int
	Gates                            []gateRow
	Breaks                           []breakRow
	Events                           []eventRow
	Dropped                          bool
}

type fact struct{ Name, Value string }

type count struct {
	Name, Class string
	N           int
}

type stage struct {
	Name, Took, Nodes, Baked, Began string
	Applied, Total                  int
	Counts                          []count
	Cells                           []cell
}

type cell struct{ Class, Name, Title, Mark string }

type failure struct{ Node, Stage, Class, At, First, Rest string }

type gateRow struct{ Stage, Name, Kind, State, StateClass, Answers, Last, At string }

type breakRow struct{ Lock, At, By, Rule, Reason, Outcome, Holder, Quiesce string }

type eventRow struct{ At, Kind, Stage, Text, By string }

func newPage(s *runner.Story, now time.Time) *page {
	h := s.Header
	p := &page{
		Style:  template.CSS(style),
		Policy: Policy(),
		ID:     text.Printable(h.ID), Name: text.Printable(h.Name), State: strings.ReplaceAll(string(h.State), "_", " "), StateClass: stateClass(h.State),
		Made: stamp(now), MoreFailures: s.MoreFailures, Counts: counts(h.Counts),
	}
	p.Why = text.Printable(h.Reason)
	if h.Paused != nil {
		p.Why = text.Printable(h.Paused.Why)
	}
	p.facts(h, s, now)
	p.Chart = newChart(h, s.Events, now)
	p.stages(s, now)
	for _, f := range s.Failures {
		first, rest, _ := strings.Cut(text.Block(f.Why), "\n")
		if len(first) > 160 {
			rest = strings.TrimRight(first+"\n"+rest, "\n")
			first = text.Clip(first, 160)
		}
		p.Failures = append(p.Failures, failure{Node: text.Printable(f.Node), Stage: text.Printable(f.Stage), Class: f.Class.String(), At: stamp(f.At), First: first, Rest: rest})
	}
	for _, g := range h.Gates {
		row := gateRow{Stage: text.Printable(g.Stage), Name: text.Printable(g.Name), Kind: text.Printable(g.Kind), State: string(g.State), StateClass: gateClass(string(g.State))}
		row.Answers = fmt.Sprintf("%d pass of %d needed, %d fail, %d unknown, %d errors in a row", g.Passed, g.Needs, g.Failed, g.Unknown, g.Errors)
		row.Last = text.Printable(g.LastWords())
		if g.At != nil {
			row.At = stamp(*g.At)
		}
		p.Gates = append(p.Gates, row)
	}
	for _, b := range s.Breaks {
		row := breakRow{Lock: text.Printable(b.Lock), At: stamp(b.StartedAt), By: text.Printable(b.By), Rule: text.Printable(b.Rule), Reason: text.Printable(b.Reason), Outcome: text.Printable(strings.TrimSuffix(records.OutcomeText(b.Outcome)+": "+b.Detail, ": "))}
		if x := b.Holder; x != nil {
			row.Holder = text.Printable(fmt.Sprintf("%s, pid %d on %s, token %d", x.Operation, x.PID, x.Host, b.Token))
		}
		if b.Quiesce > 0 {
			row.Quiesce = fmt.Sprintf("%g s", b.Quiesce)
		}
		p.Breaks = append(p.Breaks, row)
	}
	p.events(s.Events)
	return p
}

func (p *page) facts(h *orchestrator.Header, s *runner.Story, now time.Time) {
	add := func(name, format string, args ...any) {
		p.Facts = append(p.Facts, fact{name, text.Printable(fmt.Sprintf(format, args...))})
	}
	add("Nodes", "%d in %s", h.Total, text.Count(len(h.Stages), "stage"))
	for _, c := range h.Configs {
		add("Config", "%s, revision %s, to %s", c.Name, c.Revision, c.Destination)
	}
	if h.StartedAt != nil {
		add("Started", "%s", stamp(*h.StartedAt))
		end, word := now, "Until now"
		if h.FinishedAt != nil {
			add("Finished", "%s", stamp(*h.FinishedAt))
			end, word = *h.FinishedAt, "Took"
		}
		add(word, "%s", span(end.Sub(*h.StartedAt)))
	}
	if a := h.Answers; a != nil && a.N > 0 {
		add("A node took", "%s in the mean, 95 of 100 at most %s, the slowest %s (%d measured)", span(a.Mean()), span(a.Quantile(0.95)), span(a.Quantile(1)), a.N)
	}
	add("Last hold", "token %d of epoch %d", h.Token, h.Epoch)
	if s.Plan != nil {
		f := s.Plan.Spec.Failure
		add("Failure budget", "%d failed and %d percent unreachable are tolerated; then %s", f.MaxFailed, f.MaxUnreachablePercent, f.Then)
	}
	if h.Follows != "" {
		add("Follows", "%s", h.Follows)
	}
	if h.SupersededBy != "" {
		add("Superseded by", "%s", h.SupersededBy)
	}
}

func counts(c orchestrator.Counts) []count {
	var out []count
	for _, class := range []orchestrator.Class{
		orchestrator.ClassApplied, orchestrator.ClassFailed, orchestrator.ClassUnreachable, orchestrator.ClassRolledBack,
		orchestrator.ClassSuperseded, orchestrator.ClassSkipped, orchestrator.ClassPending,
	} {
		if c[class] > 0 {
			out = append(out, count{Name: strings.ReplaceAll(class.String(), "_", " "), Class: class.String(), N: c[class]})
		}
	}
	return out
}

// marks tell classes apart where colours do not.
func mark(c orchestrator.Class) string {
	switch c {
	case orchestrator.ClassFailed:
		return "×"
	case orchestrator.ClassUnreachable:
		return "?"
	case orchestrator.ClassRolledBack:
		return "‹"
	case orchestrator.ClassSuperseded:
		return "›"
	}
	return ""
}

func (p *page) stages(s *runner.Story, now time.Time) {
	h := s.Header
	times := runner.StageTimes(h, s.Events)
	each := len(s.Classes) > 0 && len(s.Classes) <= gridNodes
	switch n := len(s.Classes); {
	case n <= 120:
		p.GridSize = "large"
	case n <= 2500:
		p.GridSize = "middle"
	default:
		p.GridSize = "small"
	}
	for i, hs := range h.Stages {
		st := stage{Name: text.Printable(hs.Name), Applied: hs.Counts[orchestrator.ClassApplied], Total: hs.End - hs.From}
		if t := times[i]; !t.Began.IsZero() {
			st.Began = stamp(t.Began)
			end := t.Ended
			if end.IsZero() {
				end = now
			}
			st.Took = span(end.Sub(t.Began))
			nodes := end
			if !t.Baked.IsZero() {
				st.Baked, nodes = span(end.Sub(t.Baked)), t.Baked
			}
			st.Nodes = span(nodes.Sub(t.Began))
		}
		p.Stages = append(p.Stages, st)
		if s.Classes != nil {
			p.cells(s, &p.Stages[i], hs.From, hs.End, each)
		}
	}
	if end := h.Stages; len(end) > 0 && s.Classes != nil && end[len(end)-1].End < len(s.Classes) {
		rest := stage{Name: "in no stage", Total: len(s.Classes) - end[len(end)-1].End}
		p.Stages = append(p.Stages, rest)
		p.cells(s, &p.Stages[len(p.Stages)-1], end[len(end)-1].End, len(s.Classes), each)
	}
}

func (p *page) cells(s *runner.Story, st *stage, from, end int, each bool) {
	var c orchestrator.Counts
	end = min(end, len(s.Classes))
	for i := max(0, from); i < end; i++ {
		class := s.Classes[i]
		c[class]++
		if !each {
			continue
		}
		name := text.Printable(s.Plan.Nodes[i])
		x := cell{Class: class.String(), Title: name + ": " + strings.ReplaceAll(class.String(), "_", " "), Mark: mark(class)}
		if p.GridSize == "large" {
			x.Name = name
		}
		st.Cells = append(st.Cells, x)
	}
	st.Counts = counts(c)
}

func (p *page) events(events []records.RolloutEvent) {
	var last uint64
	for _, e := range events {
		p.Dropped = p.Dropped || e.N != last+1
		last = e.N
		if e.Text == "" {
			continue
		}
		row := eventRow{At: stamp(e.At), Kind: text.Printable(e.Kind), Stage: text.Printable(e.Stage), Text: text.Printable(orchestrator.Ends(e.Text, 400))}
		if e.Node != "" {
			row.Text = text.Printable(e.Node) + ": " + row.Text
		}
		p.Events = append(p.Events, row)
	}
}

func stateClass(s orchestrator.Status) string {
	switch s {
	case orchestrator.Succeeded:
		return "good"
	case orchestrator.Failed, orchestrator.RolledBack, orchestrator.RollingBack:
		return "bad"
	case orchestrator.Paused, orchestrator.Aborted, orchestrator.Superseded:
		return "warn"
	}
	return "busy"
}

func gateClass(state string) string {
	switch {
	case strings.HasPrefix(state, "pass"):
		return "good"
	case strings.HasPrefix(state, "fail"):
		return "bad"
	}
	return "warn"
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

func span(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// chart is how many nodes were where over time, from the samples of the log.
type chart struct {
	Areas []area
	Lines []stageLine
	Begin string
	End   string
	Total int
	Words string
}

type area struct{ Class, Points string }

type stageLine struct {
	X    string
	Name string
}

const chartWidth, chartHeight = 1000, 240

func newChart(h *orchestrator.Header, events []records.RolloutEvent, now time.Time) *chart {
	type sample struct {
		at time.Time
		c  orchestrator.Counts
	}
	var list []sample
	for _, e := range events {
		if e.Counts != nil {
			list = append(list, sample{e.At, *e.Counts})
		}
	}
	if h.StartedAt == nil || len(list) == 0 || h.Total == 0 {
		return nil
	}
	end := now
	if h.FinishedAt != nil {
		end = *h.FinishedAt
	}
	// What the end itself brings, such as the nodes that are skipped by it, is
	// a step and no slope.
	list = append(list, sample{end, list[len(list)-1].c}, sample{end, h.Counts})
	slices.SortStableFunc(list, func(a, b sample) int { return a.at.Compare(b.at) })
	begin := *h.StartedAt
	if list[0].at.Before(begin) {
		begin = list[0].at
	}
	whole := max(end.Sub(begin), time.Millisecond)
	x := func(t time.Time) string {
		return fmt.Sprintf("%.1f", min(1, max(0, float64(t.Sub(begin))/float64(whole)))*chartWidth)
	}
	y := func(n int) string { return fmt.Sprintf("%.1f", chartHeight-float64(n)/float64(h.Total)*chartHeight) }
	ch := &chart{Begin: stamp(begin), End: stamp(end), Total: h.Total}
	stack := []orchestrator.Class{
		orchestrator.ClassApplied, orchestrator.ClassRolledBack, orchestrator.ClassSuperseded, orchestrator.ClassSkipped,
		orchestrator.ClassUnreachable, orchestrator.ClassFailed,
	}
	sum := func(c orchestrator.Counts, n int) (total int) {
		for _, class := range stack[:n] {
			total += c[class]
		}
		return total
	}
	for n, class := range stack {
		if !slices.ContainsFunc(list, func(s sample) bool { return s.c[class] > 0 }) {
			continue
		}
		var up, down []string
		for _, s := range list {
			up = append(up, x(s.at)+","+y(sum(s.c, n+1)))
			down = append(down, x(s.at)+","+y(sum(s.c, n)))
		}
		slices.Reverse(down)
		ch.Areas = append(ch.Areas, area{class.String(), strings.Join(append(up, down...), " ")})
	}
	for i, t := range runner.StageTimes(h, events) {
		if !t.Began.IsZero() {
			ch.Lines = append(ch.Lines, stageLine{x(t.Began), text.Clip(text.Printable(h.Stages[i].Name), 20)})
		}
	}
	ch.Words = fmt.Sprintf("%d of %s applied at the end, over %s", h.Counts[orchestrator.ClassApplied], text.Count(h.Total, "node"), span(whole))
	return ch
}

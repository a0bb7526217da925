package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

func newRolloutPlan(m *Meta) *command {
	nodes := false
	return &command{
		Meta:     m,
		Synopsis: "Show what a rollout would do",
		Usage:    "[options] SPEC",
		Description: `Shows the nodes of each stage, the difference between the content that the fleet
has and the one that it would get, who holds the lock, when the window opens, about
how long it takes, and what is worth a look before it is begun. The time is
estimated from how long nodes took in the last rollouts of the same config; where
none was measured, it is not known.

It changes nothing, and exits 0 whatever it shows.`,
		Examples: []example{{"Before every start", "aimlock rollout plan rollout.hcl"}},
		Groups:   groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&nodes, "nodes", false, "Name every node of each stage.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete: completeFiles("*.hcl"),
		Run: func(ctx context.Context, in *input) error {
			want, err := m.loadRollout(in.Args[0])
			if err != nil {
				return err
			}
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			fl, err := m.surveyFleet(ctx, &want)
			if err != nil {
				return rolloutError(err)
			}
			p, err := r.Preview(ctx, want)
			if err != nil {
				return rolloutError(err)
			}
			locks, err := m.Locksmith()
			if err != nil {
				return err
			}
			v := planView{Name: want.Spec.Name, Resumes: p.Resumes, Supersedes: p.Supersedes, NothingToDo: p.NothingToDo, Note: p.Note, Total: len(p.Plan.Nodes)}
			v.takesPlaces(p.Unfinished)
			v.WaitsFor, v.WaitsForState, v.waits = p.WaitsFor, p.WaitsForState, p.Waits
			v.Warnings = slices.Concat(p.Plan.Warnings, m.unfenced(&want.Spec))
			v.planned = len(p.Plan.Warnings)
			if p.Behind != "" {
				v.Warnings = append(v.Warnings, p.Behind)
			}
			v.Fleet = fl
			for i, st := range p.Plan.Spec.Stages {
				from, end := p.Plan.Stage(i)
				v.Stages = append(v.Stages, planStage{
					Name: st.Name, Nodes: p.Plan.Nodes[from:end], MaxParallel: st.MaxParallel, Bake: st.Bake.Seconds(), Gates: st.Gate,
					Promote:   st.Promote,
					Unchanged: p.Plan.UnchangedIn(i),
				})
			}
			for _, c := range p.Plan.Spec.Configs {
				drifted := p.Drifted[c.Name]
				v.Configs = append(v.Configs, planConfig{
					Drifted: drifted[:min(len(drifted), runner.MaxDrifted)], DriftedTotal: len(drifted), Unknown: p.Unknown[c.Name],
					Name: c.Name, Revision: c.Revision, SHA256: c.SHA256, Size: c.Size, Destination: c.Destination,
					Now: p.Revisions[c.Name], Diff: contentDiff(c, p.Now[c.Name], planned(want, p, c.Name)),
					Renderings: planRenderings(c, p.Renderings[c.Name]),
				})
				for _, d := range p.Drifted[c.Name] {
					v.Configs[len(v.Configs)-1].edited = append(v.Configs[len(v.Configs)-1].edited, d.Node)
				}
				st, err := lockNow(ctx, locks, c.Name)
				if err != nil {
					return err
				}
				v.Locks = append(v.Locks, st)
			}
			if err := v.spread(ctx, m, want); err != nil {
				return rolloutError(err)
			}
			if err := v.window(want.Spec.Window, time.Now()); err != nil {
				return err
			}
			if err := v.foresee(ctx, r, p.Plan); err != nil {
				return rolloutError(err)
			}
			if m.JSON {
				return m.PrintJSON(v)
			}
			v.allNodes, v.start = nodes, m.startAgain()
			m.Printf("%s", v.text())
			return nil
		},
	}
}

// planView is "rollout plan -json".
type planView struct {
	Name  string     `json:"name"`
	Total int        `json:"total"`
	Fleet *fleetView `json:"fleet,omitempty"`
	// Spread is the metadata key that stages are spread over.
	Spread     string              `json:"spread,omitempty"`
	Stages     []planStage         `json:"stages"`
	Configs    []planConfig        `json:"configs"`
	Locks      []*locksmith.Status `json:"locks"`
	Window     *planWindow         `json:"window"`
	Resumes    string              `json:"resumes,omitempty"`
	Supersedes []string            `json:"supersedes,omitempty"`
	// SupersedesPaused are those of them that are paused.
	SupersedesPaused []planPaused `json:"supersedes_paused,omitempty"`
	// WaitsFor is the rollout whose end it would wait for before it begins.
	WaitsFor string `json:"waits_for,omitempty"`
	// WaitsForState is the state of the rollout that it would wait for.
	WaitsForState orchestrator.Status `json:"waits_for_state,omitempty"`
	NothingToDo   bool                `json:"nothing_to_do"`
	Note          string              `json:"note,omitempty"`
	// Warnings of the choice of nodes, a sentence each.
	Warnings []string `json:"warnings,omitempty"`
	// Estimate is about how long it takes.
	Estimate *planEstimate `json:"estimate"`

	allNodes bool
	// start is the command that starts a rollout.
	start string
	// unfinished are those whose place it would take.
	unfinished []*orchestrator.Header
	// waits says what it would wait for.
	waits string
	// planned is how many of the warnings are the plan's own.
	planned int
}

// planPaused is a paused rollout whose place another one would take.
type planPaused struct {
	ID string `json:"id"`
	// Reason says who paused it, and why.
	Reason string `json:"reason"`
	// PausedSince is since when it is paused, by the clock of who paused it.
	PausedSince time.Time `json:"paused_since,omitzero"`
}

func (v *planView) takesPlaces(list []*orchestrator.Header) {
	v.unfinished = list
	for _, h := range list {
		if h.Paused != nil {
			v.SupersedesPaused = append(v.SupersedesPaused, planPaused{h.ID, h.Paused.Why, h.Paused.At})
		}
	}
}

type planStage struct {
	Name        string   `json:"name"`
	Nodes       []string `json:"nodes"`
	MaxParallel int      `json:"max_parallel"`
	Bake        float64  `json:"bake"`
	Gates       []string `json:"gates,omitempty"`
	// Promote is "manual" where an operator must let the rollout go on.
	Promote string `json:"promote,omitempty"`
	// Unchanged is how many of them have all of it already, and get no order.
	Unchanged int `json:"unchanged,omitempty"`
	// Spread counts the stage's nodes by their value of the metadata key that
	// the fleet is spread over; "" are nodes without it.
	Spread map[string]int `json:"spread,omitempty"`
}

// maxSpread bounds the values of the spread that one stage shows.
const maxSpread = 12

// spreadText has the values of most nodes first.
func (s *planStage) spreadText() string {
	values := slices.SortedFunc(maps.Keys(s.Spread), func(x, y string) int {
		return cmp.Or(cmp.Compare(s.Spread[y], s.Spread[x]), strings.Compare(x, y))
	})
	var parts []string
	for _, val := range values[:min(len(values), maxSpread)] {
		words := "in " + text.Printable(val)
		if val == "" {
			words = "without"
		}
		parts = append(parts, fmt.Sprintf("%d %s", s.Spread[val], words))
	}
	if more := len(values) - maxSpread; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, ", ")
}

// spread counts the nodes of each stage over the values of the spec's spread,
// as the fleet is now.
func (v *planView) spread(ctx context.Context, m *Meta, want runner.Input) error {
	if v.Spread = want.Spec.Spread; v.Spread == "" {
		return nil
	}
	consul, err := m.Consul()
	if err != nil {
		return err
	}
	nodes, err := want.Fleet.Nodes(ctx, consul)
	if err != nil {
		return err
	}
	value := make(map[string]string, len(nodes))
	for _, n := range nodes {
		value[n.Name] = n.Meta[v.Spread]
	}
	for i := range v.Stages {
		s := &v.Stages[i]
		s.Spread = map[string]int{}
		for _, n := range s.Nodes {
			s.Spread[value[n]]++
		}
	}
	return nil
}

type planConfig struct {
	Name        string         `json:"name"`
	Revision    string         `json:"revision"`
	SHA256      string         `json:"sha256"`
	Size        int64          `json:"size"`
	Destination string         `json:"destination"`
	Now         map[string]int `json:"now"`
	Diff        string         `json:"diff"`
	// Drifted are nodes where somebody else changed the file since its last order, 100
	// at most, of so many. The rollout writes over what stands there.
	Drifted      []runner.Drifted `json:"drifted,omitempty"`
	DriftedTotal int              `json:"drifted_total,omitempty"`
	// Unknown are, by revision, the nodes with a content that Consul does not have:
	// somebody wrote it there, or it is older than what is kept.
	Unknown map[string][]string `json:"unknown,omitempty"`
	// Renderings are of a template, those of most nodes first. Diff is then of
	// the first.
	Renderings []planRendering `json:"renderings,omitempty"`

	// edited names all of Drifted.
	edited []string
}

type planWindow struct {
	Open     bool       `json:"open"`
	Change   *time.Time `json:"change"`
	Timezone string     `json:"timezone"`
}

func (v *planView) window(w *orchestrator.Window, now time.Time) error {
	if w == nil {
		return nil
	}
	s, err := schedule.Parse(*w)
	if err != nil {
		return err
	}
	open, change := s.At(now)
	v.Window = &planWindow{Open: open, Timezone: first(w.Timezone, "UTC")}
	if !change.IsZero() {
		v.Window.Change = &change
	}
	return nil
}

// planned is the content of a config that most nodes would get.
func planned(want runner.Input, p *runner.Preview, config string) []byte {
	if list := p.Renderings[config]; len(list) > 0 {
		return list[0].Content
	}
	return want.Contents[config]
}

// maxDiff bounds the lines of a diff that are shown.
const maxDiff = 200

// contentDiff is a unified diff of a config's content, or one line where there
// is nothing to compare or it is not text. Where no content of before is known
// all of it is new, as with a template's first renderings, which nothing else
// shows.
func contentDiff(c orchestrator.Config, now, want []byte) string {
	from := c.Destination + " (now)"
	switch {
	case now == nil && !utf8.Valid(want):
		return fmt.Sprintf("(new: no content of before is known; not text, %d bytes)", len(want))
	case now == nil && len(want) == 0:
		return "(new: no content of before is known; an empty file)"
	case now == nil:
		from = c.Destination + " (no content of before is known)"
	case bytes.Equal(now, want):
		return ""
	case !utf8.Valid(now) || !utf8.Valid(want):
		return fmt.Sprintf("(not text: %d bytes become %d)", len(now), len(want))
	}
	d, err := unifiedDiff(from, c.Destination+" (revision "+c.Revision+")", string(now), string(want))
	if err != nil {
		return fmt.Sprintf("(%d bytes become %d)", len(now), len(want))
	}
	return boundDiff(d, maxDiff)
}

// stageWidth is the least room for the names of stages.
const stageWidth = 12

// maxNodesShown bounds the names that one stage shows.
const maxNodesShown = 12

// touched reports whether the rollout gives any order. One of what all nodes have already
// watches nothing: it neither bakes nor waits.
func (v *planView) touched() bool {
	for _, s := range v.Stages {
		if s.Unchanged < len(s.Nodes) {
			return true
		}
	}
	return false
}

// unchangedText says how many nodes of a stage get no order.
func (s *planStage) unchangedText() string {
	switch {
	case s.Unchanged == 0:
		return ""
	case s.Unchanged == len(s.Nodes) && s.Unchanged > 1:
		return ", all have it already and get no order"
	case s.Unchanged == len(s.Nodes):
		return ", has it already and gets no order"
	case s.Unchanged == 1:
		return ", 1 of them has it already and gets no order"
	}
	return fmt.Sprintf(", %d of them have it already and get no order", s.Unchanged)
}

// watchedText says what a stage waits for once its nodes have it.
func (s *planStage) watchedText() string {
	text := ""
	if s.Bake > 0 {
		text += ", bakes " + showSeconds(s.Bake)
	}
	if len(s.Gates) > 0 {
		text += ", gates " + strings.Join(s.Gates, ", ")
	}
	if s.Promote == orchestrator.PromoteManual {
		text += ", waits for an operator's promote"
	}
	return text
}

func (v *planView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Rollout %s: %s in %s\n", v.Name, text.Count(v.Total, "node"), text.Count(len(v.Stages), "stage"))
	switch {
	case v.NothingToDo:
		fmt.Fprintf(&b, "  %s\n", v.Note)
	case v.Resumes != "":
		fmt.Fprintf(&b, "  goes on with %s\n", v.Resumes)
	case v.Note != "":
		fmt.Fprintf(&b, "  %s\n", v.Note)
	}
	for _, h := range v.unfinished {
		fmt.Fprintf(&b, "  takes the place of %s, which is %s\n", h.ID, text.Printable(runner.Unfinished(h)))
	}
	if v.waits != "" {
		fmt.Fprintf(&b, "  conflict = \"queue\": it %s\n", text.Printable(v.waits))
	}
	b.WriteString(v.Fleet.text())
	b.WriteString("\nStages:\n")
	done, width, touched := 0, stageWidth, v.touched()
	for _, s := range v.Stages {
		width = max(width, utf8.RuneCountInString(s.Name))
	}
	for _, s := range v.Stages {
		done += len(s.Nodes)
		if len(s.Nodes) == 0 {
			fmt.Fprintf(&b, "  %-*s no node is left for it\n", width, s.Name)
			continue
		}
		fmt.Fprintf(&b, "  %-*s %s, which makes %d of %d", width, s.Name, text.Count(len(s.Nodes), "node"), done, v.Total)
		b.WriteString(s.unchangedText())
		if s.MaxParallel > 0 {
			fmt.Fprintf(&b, ", %d at a time", s.MaxParallel)
		}
		if touched {
			b.WriteString(s.watchedText())
		}
		b.WriteByte('\n')
		if len(s.Nodes) > 0 {
			shown := s.Nodes[:min(len(s.Nodes), maxNodesShown)]
			if v.allNodes {
				shown = s.Nodes
			}
			fmt.Fprintf(&b, "  %-*s %s", width, "", strings.Join(shown, " "))
			if more := len(s.Nodes) - len(shown); more > 0 {
				fmt.Fprintf(&b, " and %d more", more)
			}
			b.WriteByte('\n')
		}
		if len(s.Spread) > 0 {
			fmt.Fprintf(&b, "  %-*s %s: %s\n", width, "", text.Printable(v.Spread), s.spreadText())
		}
	}
	if rest := v.Total - done; rest > 0 && v.planned == 0 {
		fmt.Fprintf(&b, "  %s in no stage: skipped\n", text.Count(rest, "node"))
	}
	for _, w := range v.Warnings {
		fmt.Fprintf(&b, "  Warning: %s\n", text.Printable(w))
	}
	for _, c := range v.Configs {
		c.content(&b)
		b.WriteString(c.driftText(v))
	}
	b.WriteString("\nLocks:\n")
	for _, st := range v.Locks {
		fmt.Fprintf(&b, "  %s: %s\n%s", st.Name, st.State, statusLines(st, "", "    "))
	}
	if w := v.Window; w != nil {
		state, change := "closed", "never opens"
		if w.Change != nil {
			change = "opens " + w.when()
		}
		if w.Open {
			state, change = "open", "never closes"
			if w.Change != nil {
				change = "closes " + w.when()
			}
		}
		fmt.Fprintf(&b, "\nWindow: %s, %s\n", state, change)
	}
	if v.Estimate != nil && !v.NothingToDo {
		fmt.Fprintf(&b, "\nTime: %s\n", v.Estimate.words)
	}
	return b.String()
}

func jsonLine(v any) ([]byte, error) { return json.Marshal(v) }

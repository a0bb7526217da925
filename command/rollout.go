package command

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/orchestrator/spec"
)

// loadRollout reads a spec and all that it names. What is wrong is printed.
func (m *Meta) loadRollout(path string) (runner.Input, error) {
	f, diags := spec.Load(path)
	if err := m.Diagnostics(f.Files, diags); err != nil {
		return runner.Input{}, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return runner.Input{}, err
	}
	if err := m.gates(nil).Check(f.Spec.Gates); err != nil {
		return runner.Input{}, usagef("%s: %w", path, err)
	}
	if err := m.checkPluginBlocks(f); err != nil {
		return runner.Input{}, err
	}
	in := runner.Input{Spec: f.Spec, File: filepath.Join(dir, filepath.Base(path)), Dir: dir, Contents: f.Contents, Fleet: m.fleet(f)}
	for name, t := range f.Templates {
		if in.Templates == nil {
			in.Templates = map[string]runner.Template{}
		}
		in.Templates[name] = t
	}
	return in, nil
}

// runner makes the runner of a command that is in groupConsul and groupPolicy.
func (m *Meta) runner(tell func(runner.Progress)) (*runner.Runner, error) {
	locks, err := m.Locksmith()
	if err != nil {
		return nil, err
	}
	consul, err := m.Consul()
	if err != nil {
		return nil, err
	}
	return m.runnerOver(consul, locks, tell), nil
}

// runnerOver is runner by clients that are there.
func (m *Meta) runnerOver(consul *consulkv.Client, locks *locksmith.Client, tell func(runner.Progress)) *runner.Runner {
	return runner.New(runner.Config{
		Consul: consul, Prefix: m.Prefix, Locks: runner.Locksmith(locks), Gates: m.gates(consul), Log: m.Log.Named("rollout"),
		Tell: tell, Notify: m.notices(), By: locks.By(), Who: locks.Who, Flags: m.given, Fenced: m.Plugins().Fenced,
	})
}

// rolloutError gives the errors of the runner their texts and exit codes.
func rolloutError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, runner.ErrNotFound):
		return exitf(ExitFailed, "%w", err)
	}
	if re, ok := errors.AsType[*spec.RenderError](err); ok {
		return exitf(ExitUsage, "%w", re)
	}
	return lockError(err)
}

// justNow is for how long it goes without saying since when a rollout is paused: who
// reads that has seen it paused.
const justNow = 5 * time.Second

// stateError is the exit code that a rollout's state calls for, with a line
// that says why.
func (m *Meta) stateError(h *orchestrator.Header) error {
	var code int
	switch h.State {
	case orchestrator.Paused, orchestrator.Aborted, orchestrator.RolledBack, orchestrator.RollingBack, orchestrator.Superseded:
		code = ExitNotConverged
	case orchestrator.Failed:
		code = ExitFailed
	default:
		return nil
	}
	why := h.Reason
	if h.Paused != nil {
		why = h.Paused.Why
	}
	state := string(h.State)
	if now := time.Now(); h.Paused != nil && now.Sub(h.Paused.At) > justNow {
		state = board.State(h, now)
	}
	msg := fmt.Sprintf("rollout %s is %s: %s", h.ID, state, text.Printable(first(why, "no reason is known")))
	if h.State == orchestrator.Paused {
		msg += ". " + board.WaysText(h, m.given.Judging)
	}
	return exitf(code, "%s", msg)
}

// rolloutView is "rollout status -json".
type rolloutView struct {
	ID         string              `json:"id"`
	Name       string              `json:"name"`
	State      orchestrator.Status `json:"state"`
	Stage      string              `json:"stage"`
	Revision   string              `json:"revision"`
	Token      uint64              `json:"token"`
	Counts     orchestrator.Counts `json:"counts"`
	Total      int                 `json:"total"`
	StartedAt  *time.Time          `json:"started_at"`
	FinishedAt *time.Time          `json:"finished_at"`
	CreatedAt  time.Time           `json:"created_at"`
	Reason     string              `json:"reason,omitempty"`
	// Pause is the number of the pause at which it stands, if it does.
	Pause uint64 `json:"pause,omitempty"`
	// PausedSince is since when it is paused, by the clock of who paused it; null: it
	// is not.
	PausedSince *time.Time `json:"paused_since"`
	// Driven is whether an orchestrator of its own holds its locks that is not judged
	// gone; null: it is not known, or it has ended or not begun.
	Driven     *bool                     `json:"driven"`
	Stages     []stageView               `json:"stages"`
	Configs    []configView              `json:"configs"`
	Problems   []orchestrator.Problem    `json:"problems,omitempty"`
	Command    *orchestrator.CommandSeen `json:"command,omitempty"`
	Superseded string                    `json:"superseded_by,omitempty"`
	Follows    string                    `json:"follows,omitempty"`
	Note       string                    `json:"note,omitempty"`
	// BegunBy is who began it; empty where it is not known.
	BegunBy string `json:"begun_by,omitempty"`
	// BegunWith is the file of its spec, on the machine where it was begun.
	BegunWith string `json:"begun_with,omitempty"`
	// Nodes are names of those that have not applied it, by class, 100 of each at most;
	// of a rollout that has ended those of "applied" too, where they are the few.
	Nodes map[string][]string `json:"nodes,omitempty"`
	// Drifted are nodes where somebody else changed a file, 100 at most, of so
	// many.
	Drifted      []runner.Drifted `json:"drifted,omitempty"`
	DriftedTotal int              `json:"drifted_total,omitempty"`
	// Waiting is there for a rollout that has not begun.
	Waiting  *runner.Waiting           `json:"waiting,omitempty"`
	InFlight int                       `json:"in_flight"`
	Flying   []orchestrator.Flight     `json:"flying,omitempty"`
	Gates    []orchestrator.GateStatus `json:"gates,omitempty"`
	// Locks are those of an unfinished rollout as they are now, in the order of
	// its configs.
	Locks []*locksmith.Status `json:"locks,omitempty"`
	// Events are the log, with -verbose.
	Events []records.RolloutEvent `json:"events,omitempty"`
}

type stageView struct {
	Name string `json:"name"`
	// Done is how many nodes had their turn and stand by it: applied, failed and
	// unreachable ones.
	Done   int                 `json:"done"`
	Total  int                 `json:"total"`
	Counts orchestrator.Counts `json:"counts"`
}

type configView struct {
	Name     string `json:"name"`
	Revision string `json:"revision"`
	SHA256   string `json:"sha256"`
	// Renderings is how many contents a template came to.
	Renderings int `json:"renderings,omitempty"`
}

func viewRollout(h *orchestrator.Header, note string) rolloutView {
	v := rolloutView{
		InFlight: h.InFlight, Flying: h.Flying, Gates: h.Gates,
		ID: h.ID, Name: h.Name, State: h.State, Stage: h.Stage, Token: h.Token, Counts: h.Counts, Total: h.Total,
		StartedAt: h.StartedAt, FinishedAt: h.FinishedAt, CreatedAt: h.CreatedAt, Reason: h.Reason, Problems: h.Problems,
		Command: h.Command, Superseded: h.SupersededBy, BegunBy: h.BegunBy, BegunWith: h.BegunWith, Follows: h.Follows, Note: note,
	}
	if h.Paused != nil {
		v.Reason, v.Pause = h.Paused.Why, h.Pauses
		if !h.Paused.At.IsZero() {
			v.PausedSince = &h.Paused.At
		}
	}
	for _, s := range h.Stages {
		v.Stages = append(v.Stages, stageView{s.Name, s.Done, s.End - s.From, s.Counts})
	}
	for _, c := range h.Configs {
		v.Configs = append(v.Configs, configView{c.Name, c.Revision, c.SHA256, c.Renderings})
	}
	if len(h.Configs) > 0 {
		v.Revision = h.Configs[0].Revision
	}
	return v
}

// rolloutText is "rollout status" for people.
func rolloutText(h *orchestrator.Header) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", h.ID, board.State(h, time.Now()))
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	if why := first(pausedWhy(h), h.Reason); why != "" {
		line("why", "%s", text.Printable(why))
	}
	for _, c := range h.Configs {
		of := ""
		if c.Renderings > 1 {
			of = fmt.Sprintf(", which most nodes get of %d renderings", c.Renderings)
		}
		line("config", "%s revision %s%s", c.Name, c.Revision, of)
	}
	line("nodes", "%s", board.Counts(h))
	width := stageWidth
	for _, s := range h.Stages {
		width = max(width, utf8.RuneCountInString(s.Name))
	}
	for i, s := range h.Stages {
		mark := " "
		if i == h.StageIndex && h.FinishedAt == nil {
			mark = ">"
		}
		line("stage", "%s %-*s %s", mark, width, s.Name, board.Stage(&s))
	}
	if h.InFlight > 0 {
		words := fmt.Sprint(h.InFlight)
		if len(h.Flying) > 0 {
			words += fmt.Sprintf(", %s since %s", h.Flying[0].Node, h.Flying[0].Since.UTC().Format("15:04:05 UTC"))
		}
		line("in flight", "%s", text.Printable(words))
	}
	for i := range h.Gates {
		line("gate", "%s", text.Printable(fmt.Sprintf("%s of stage %s: %s", h.Gates[i].Name, h.Gates[i].Stage, board.GateState(&h.Gates[i]))))
	}
	for _, p := range h.Problems {
		line("problem", "%s: %s: %s", p.Node, p.Class, text.Clip(text.Printable(p.Why), 400))
	}
	if begun := begunText(h); begun != "" && h.FinishedAt == nil {
		line("begun", "%s", text.Printable(begun))
	}
	if h.StartedAt != nil {
		line("started", "%s", text.Time(*h.StartedAt))
	}
	if h.FinishedAt != nil {
		line("finished", "%s", text.Time(*h.FinishedAt))
	}
	return b.String()
}

// afterEnd says where to look once a rollout has ended. late: that is long ago, and
// the fleet may have moved since.
func afterEnd(h *orchestrator.Header, typed board.Typed, late bool) string {
	var b strings.Builder
	if h.FinishedAt == nil {
		return ""
	}
	if h.SupersededBy != "" {
		fmt.Fprintf(&b, "  %-9s rollout %s took its place: `%s` follows that\n", "next", h.SupersededBy, typed("rollout watch", h.SupersededBy))
	}
	if left := leftBehind(h, typed("rollout start", "SPEC")); left != "" {
		fmt.Fprintf(&b, "  %-9s %s\n", "next", left)
	}
	if late {
		fmt.Fprintf(&b, "  %-9s counts and problems are those at its end; `%s` says how the fleet stands now\n", "now", typed("rollout plan", "SPEC"))
	}
	return b.String()
}

// begunText says who began an unfinished rollout, and with what: a start of anything
// else does not go on with it. "" where that is not known.
func begunText(h *orchestrator.Header) string {
	words := ""
	if h.BegunBy != "" {
		words = "by " + h.BegunBy
	}
	if h.BegunWith != "" {
		words += " with " + h.BegunWith
	}
	if words = strings.TrimSpace(words); words != "" && h.Token != 0 && h.Conflict != orchestrator.ConflictQueue {
		words += "; a start of another spec or content takes its place"
	}
	return words
}

func pausedWhy(h *orchestrator.Header) string {
	if h.Paused != nil {
		return h.Paused.Why
	}
	return ""
}

// rolloutOf finds the rollout that an optional argument means, with a runner that
// tells nothing.
func (m *Meta) rolloutOf(ctx context.Context, args []string) (*runner.Runner, string, error) {
	r, err := m.runner(nil)
	if err != nil {
		return nil, "", err
	}
	ref := ""
	if len(args) > 0 {
		ref = args[0]
	}
	id, err := r.Find(ctx, ref)
	return r, id, rolloutError(err)
}

// wayOn is the order that lets a paused rollout go on.
func wayOn(h *orchestrator.Header) orchestrator.Verb {
	if h.Paused == nil {
		return orchestrator.Resume
	}
	return h.Paused.Cause.Way()
}

package board

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// Way is a command that ends a pause, and what it is for.
type Way struct {
	What, Command string
	// startAfter: whoever drove the rollout has left, so that it must be started again.
	startAfter bool
}

// Typed is a command of aimlock as people type it here: with the flags that they need
// to look at the same Consul and keys, and judge by the same policies. Nil: with none.
type Typed func(verb string, args ...string) string

func (t Typed) on(verb string, h *orchestrator.Header) string {
	if t == nil {
		return "aimlock rollout " + verb + " " + h.ID
	}
	return t("rollout "+verb, h.ID)
}

// start is the command that begins a spec, whose file is not known here.
func (t Typed) start() string {
	if t == nil {
		return "aimlock rollout start SPEC"
	}
	return t("rollout start", "SPEC")
}

// Ways are the ways out of the pause of a rollout, the safest first: after failures
// that is the one that sends nothing to a further node, and then the one that most go.
func Ways(h *orchestrator.Header, typed Typed) []Way {
	back := Way{What: "to go back", Command: typed.on("rollback", h)}
	on := Way{What: "to go on", Command: typed.on(h.WayOn(), h), startAfter: true}
	if h.Paused == nil {
		return []Way{on, back}
	}
	switch h.Paused.Cause {
	case orchestrator.CauseFailure:
		if on.What = "to go on all the same"; h.Counts[orchestrator.ClassFailed] > 0 {
			on.What = "to go on without the failed nodes, which this rollout does not try again"
		}
		anew := Way{What: "to begin anew in its place, with a corrected content or spec", Command: typed.start()}
		if h.Conflict == orchestrator.ConflictQueue {
			anew = Way{What: "to end it, before a corrected content or spec is begun", Command: typed.on("abort", h)}
		}
		return []Way{back, anew, on}
	case orchestrator.CauseGate:
		on.What = "to go on, with the gates of the stage asked anew"
	case orchestrator.CauseDeadline:
		on.What = "to go on, with the whole deadline anew"
	}
	return []Way{on, back}
}

// WaysText are the ways out of a pause in sentences.
func WaysText(h *orchestrator.Header, typed Typed) string {
	ways := Ways(h, typed)
	words := make([]string, len(ways))
	for i, w := range ways {
		words[i] = "T" + w.What[1:] + ": `" + w.Command + "`"
		if w.startAfter {
			words[i] += ", then start it again"
		}
	}
	return strings.Join(words, ". ")
}

// Bake says of a paused rollout how its bake stands, which no pause stops; "" where
// nothing bakes, or it is not known.
func Bake(h *orchestrator.Header, spec *orchestrator.Spec, now time.Time) string {
	if h.State != orchestrator.Paused || h.BakingSince == nil || h.Promoted || spec == nil || h.StageIndex < 0 || h.StageIndex >= len(spec.Stages) {
		return ""
	}
	st := &spec.Stages[h.StageIndex]
	if st.Bake <= 0 {
		return ""
	}
	then := "the rollout is done at once"
	switch {
	case len(st.Gate) > 0:
		then = "its gates are asked at once"
	case st.Promote == orchestrator.PromoteManual:
		then = "it waits to be promoted"
	case h.StageIndex+1 < len(spec.Stages):
		then = fmt.Sprintf("stage %q begins at once", spec.Stages[h.StageIndex+1].Name)
	}
	end := h.BakingSince.Add(st.Bake)
	if left := end.Sub(now); left > 0 {
		return fmt.Sprintf("that of stage %q runs on, and is over at %s, in %s: resumed after that, %s", st.Name, clock(end, now), Duration(left), then)
	}
	return fmt.Sprintf("that of stage %q is over since %s: resumed, %s", st.Name, clock(end, now), then)
}

// clock is a time as short as it can be told from now.
func clock(t, now time.Time) string {
	if now.Sub(t).Abs() < 12*time.Hour {
		return t.UTC().Format("15:04:05 UTC")
	}
	return text.Time(t)
}

// ways are the commands that end a pause, on lines of their own: who copies one from
// the screen must get all of it, with no break but at its blanks.
func (p *painter) ways() []string {
	out := p.fact("left", "nothing happens before one of these:")
	for _, way := range Ways(p.h, p.m.Typed) {
		what, command := p.clean(way.What+":"), p.clean(way.Command)
		all := []string{what + " " + command}
		if ansi.StringWidth(all[0])+2 > p.s.Width {
			all = []string{what, command}
		}
		for _, l := range all {
			for _, part := range wrapBlanks(l, max(8, p.s.Width-2)) {
				out = append(out, p.fit("  "+part, p.s.Width))
			}
		}
	}
	return out
}

// Lines breaks clean text into lines at its blanks.
func Lines(s string, width int) []string { return wrapBlanks(s, max(8, width)) }

// wrapBlanks breaks clean text into lines at its blanks, and within a word only where
// that alone is wider than a line.
func wrapBlanks(s string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && ansi.StringWidth(line)+1+ansi.StringWidth(word) <= width {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		parts := strings.Split(ansi.Hardwrap(word, width, true), "\n")
		lines = append(lines, parts[:len(parts)-1]...)
		line = parts[len(parts)-1]
	}
	return slices.Concat(lines, []string{line})
}

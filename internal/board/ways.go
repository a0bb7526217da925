package board

import (
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/orchestrator"
)

// Way is a command that ends a pause, and what it is for.
type Way struct{ What, Command string }

// Typed is a command of aimlock as people type it here: with the flags that they need
// to look at the same Consul and keys, and judge by the same policies. Nil: with none.
type Typed func(verb string, args ...string) string

func (t Typed) on(verb string, h *orchestrator.Header) string {
	if t == nil {
		return "aimlock rollout " + verb + " " + h.ID
	}
	return t("rollout "+verb, h.ID)
}

const goBack = "to go back"

// Ways are the ways out of the pause of a rollout, the safest first: after failures
// that is the one that sends nothing to a further node.
func Ways(h *orchestrator.Header, typed Typed) []Way {
	back := Way{goBack, typed.on("rollback", h)}
	on := Way{"to go on", typed.on(h.WayOn(), h)}
	if h.Paused == nil {
		return []Way{on, back}
	}
	switch h.Paused.Cause {
	case orchestrator.CauseFailure:
		if on.What = "to go on all the same"; h.Counts[orchestrator.ClassFailed] > 0 {
			on.What = "to go on without the failed nodes, which are not tried again"
		}
		return []Way{back, on}
	case orchestrator.CauseGate:
		on.What = "to go on, with the gates of the stage asked anew"
	case orchestrator.CauseDeadline:
		on.What = "to go on, with the whole deadline anew"
	}
	return []Way{on, back}
}

// WaysText are the ways out of a pause in sentences. Whoever drove the rollout has
// left, so that it must be started again where it is to go on.
func WaysText(h *orchestrator.Header, typed Typed) string {
	ways := Ways(h, typed)
	words := make([]string, len(ways))
	for i, w := range ways {
		words[i] = "T" + w.What[1:] + ": `" + w.Command + "`"
		if w.What != goBack {
			words[i] += ", then start it again"
		}
	}
	return strings.Join(words, ". ")
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

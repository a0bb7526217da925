package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"strings"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

func newLockExplain(m *Meta) *command {
	now, file, dir := false, "", ""
	explain := m.onLock(func(ctx context.Context, c *locksmith.Client, name string) error {
		return m.explainLock(ctx, c, name, dir, now)
	})
	return &command{
		Meta:     m,
		Synopsis: "Tell a lock's story, and why it is judged so",
		Usage:    "[options] NAME | -file PATH",
		Description: `Shows what "lock status" shows and then every rule of the policy that judges the
lock, with what it made of the evidence; every fact that a rule reads, with its
source or why it could not be had; and the lock's story: who took it, what was
asked, approved and broken, on what evidence and by whom.

With -file it explains the kernel's locks on a file of this machine instead: who
took them, which processes keep them, and why lslocks shows what it shows. That
needs no Consul, and root to see all.

It changes nothing and exits 0 whatever the lock's state is.`,
		Examples: []example{
			{"What caused it?", "aimlock lock explain aim_lock_config.conf"},
			{"The lock of another tool, by its whole key", "aimlock lock explain ops/deploy/.lock"},
			{"What keeps this file locked?", "aimlock lock explain -file /run/lock/backup.lock"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&now, "now", false, "Do not watch: show what can be said at once.")
			fs.StringVar(&dir, "journal", "", "Tell the story from the locksmith's journal in `DIR` too. Or set\nAIMLOCK_JOURNAL, or journal in the config file.")
			fs.StringVar(&file, "file", "", "Explain the kernel's locks on the file `PATH` of this machine.")
		},
		MaxArgs:  1,
		Complete: completeLocks,
		Run: func(ctx context.Context, in *input) error {
			switch {
			case in.Set("file") && len(in.Args) > 0:
				return usagef("lock explain takes a NAME or -file PATH, not both")
			case in.Set("file"):
				return m.explainFile(ctx, file)
			case len(in.Args) == 0:
				return usagef("lock explain is missing an argument: the NAME of a lock, or -file PATH")
			}
			return explain(ctx, in)
		},
	}
}

// explainView is a lock with its story, as JSON.
type explainView struct {
	fullStatus
	// Cause is what the state comes from, so far as the evidence tells.
	Cause *string `json:"cause"`
	// Timeline is the lock's story, the oldest first.
	Timeline []locksmith.Event `json:"timeline"`
}

func (m *Meta) explainLock(ctx context.Context, c *locksmith.Client, name, dir string, now bool) error {
	v, st, err := watched(ctx, m, c, name, now)
	if err != nil {
		return err
	}
	m.Notef("%s", m.hintApplied(ctx, c, v))
	story, err := m.story(ctx, c, v, dir)
	if err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(explainView{withEvidence(st), orNull(story.Cause), append([]locksmith.Event{}, story.Events...)})
	}
	m.tellWords(storyText(v, st, story))
	return nil
}

// explainText is what lock explain prints.
func (m *Meta) explainText(ctx context.Context, c *locksmith.Client, name, dir string, now bool) (string, error) {
	v, st, err := watched(ctx, m, c, name, now)
	if err != nil {
		return "", err
	}
	story, err := m.story(ctx, c, v, dir)
	if err != nil {
		return "", err
	}
	return storyText(v, st, story), nil
}

func storyText(v *locksmith.Verdict, st *locksmith.Status, story *locksmith.Story) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", st.Name, st.State)
	if story.Cause != "" {
		fmt.Fprintf(&b, "  %-9s %s\n", "cause", story.Cause)
	}
	b.WriteString(statusLines(st, "", "  "))
	b.WriteString(rulesText(v))
	b.WriteString(evidenceText(st))
	b.WriteString(timelineText(story.Events))
	return b.String()
}

// story tells a lock's story. A journal that was not named on the command line
// and is not there, or may not be read, is no failure.
func (m *Meta) story(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict, dir string) (*locksmith.Story, error) {
	path := m.journalDir(dir)
	tell, done := m.journalProblems()
	story, err := c.Story(ctx, v, path, tell)
	done()
	if !errors.Is(err, journal.ErrNone) && !errors.Is(err, fs.ErrPermission) {
		return story, err
	}
	if dir != "" {
		return nil, usagef("-journal: %w", err)
	}
	m.Notef("Warning: the story is told without the journal: %s\n", err)
	return c.Story(ctx, v, "", nil)
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func rulesText(v *locksmith.Verdict) string {
	var b strings.Builder
	switch {
	case !v.Snapshot.Held():
		return ""
	case v.Policy == nil:
		return "\nNo policy matches it: it has no rules.\n"
	}
	fmt.Fprintf(&b, "\nPolicy %s, the first that matches:\n", v.Policy.Name)
	for _, r := range v.Judgement.Results {
		fmt.Fprintf(&b, "  %-4s %-16s %-8s %s\n", r.Rule.Kind(), r.Rule.Name, triText(r.Value), firstLine(r.Rule.When))
		if r.Value == policies.Unknown && r.Why != "" {
			fmt.Fprintf(&b, "  %-4s %-16s %-8s %s\n", "", "", "", r.Why)
		}
	}
	return b.String()
}

func triText(t policies.Tri) string {
	switch t {
	case policies.True:
		return "holds"
	case policies.False:
		return "no"
	}
	return "unknown"
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func evidenceText(st *locksmith.Status) string {
	if len(st.Evidence) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nEvidence:\n")
	for _, e := range st.Evidence {
		value := text.Number(string(e.Value))
		if !e.Known {
			value = "unknown: " + e.Why
		}
		fmt.Fprintf(&b, "  %-24s %s  [%s]\n", e.Fact, value, e.Source)
	}
	return b.String()
}

// maxEvents bounds how much of a story is told to people; -json has all of it.
const maxEvents = 100

func timelineText(line []locksmith.Event) string {
	if len(line) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nTimeline, each time by the clock in brackets:\n")
	if more := len(line) - maxEvents; more > 0 {
		fmt.Fprintf(&b, "  (%s before these; -json has all)\n", text.Count(more, "event"))
		line = line[more:]
	}
	for _, e := range line {
		what := e.Text()
		if e.Detail != "" {
			what += ": " + e.Detail
		}
		fmt.Fprintf(&b, "  %s  %s  [%s]\n", e.When(), what, e.Clock)
	}
	return b.String()
}

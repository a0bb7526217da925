package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"strings"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/replay"
	"github.com/aim-control/aimlock/internal/text"
)

func newPolicyReplay(m *Meta) *command {
	lock, detailed := "", false
	return &command{
		Meta:     m,
		Synopsis: "Judge a recorded journal by today's policies",
		Usage:    "[options] [JOURNAL]",
		Description: `Reads a journal that a locksmith has written (its folder, or one file of it),
judges everything in it anew, and shows each span of time in which today's
policies would have judged a lock otherwise than it was judged then.

It needs no Consul. "for" and "confirm" count recorded time. A fact that a policy
reads and the journal does not have is unknown. Between two entries of a lock its
facts stood still and its ages grew, so that a lower bound shows when it would
have been passed. Approvals and budgets are not replayed.

Without JOURNAL it is the folder that AIMLOCK_JOURNAL or the config file name.
Exit code 0 if the journal could be replayed, whatever it shows; with
-detailed-exitcode 3 if something differs.`,
		Examples: []example{
			{"What would a change of the policies have done last week?", "aimlock policy replay -policy policies/ /var/lib/aimlock/journal"},
			{"One lock, for a program", "aimlock policy replay -json -lock aim_lock_config.conf /var/lib/aimlock/journal"},
		},
		Groups: groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&lock, "lock", "", "Judge only the lock called `NAME`.")
			fs.BoolVar(&detailed, "detailed-exitcode", false, "Exit with 3 if something differs.")
		},
		MaxArgs:  1,
		Complete: completeFiles("*"),
		Run: func(_ context.Context, in *input) error {
			path := m.journalDir("")
			if len(in.Args) > 0 {
				path = in.Args[0]
			}
			if path == "" {
				return usagef("name the journal: aimlock policy replay JOURNAL (or set AIMLOCK_JOURNAL)")
			}
			if lock != "" {
				name, err := lockName(lock)
				if err != nil {
					return err
				}
				lock = name
			}
			set, err := m.loadPolicies()
			if err != nil {
				return err
			}
			tell, done := m.journalProblems()
			rep, err := replay.Run(path, set, replay.Options{Lock: lock, Problem: tell})
			if errors.Is(err, journal.ErrNone) || errors.Is(err, fs.ErrPermission) {
				return usagef("%w", err)
			}
			if err != nil {
				return err
			}
			done()
			if m.JSON {
				err = m.PrintJSON(rep)
			} else {
				m.printReplay(rep)
			}
			if err == nil && detailed && len(rep.Differences) > 0 {
				err = exit(ExitMore)
			}
			return err
		},
	}
}

func (m *Meta) printReplay(rep *replay.Report) {
	for i := range rep.Differences {
		d := &rep.Differences[i]
		until := "to the end of the journal"
		if d.Until != nil {
			until = "to " + text.Time(*d.Until)
		}
		m.Printf("%s: %s %s\n", text.Printable(d.Lock), text.Time(d.At), until)
		m.Printf("  then  %s\n", judgedText(&d.Then, "it was broken at "))
		m.Printf("  now   %s\n", judgedText(&d.Now, "it would have been broken at "))
	}
	span := ""
	if rep.From != nil && rep.To != nil {
		span = fmt.Sprintf(", %s to %s", text.Time(*rep.From), text.Time(*rep.To))
	}
	what := "no difference"
	if n := len(rep.Differences); n > 0 {
		what = text.Count(n, "difference")
	}
	m.Printf("%s in %s of %s%s\n", what, text.Count(rep.Observations, "observation"), text.Count(rep.Locks, "lock"), span)
	m.Printf("judged now by %.12s, then by %s\n", rep.PolicyHash, recordedText(rep.Recorded))
	if rep.Skipped > 0 {
		m.Printf("%s could not be read: what they told is missing here\n", text.Count(rep.Skipped, "line"))
	}
}

func judgedText(j *replay.Judged, broken string) string {
	var b strings.Builder
	b.WriteString(text.Printable(j.State))
	if j.Rule != "" {
		fmt.Fprintf(&b, " by %s of %s", text.Printable(j.Rule), text.Printable(j.Policy))
	}
	if j.Reason != "" {
		fmt.Fprintf(&b, ": %s", text.Printable(j.Reason))
	}
	switch {
	case j.Broken != nil:
		b.WriteString("; " + broken + text.Time(*j.Broken))
	case j.Break != "":
		b.WriteString("; not broken: " + text.Printable(j.Break))
	}
	return b.String()
}

func recordedText(hashes []string) string {
	if len(hashes) == 0 {
		return "no policy"
	}
	short := make([]string, 0, len(hashes))
	for _, h := range hashes[:min(3, len(hashes))] {
		short = append(short, text.Clip(text.Printable(h), 12))
	}
	out := strings.Join(short, ", ")
	if more := len(hashes) - len(short); more > 0 {
		out += fmt.Sprintf(" and %d more", more)
	}
	return strings.ReplaceAll(out, "…", "")
}

package command

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newLockStatus(m *Meta) *command {
	now := false
	return &command{
		Meta:     m,
		Synopsis: "Show one lock's verdict",
		Usage:    "[options] NAME",
		Description: `Judges one lock by the policies in force and shows who holds it, since when, on
what evidence, under which rule, and what happens next.

NAME is the name of one of aimlock's locks. A name with a slash is a whole key,
such as ops/deploy/.lock of another tool. Where a rule holds that must go on
holding for a while before it counts, the lock is watched for that long.

It changes nothing and exits 0 whatever the lock's state is.`,
		Examples: []example{
			{"Who blocks me?", "aimlock lock status aim_lock_config.conf"},
			{"The same for a program, at once", "aimlock lock status -json -now aim_lock_config.conf"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&now, "now", false, "Do not watch: show what can be said at once.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete: completeLocks,
		Run: m.onLock(func(ctx context.Context, c *locksmith.Client, name string) error {
			v, st, err := watched(ctx, m, c, name, now)
			if err != nil {
				return err
			}
			m.Notef("%s", m.hintApplied(ctx, c, v))
			if m.JSON {
				return m.PrintJSON(withEvidence(st))
			}
			m.tellWords(fmt.Sprintf("%s: %s\n%s", st.Name, st.State, statusLines(st, "", "  ")))
			return nil
		}),
	}
}

// fullStatus is a status whose evidence is always there, empty or not.
type fullStatus struct {
	*locksmith.Status
	Evidence []fact `json:"evidence"`
}

// fact is one piece of evidence with every field there, why too where the fact
// is known: scripts read the shape, and an absent field is another shape. A fact
// that was given and not observed has null for the time.
type fact struct {
	records.Evidence
	Why        string     `json:"why"`
	ObservedAt *time.Time `json:"observed_at"`
}

func facts(evidence []records.Evidence) []fact {
	out := make([]fact, len(evidence))
	for i, e := range evidence {
		out[i] = fact{Evidence: e, Why: e.Why}
		if !e.ObservedAt.IsZero() {
			out[i].ObservedAt = &e.ObservedAt
		}
	}
	return out
}

func withEvidence(st *locksmith.Status) fullStatus {
	return fullStatus{Status: st, Evidence: facts(st.Evidence)}
}

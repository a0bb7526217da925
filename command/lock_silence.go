package command

import (
	"context"
	"flag"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// silenceReport is what `lock silence -json` prints.
type silenceReport struct {
	Lock    string           `json:"lock"`
	Silence *records.Silence `json:"silence"`
	// Before is what stood before.
	Before *records.Silence `json:"before"`
}

func newLockSilence(m *Meta) *command {
	var reason string
	var valid time.Duration
	end := false
	return &command{
		Meta:     m,
		Synopsis: "Let nobody break a lock for a while",
		Usage:    "[options] -for DURATION -reason TEXT NAME",
		Description: `Nobody breaks the lock until the silence ends, by whatever rule: also not where
its holder is proved dead. It is about the lock and not about its holder, and
stands however often the lock changes hands. It is still judged, and whoever wants
it is told who silenced it and why.

A silence ends by itself, after 7 days at most, by the clock of whoever wants to
break; -end ends it at once.`,
		Examples: []example{
			{"While somebody looks into a holder that hangs", "aimlock lock silence -for 2h -reason 'debugging, ask ann' aim_lock_config.conf"},
			{"End it", "aimlock lock silence -end aim_lock_config.conf"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.DurationVar(&valid, "for", 0, "How long, a `DURATION` such as 2h; 168h (7 days) at most.")
			fs.StringVar(&reason, "reason", "", "Why, in `TEXT`: everybody whom it stops is shown it.")
			fs.BoolVar(&end, "end", false, "End the silence.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete: completeLocks,
		Run: func(ctx context.Context, in *input) error {
			name, err := lockName(in.Args[0])
			if err != nil {
				return err
			}
			switch {
			case end && (in.Set("for") || in.Set("reason")):
				return usagef("-end ends a silence: it goes with neither -for nor -reason")
			case !end && valid <= 0:
				return usagef("-for is missing: say how long, such as -for 2h")
			case valid > locksmith.MaxSilence:
				return usagef("-for %s: a silence lasts %s (7 days) at most; it can be set again", text.Duration(valid), text.Duration(locksmith.MaxSilence))
			case !end:
				if err := checkReason(reason, true); err != nil {
					return err
				}
			}
			c, err := m.locksmithWith(&policies.Set{})
			if err != nil {
				return err
			}
			if end {
				return m.endSilence(ctx, c, name)
			}
			return m.silence(ctx, c, name, reason, valid)
		},
	}
}

func (m *Meta) silence(ctx context.Context, c *locksmith.Client, name, reason string, valid time.Duration) error {
	rec, old, err := c.Silence(ctx, name, reason, valid)
	if err != nil {
		return err
	}
	if ok, err := c.Exists(ctx, name); err == nil && !ok {
		m.Notef("There is no lock %s yet: is that its name?\n", name)
	}
	if m.JSON {
		return m.PrintJSON(silenceReport{Lock: rec.Lock, Silence: rec, Before: old})
	}
	m.Printf("%s: silenced until %s: nobody breaks it\n", rec.Lock, whenText(rec.Expires))
	if old.Stands(time.Now()) {
		m.Printf("  before    %s\n", silenceText(old))
	}
	m.Printf("  to end it `aimlock lock silence -end %s`\n", rec.Lock)
	return nil
}

func (m *Meta) endSilence(ctx context.Context, c *locksmith.Client, name string) error {
	old, err := c.EndSilence(ctx, name)
	if err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(silenceReport{Lock: name, Before: old})
	}
	switch {
	case old == nil:
		m.Printf("%s: it was not silenced\n", name)
	case !old.Stands(time.Now()):
		m.Printf("%s: its silence was over already\n  before    %s\n", name, silenceText(old))
	default:
		m.Printf("%s: the silence is ended: it may be broken when it is HOT\n  before    %s\n", name, silenceText(old))
	}
	return nil
}

// silenceText is a silence in a line.
func silenceText(s *records.Silence) string {
	out := "silenced until " + whenText(s.Expires)
	if s.Expires.IsZero() {
		out = "silenced without an end"
	}
	if s.By != "" {
		out += " by " + whoText(s.By, s.Who)
	}
	return out + ": " + text.Clip(text.Printable(s.Reason), 400)
}

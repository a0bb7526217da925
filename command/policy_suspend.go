package command

import (
	"context"
	"flag"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// suspendReport is what `policy suspend -json` and `policy resume -json` print.
type suspendReport struct {
	Suspended bool                     `json:"suspended"`
	Record    *records.PolicySuspended `json:"record"`
	// Before is what stood before.
	Before *records.PolicySuspended `json:"before"`
}

func newPolicySuspend(m *Meta) *command {
	reason := ""
	return &command{
		Meta:     m,
		Synopsis: "Stop all automatic breaking",
		Usage:    "[options] -reason TEXT",
		Description: `Stops every break of every lock, by whomever and by whatever rule, until "aimlock
policy resume". Locks are judged and explained as before, and taken where they
are free. A break that is under way stops before its last step.`,
		Examples: []example{{"Before work on the Consul servers", "aimlock policy suspend -reason 'moving Consul servers, CHG-1234'"}},
		Groups:   groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&reason, "reason", "", "Why, in `TEXT`: everybody whom it stops is shown it.")
		},
		Run: func(ctx context.Context, _ *input) error {
			if err := checkReason(reason, true); err != nil {
				return err
			}
			c, err := m.locksmithWith(&policies.Set{})
			if err != nil {
				return err
			}
			rec, old, err := c.Suspend(ctx, reason)
			if err != nil {
				return err
			}
			if m.JSON {
				return m.PrintJSON(suspendReport{Suspended: true, Record: rec, Before: old})
			}
			m.Printf("All automatic breaking is suspended by %s: %s\n", whoText(rec.By, rec.Who), text.Printable(rec.Reason))
			if old != nil {
				m.Printf("  before    suspended %s\n", suspensionText(old))
			}
			m.Printf("  to end it `aimlock policy resume`\n")
			return nil
		},
	}
}

func newPolicyResume(m *Meta) *command {
	return &command{
		Meta:        m,
		Synopsis:    "Allow automatic breaking again",
		Usage:       "[options]",
		Description: `Ends what "aimlock policy suspend" began. HOT locks may be broken from then on.`,
		Examples:    []example{{"When the work is done", "aimlock policy resume"}},
		Groups:      groupConsul | groupJSON,
		Run: func(ctx context.Context, _ *input) error {
			c, err := m.locksmithWith(&policies.Set{})
			if err != nil {
				return err
			}
			old, err := c.Resume(ctx)
			if err != nil {
				return err
			}
			if m.JSON {
				return m.PrintJSON(suspendReport{Before: old})
			}
			if old == nil {
				m.Printf("Automatic breaking was not suspended.\n")
				return nil
			}
			m.Printf("Automatic breaking is allowed again.\n  before    suspended %s\n", suspensionText(old))
			return nil
		},
	}
}

func suspensionText(s *records.PolicySuspended) string {
	out := ""
	if s.By != "" {
		out = "by " + whoText(s.By, s.Who) + " "
	}
	if !s.At.IsZero() {
		out += "at " + whenText(s.At)
	}
	return out + ": " + text.Clip(text.Printable(s.Reason), 400)
}

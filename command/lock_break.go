package command

import (
	"context"
	"errors"
	"flag"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newLockBreak(m *Meta) *command {
	var dryRun, force bool
	return &command{
		Meta:     m,
		Synopsis: "Break a HOT lock by its policy",
		Usage:    "[options] NAME",
		Description: `Judges the lock and, if it is HOT and its policy lets it be broken now, breaks
it: first an intent is written, then the policy's steps run, and at the end one
transaction ends the old hold. It commits only if the lock, and everything that
the verdict rested on, stands unchanged; else nothing is changed.

A lock that is not HOT is never broken: exit code 4. One that is HOT and may not
be broken now (approval, budget, freeze, other policies applied) is exit code 5.`,
		Examples: []example{
			{"What would happen?", "aimlock lock break -dry-run aim_lock_config.conf"},
			{"Break it", "aimlock lock break aim_lock_config.conf"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&dryRun, "dry-run", false, "Judge, and show what would be done; change nothing.")
			fs.BoolVar(&force, "force", false, "Destroy the old session also where it holds other keys, or deletes its\nkeys when it ends. It never overrides the verdict or the policy.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete: completeLocks,
		Run: m.onLock(func(ctx context.Context, c *locksmith.Client, name string) error {
			out, err := c.Break(ctx, locksmith.BreakRequest{Name: name, DryRun: dryRun, Force: force, Notify: m.notices()})
			if errors.Is(err, locksmith.ErrNotHeld) {
				state := out.Verdict.State
				if m.JSON {
					return m.PrintJSON(breakView{Lock: name, State: state, DryRun: dryRun})
				}
				cooling := ""
				if state == locksmith.Cooling {
					cooling = ", and it is " + state
				}
				m.Printf("%s: nobody holds it%s; there is nothing to break\n", name, cooling)
				return nil
			}
			if err != nil && m.JSON {
				if err := m.refusedBreak(name, dryRun, out, err); err != nil {
					return err
				}
			}
			if not, ok := errors.AsType[*locksmith.NotPermittedError](err); ok && out != nil {
				return refused(ExitLockHot, notPermittedText(not, c.Status(out.Verdict)))
			}
			if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok && out != nil && !ref.Hot {
				return refused(ExitLockBusy, refusalText(ref.Status, ref.Why)+m.hintApplied(ctx, c, out.Verdict))
			}
			if err != nil {
				return lockError(err)
			}
			return m.showBreak(name, dryRun, out)
		}),
	}
}

// breakView is the result of "lock break -json".
type breakView struct {
	Lock   string         `json:"lock"`
	State  string         `json:"state"`
	DryRun bool           `json:"dry_run"`
	Steps  []string       `json:"steps,omitempty"`
	Break  *records.Break `json:"break"`
	Detail string         `json:"detail,omitempty"`
}

// refusedBreak prints the result of a break that the verdict or the policy refuses.
func (m *Meta) refusedBreak(name string, dryRun bool, out *locksmith.Broken, err error) error {
	v := breakView{Lock: name, DryRun: dryRun}
	not, forbidden := errors.AsType[*locksmith.NotPermittedError](err)
	switch ref, ok := errors.AsType[*locksmith.RefusedError](err); {
	case ok && ref.Status != nil:
		v.State, v.Detail = ref.Status.State, first(ref.Why, ref.Status.Next)
	case forbidden && out != nil:
		v.State, v.Detail = out.Verdict.State, not.Why
	default:
		return nil
	}
	return m.PrintJSON(v)
}

func (m *Meta) showBreak(name string, dryRun bool, out *locksmith.Broken) error {
	if m.JSON {
		return m.PrintJSON(breakView{Lock: name, State: out.Verdict.State, DryRun: dryRun, Steps: out.Plan, Break: out.Record, Detail: out.Dismissed})
	}
	if dryRun {
		m.Printf("%s: would be broken by rule %s: %s\n", name, out.Verdict.Judgement.Rule.Name, out.Verdict.Judgement.Result.Reason)
		for _, s := range out.Plan {
			m.Printf("  step %s\n", s)
		}
		return nil
	}
	r := out.Record
	switch r.Outcome {
	case records.OutcomeReleased:
		m.Printf("%s: %s\n", name, first(out.Dismissed, "its holder let go"))
	default:
		m.Printf("%s: broken by rule %s: %s\n", name, r.Rule, r.Reason)
		if r.Quiesce > 0 {
			m.Printf("  the next holder first waits %s\n", showSeconds(r.Quiesce))
		}
		m.Printf("  %s\n", out.Dismissed)
	}
	return nil
}

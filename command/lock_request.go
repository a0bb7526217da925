package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

func newLockRequest(m *Meta) *command {
	return tellHolder(m, &command{
		Synopsis: "Ask a lock's holder to let go",
		Description: `Asks whoever holds the lock now to finish in good order and let go. Only that
holder is meant: the request ends with its hold.`,
		Examples: []example{{"Ask, and say why", "aimlock lock request -reason 'urgent rollback' aim_lock_config.conf"}},
	}, 10*time.Minute, "asked to let go", (*locksmith.Client).Request, unheard)
}

func newLockApprove(m *Meta) *command {
	return tellHolder(m, &command{
		Synopsis: "Approve that a lock be broken",
		Description: `Lets the lock be broken while its present holder has it, where the policy says
approval = "manual". It breaks nothing by itself, and a lock that is not HOT is
not broken for it. The approval ends with the hold that it names. It is for the
rule that makes the lock HOT when it is given, by the policies of this command;
for any rule where the lock is not HOT yet.`,
		Examples: []example{{"Approve for the next 10 minutes", "aimlock lock approve -for 10m -reason 'host burnt' aim_lock_config.conf"}},
	}, time.Hour, "break approved", (*locksmith.Client).Approve, vain)
}

// unheard says that nobody reads the request; "" if the holder does.
func unheard(_ context.Context, _ *locksmith.Client, v *locksmith.Verdict) (string, error) {
	if v.Snapshot.Holder != nil {
		return "", nil
	}
	return "only a holder that is aimlock reads it, and this one is not: ask whoever runs it", nil
}

// vain says why nothing is broken by these policies, approved or not.
func vain(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict) (string, error) {
	why, err := c.NotInForce(ctx, v)
	if err != nil || why != "" {
		if why != "" {
			why = "nothing is broken for it by these policies: " + why
		}
		return why, err
	}
	switch p := v.Policy; {
	case p == nil:
		return "no policy matches this lock: nothing breaks it", nil
	case p.Break == nil:
		return fmt.Sprintf("policy %s never breaks it", p.Name), nil
	case p.Break.Approval == policies.ApprovalNever:
		return fmt.Sprintf("policy %s says approval = %q: nothing is broken for it", p.Name, p.Break.Approval), nil
	}
	return "", nil
}

// doubtFunc says what is in the way of what was told; "" if nothing is known.
type doubtFunc func(ctx context.Context, c *locksmith.Client, v *locksmith.Verdict) (string, error)

type tellFunc func(c *locksmith.Client, ctx context.Context, name, reason string, valid time.Duration) (*locksmith.Verdict, error)

// tellHolder fills in a command that writes a record naming a lock's holder.
func tellHolder(m *Meta, c *command, valid time.Duration, done string, tell tellFunc, doubt doubtFunc) *command {
	reason := ""
	c.Meta, c.Usage, c.MinArgs, c.MaxArgs, c.Complete = m, "[options] NAME", 1, 1, completeLocks
	c.Groups = groupConsul | groupPolicy
	c.Flags = func(fs *flag.FlagSet) {
		fs.DurationVar(&valid, "for", valid, "How long it is valid, a `DURATION`.")
		fs.StringVar(&reason, "reason", "", "Why, in `WORDS`: it stands in the lock's story.")
	}
	c.Run = func(ctx context.Context, in *input) error {
		name, err := lockName(in.Args[0])
		if err != nil {
			return err
		}
		if valid <= 0 {
			return usagef("-for %s: it must be above 0", valid)
		}
		lc, err := m.Locksmith()
		if err != nil {
			return err
		}
		v, err := tell(lc, ctx, name, reason, valid)
		if errors.Is(err, locksmith.ErrNotHeld) {
			return exitf(ExitFailed, "%w", err)
		}
		if err != nil {
			return err
		}
		if why, err := doubt(ctx, lc, v); err != nil {
			m.Log.Debug("look whether it counts", "error", err)
		} else if why != "" {
			m.Notef("Warning: %s\n", why)
		}
		m.Printf("%s: %s, for the holder of token %d, valid for %s\n", text.Printable(name), done, v.Snapshot.Index(), text.Duration(valid))
		return nil
	}
	return c
}

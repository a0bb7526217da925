package command

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

func newRecover(m *Meta) *command {
	var req locksmith.RecoverRequest
	yes := false
	return &command{
		Meta:     m,
		Synopsis: "Make locks safe again after Consul was restored",
		Usage:    "[options]",
		Description: `For the day on which Consul was restored from a snapshot. A restore brings ended
sessions back to life with their locks, forgets what was taken since, and hands out
tokens that were handed out before. This command

  - waits 15s: a lock that was first taken after the snapshot is forgotten, and work
    under it may still be ending,
  - raises the epoch, the first of the three numbers of an order, above every order
    that it finds, so that every order to come is newer, and agents take it,
  - ends every hold of a lock of aimlock, with its session: also a holder that is
    alive loses, and has to take the lock anew,
  - has the next holder of every lock wait once, 15s or what the last one asked for,
    before it does anything: the last one may still be at work.

Stop rollouts first if you can. On a terminal it shows what it would do, and asks;
elsewhere, as in a script, it does it. It can be repeated: after an error, or when a
node says that it has accepted a newer order, run it again. It does not touch the
locks of other tools, nor any file on a node.`,
		Examples: []example{
			{"What would it do?", "aimlock recover -dry-run"},
			{"Do it without a question", "aimlock recover -yes"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&req.DryRun, "dry-run", false, "Show what would be done; change nothing.")
			fs.BoolVar(&yes, "yes", false, "Do not ask.")
			fs.Uint64Var(&req.Epoch, "epoch", 0, "Raise the epoch to `N` at least: for orders that are known to have been\ngiven and are not in Consul.")
		},
		Run: func(ctx context.Context, _ *input) error {
			c, err := m.locksmithWith(&policies.Set{})
			if err != nil {
				return err
			}
			if req.DryRun {
				return m.recoverDryRun(ctx, c, req)
			}
			in, ok := m.Stdin.(*os.File)
			ask := !yes && ok && term.IsTerminal(int(in.Fd()))
			if ask {
				if err := m.askRecover(ctx, c, req, in); err != nil {
					return err
				}
			}
			m.Notef("Waiting %s for what may still be at work under locks that Consul has forgotten\n", locksmith.DefaultQuiesce)
			out, err := c.Recover(ctx, req)
			if m.JSON {
				if perr := m.PrintJSON(out); perr != nil {
					return perr
				}
			} else if out.Epoch != 0 {
				m.Printf("%s", recoveryText(out, err == nil, ask))
			}
			if err != nil {
				return fmt.Errorf("not all is done; `aimlock recover` can be run again: %w", err)
			}
			return nil
		},
	}
}

func (m *Meta) recoverDryRun(ctx context.Context, c *locksmith.Client, req locksmith.RecoverRequest) error {
	out, err := c.Recover(ctx, req)
	if err != nil {
		return err
	}
	if m.JSON {
		return m.PrintJSON(out)
	}
	m.Printf("%s", recoveryText(out, true, false))
	return nil
}

// askRecover shows what would be done, and asks on the terminal in.
func (m *Meta) askRecover(ctx context.Context, c *locksmith.Client, req locksmith.RecoverRequest, in *os.File) error {
	dry := req
	dry.DryRun = true
	out, err := c.Recover(ctx, dry)
	if err != nil {
		return err
	}
	m.Notef("%s", recoveryText(out, true, false))
	m.Notef("This is for a Consul that was restored from a snapshot, or has lost data. Type yes to do it: ")
	line := make(chan string, 1)
	go func() {
		s, _ := bufio.NewReader(in).ReadString('\n')
		line <- s
	}()
	select {
	case s := <-line:
		if strings.TrimSpace(s) == "yes" {
			return nil
		}
		return exitf(ExitFailed, "nothing is changed")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// recoveryText tells of a recovery: after a question only what was done, since the
// rest has just been shown.
func recoveryText(out *locksmith.Recovery, done, asked bool) string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", what, fmt.Sprintf(format, args...))
	}
	switch {
	case out.DryRun:
		fmt.Fprintf(&b, "Would raise the epoch from %d to %d\n", out.Before, out.Epoch)
	case done:
		fmt.Fprintf(&b, "The epoch is raised from %d to %d\n", out.Before, out.Epoch)
	default:
		fmt.Fprintf(&b, "Raising the epoch from %d to %d came only so far\n", out.Before, out.Epoch)
	}
	if !asked {
		recoveryFound(line, out)
	}
	for _, h := range out.Holds {
		what := "left"
		switch {
		case out.DryRun:
			what = "would end"
		case h.Voided:
			what = "ended"
		}
		detail := ""
		if h.Detail != "" {
			detail = "; " + text.Printable(h.Detail)
		}
		line(what, "%s: %s, token %d%s", text.Printable(h.Lock), text.Printable(h.Holder), h.Token, detail)
	}
	if len(out.Holds) == 0 {
		line("holders", "none")
	}
	if out.Free > 0 {
		line("free", "%s, of which the next holder first waits, %s at least: the last one may still be at work", text.Count(out.Free, "lock"), locksmith.DefaultQuiesce)
	}
	if out.Sessions > 0 {
		line("sessions", "%s of aimlock ended that hold none of these", text.Count(out.Sessions, "other session"))
	}
	if !asked {
		recoveryStands(line, out)
	}
	return b.String()
}

// recoveryFound tells of the orders that there are.
func recoveryFound(line func(what, format string, args ...any), out *locksmith.Recovery) {
	for _, f := range out.Orders {
		highest := "none"
		if !f.Highest.IsZero() {
			highest = "the highest is " + f.Highest.String()
		}
		line("orders", "%s: %d, %s", f.Folder, f.Count, highest)
	}
	for _, k := range out.Unreadable {
		line("unreadable", "%s: no order, or one of an epoch that is too high to be followed; see -epoch", text.Printable(k))
	}
}

// recoveryStands tells of what a recovery leaves as it is. Whether it came out of the
// snapshot or was set since cannot be told.
func recoveryStands(line func(what, format string, args ...any), out *locksmith.Recovery) {
	for _, r := range out.Rollouts {
		line("rollout", "%s (%s) is %s, as Consul has it now: look whether it is to go on", text.Printable(r.Name), text.Printable(r.ID), text.Printable(r.State))
	}
	applied := "no policies are applied"
	if p := out.Policies; p != nil {
		applied = fmt.Sprintf("policies serial %d, hash %.12s, by %s", p.Serial, text.Printable(p.Hash), whoText(p.By, p.Who))
	}
	line("in force", "%s", applied)
	if out.Suspended != nil {
		line("in force", "breaking is suspended %s", suspensionText(out.Suspended))
	}
	if out.Silences > 0 {
		line("in force", "%s", text.Count(out.Silences, "silence"))
	}
}

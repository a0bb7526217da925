package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/securefile"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

func newAgentApply(m *Meta) *command {
	var f agentFlags
	var staged stringList
	return &command{
		Meta:     m,
		Synopsis: "Apply files that consul-template staged",
		Usage:    "-staged PATH [options]",
		Description: `Does from the fence on what the agent does, with files that consul-template
rendered: each holds the order, the checksum and the content of one revision, so
that a new order never meets old content. Let consul-template run this as the
command of its template; examples/consul-template has all of it.

The configs of one rollout are applied all or none. Give the staged files of all
of them, with a -staged for each: consul-template renders one after the other,
and as long as not all are of one order this says what it waits for, changes
nothing and exits 1. A file that is not there yet counts as not rendered, where
several are given.

An order that is older than one accepted before is refused.`,
		Examples: []example{{
			"As a command of consul-template",
			"aimlock agent apply -staged /run/aimlock/aim.staged -node web-1 -state-dir /var/lib/aimlock",
		}, {
			"Two configs of one rollout: as the command of both templates",
			"aimlock agent apply -staged /run/a.staged -staged /run/b.staged -node web-1 -state-dir /var/aim",
		}},
		Groups: groupConsul | groupJSON | groupPlugin,
		Flags: func(set *flag.FlagSet) {
			set.Var(&staged, "staged", "A rendered `PATH`. May be given several times.")
			f.register(set)
		},
		Run: func(ctx context.Context, _ *input) error {
			ss, err := readStaged(staged)
			if err != nil {
				return err
			}
			if f.node == "" && m.Env("AIMLOCK_NODE") == "" {
				f.node = ss[0].Node
			}
			a, err := m.agent(&f, nil)
			if err != nil {
				return err
			}
			rs, err := a.Apply(ctx, ss...)
			if m.JSON && len(rs) > 0 {
				if err := m.printReports(rs, len(staged) > 1); err != nil {
					return err
				}
			}
			return m.reportApplied(rs, err)
		},
	}
}

// readStaged reads staged files, of which there is at least one. Of several
// those that are not there yet are left out.
func readStaged(paths []string) ([]*agent.Staged, error) {
	if len(paths) == 0 {
		return nil, usagef("-staged is missing: name the file that consul-template renders")
	}
	var all []*agent.Staged
	var missing error
	for _, path := range paths {
		b, err := readStagedFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			missing = err
			continue
		}
		if err != nil {
			return nil, usagef("-staged: %w", err)
		}
		s, err := agent.ParseStaged(b)
		if err != nil {
			return nil, usagef("-staged %s: %w", path, err)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, usagef("-staged: %w", missing)
	}
	return all, nil
}

// readStagedFile reads what says which file of this machine gets which content:
// whoever can write it does what this process may.
func readStagedFile(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if why := securefile.Writable(path); why != "" {
		return nil, fmt.Errorf("%s; it says what is written where", why)
	}
	return os.ReadFile(path)
}

// printReports prints the report, or all of them where several files were given.
func (m *Meta) printReports(rs []agent.Result, list bool) error {
	if !list {
		return m.PrintJSON(rs[0].Report)
	}
	reps := make([]*records.Actual, len(rs))
	for i, r := range rs {
		reps[i] = r.Report
	}
	return m.PrintJSON(reps)
}

// reportApplied says what became of each config. err is what Apply returned.
func (m *Meta) reportApplied(rs []agent.Result, err error) error {
	var failed *agent.Result
	for _, res := range rs {
		r := res.Report
		switch {
		case r.Waiting != "" || r.Result == records.ResultRefused:
			continue
		case r.Result == records.ResultFailed:
			if failed == nil {
				failed = &res
			}
			continue
		case m.JSON:
			continue
		}
		what := "unchanged"
		if res.Changed {
			what = r.Result
		}
		m.Printf("%s: %s, revision %s, order %s\n", text.Printable(res.Config), what, text.Printable(first(r.Revision, "none")), r.Order)
	}
	if older, ok := errors.AsType[*agent.OlderError](err); ok {
		return refused(ExitFailed, "ERROR: "+text.Printable(older.Error()))
	}
	if wait, ok := errors.AsType[*agent.WaitError](err); ok {
		return refused(ExitFailed, "ERROR: "+text.Printable(wait.Error()))
	}
	if err != nil || failed == nil {
		return err
	}
	if failed.Report.Output != "" {
		_, _ = fmt.Fprintln(m.stderr, failed.Report.Output)
	}
	return exitf(ExitFailed, "%s: revision %s was not applied: %s", failed.Config, failed.Report.Revision, failed.Report.Error)
}

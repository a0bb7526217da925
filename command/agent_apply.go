package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

func newAgentApply(m *Meta) *command {
	var f agentFlags
	staged := ""
	return &command{
		Meta:     m,
		Synopsis: "Apply a file that consul-template staged",
		Usage:    "-staged PATH [options]",
		Description: `Does from the fence on what the agent does, with a file that consul-template
rendered: it holds the order, the checksum and the content of one revision, so
that a new order never meets old content. Let consul-template run this as the
command of its template; examples/consul-template has all of it.

An order that is older than one accepted before is refused.`,
		Examples: []example{{
			"As a command of consul-template",
			"aimlock agent apply -staged /run/aimlock/aim.staged -node web-1 -state-dir /var/lib/aimlock",
		}},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&staged, "staged", "", "The rendered `PATH`.")
			f.register(fs)
		},
		Run: func(ctx context.Context, _ *input) error {
			if staged == "" {
				return usagef("-staged is missing: name the file that consul-template renders")
			}
			s, err := readStaged(staged)
			if err != nil {
				return err
			}
			if f.node == "" && m.Env("AIMLOCK_NODE") == "" {
				f.node = s.Node
			}
			a, err := m.agent(&f)
			if err != nil {
				return err
			}
			res, err := a.Apply(ctx, s)
			if res.Report != nil && m.JSON {
				if err := m.PrintJSON(res.Report); err != nil {
					return err
				}
			}
			if older, ok := errors.AsType[*agent.OlderError](err); ok {
				return refused(ExitFailed, "ERROR: "+text.Printable(older.Error()))
			}
			if err != nil {
				return fmt.Errorf("%s: %w", staged, err)
			}
			return m.reportApplied(res)
		},
	}
}

func readStaged(path string) (*agent.Staged, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, usagef("-staged: %w", err)
	}
	s, err := agent.ParseStaged(b)
	if err != nil {
		return nil, usagef("-staged %s: %w", path, err)
	}
	return s, nil
}

func (m *Meta) reportApplied(res agent.Result) error {
	r := res.Report
	if r.Result == records.ResultFailed {
		if r.Output != "" {
			m.Notef("%s\n", r.Output)
		}
		return exitf(ExitFailed, "%s: revision %s was not applied: %s", res.Config, r.Revision, r.Error)
	}
	if m.JSON {
		return nil
	}
	what := "unchanged"
	if res.Changed {
		what = r.Result
	}
	m.Printf("%s: %s, revision %s, order %s\n", text.Printable(res.Config), what, text.Printable(first(r.Revision, "none")), r.Order)
	return nil
}

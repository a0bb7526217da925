package command

import (
	"cmp"
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

func newRolloutStatus(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Show how a rollout stands",
		Usage:    "[options] [ID|NAME]",
		Description: `Shows state, stages and counts of a rollout, as the nodes' answers give them now.
Without an argument the only unfinished rollout is meant, or else the newest.

It changes nothing and exits 0 whatever the state is.`,
		Examples: []example{{"How far is it?", "aimlock rollout status"}, {"For a program", "aimlock rollout status -json aim-lock-config"}},
		Groups:   groupConsul | groupJSON,
		MaxArgs:  1,
		Run: func(ctx context.Context, in *input) error {
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			id, err := m.findRollout(ctx, r, in.Args)
			if err != nil {
				return err
			}
			h, err := r.Show(ctx, id)
			if err != nil {
				return rolloutError(err)
			}
			if m.JSON {
				return m.PrintJSON(viewRollout(h, ""))
			}
			m.Printf("%s", rolloutText(h))
			return nil
		},
	}
}

func newRolloutList(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "List rollouts, the newest first",
		Usage:    "[options]",
		Description: `Lists every rollout that Consul still has, the newest first. The counts are those
of the last decision; "rollout status" has them as of now.`,
		Examples: []example{{"What was rolled out?", "aimlock rollout list"}},
		Groups:   groupConsul | groupJSON,
		Run: func(ctx context.Context, _ *input) error {
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			heads, err := r.Headers(ctx)
			if err != nil {
				return err
			}
			if m.JSON {
				list := make([]rolloutView, len(heads))
				for i, h := range heads {
					list[i] = viewRollout(h, "")
				}
				return m.PrintJSON(list)
			}
			if len(heads) == 0 {
				m.Notef("No rollouts.\n")
				return nil
			}
			w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ROLLOUT\tSTATE\tSTAGE\tAPPLIED\tSTARTED\tTOOK")
			for _, h := range heads {
				started, took := "-", "-"
				if h.StartedAt != nil {
					started = h.StartedAt.UTC().Format("2006-01-02 15:04:05")
					if h.FinishedAt != nil {
						took = showSeconds(h.FinishedAt.Sub(*h.StartedAt).Seconds())
					}
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%s\t%s\n", h.ID, h.State, h.Stage, h.Counts[orchestrator.ClassApplied], h.Total, started, took)
			}
			return w.Flush()
		},
	}
}

func newRolloutWatch(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Follow a rollout until it ends",
		Usage:    "[options] [ID|NAME]",
		Description: `Follows a rollout by blocking queries and shows its stages: as bars on a terminal,
as plain lines elsewhere, with -json as one object a line. It ends with the
rollout, and changes nothing.`,
		Examples: []example{{"Look on", "aimlock rollout watch"}},
		Groups:   groupConsul | groupJSON,
		MaxArgs:  1,
		Run: func(ctx context.Context, in *input) error {
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			id, err := m.findRollout(ctx, r, in.Args)
			if err != nil {
				return err
			}
			return m.watchRollout(ctx, r, id)
		},
	}
}

func (m *Meta) watchRollout(ctx context.Context, r *runner.Runner, id string) error {
	show := m.progress()
	var end *orchestrator.Header
	var failed error
	last := ""
	err := r.Watch(ctx, id, func(h *orchestrator.Header) bool {
		end = h
		switch line := headline(h); {
		case m.JSON:
			failed = m.printLine(viewRollout(h, ""))
			return failed == nil
		case show.live:
			show.draw(h)
		case line != last:
			last = line
			m.Printf("%s  %s\n", time.Now().UTC().Format("15:04:05"), line)
		}
		return true
	})
	show.close()
	if err != nil || failed != nil {
		return rolloutError(cmp.Or(err, failed))
	}
	if !m.JSON {
		m.Printf("%s", rolloutText(end))
	}
	return nil
}

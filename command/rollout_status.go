package command

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/aim-control/aimlock/orchestrator"
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

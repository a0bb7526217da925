package command

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

func newRolloutStatus(m *Meta) *command {
	verbose := false
	return &command{
		Meta:     m,
		Synopsis: "Show how a rollout stands",
		Usage:    "[options] [ID|NAME]",
		Description: `Shows state, stages and counts of a rollout. Of an unfinished one they are as the
nodes' answers give them now, with who holds its locks; of one that has ended they
are as at its end, and "rollout plan SPEC" says how the fleet stands now.
Without an argument the only unfinished rollout is meant, or else the newest. Of
one that has not begun it shows what it waits for.

It changes nothing and exits 0 whatever the state is.`,
		Examples: []example{{"How far is it?", "aimlock rollout status"}, {"For a program", "aimlock rollout status -json aim-lock-config"}},
		Groups:   groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&verbose, "verbose", false, "Show the rollout's log as well.")
		},
		MaxArgs:  1,
		Complete: completeRollouts,
		Run: func(ctx context.Context, in *input) error {
			r, id, err := m.rolloutOf(ctx, in.Args)
			if err != nil {
				return err
			}
			h, err := r.Show(ctx, id)
			if err != nil {
				return rolloutError(err)
			}
			locks := m.rolloutLocks(ctx, h)
			if w, err := r.Waits(ctx, id); err == nil && w != nil && h.Token == 0 {
				if m.JSON {
					return m.PrintJSON(viewWaiting(w).withLocks(locks))
				}
				m.Printf("%s%s", waitingText(w), locksText(&orchestrator.Header{ID: id}, locks, m.startAgain()))
				return nil
			}
			var events []records.RolloutEvent
			if verbose {
				if events, err = r.Events(ctx, id, 0); err != nil {
					return err
				}
			}
			some, all := m.drifted(ctx, r, h)
			apart := nodesOf(ctx, r, h)
			if m.JSON {
				v := viewRollout(h, "")
				v.Events, v.Drifted, v.DriftedTotal, v.Nodes = events, some, all, namesByClass(apart)
				return m.PrintJSON(v.withLocks(locks))
			}
			m.tellWords(rolloutText(h) + nodesText(apart, h))
			if h.FinishedAt == nil && h.PlanChunks > 0 {
				plan, err := r.PlanOf(ctx, h)
				if err == nil {
					if bake := board.Bake(h, &plan.Spec, time.Now()); bake != "" {
						m.Printf("  %-9s %s\n", "bake", text.Printable(bake))
					}
					left := text.Printable(board.ETA(h, &plan.Spec, measured(ctx, r, h, &plan.Spec), time.Now(), m.given.Judging))
					if _, ok := undriven(h, locks); ok {
						left += ", once somebody drives it again"
					}
					m.tellWords(fmt.Sprintf("  %-9s %s\n", "left", left))
				}
			}
			m.tellWords(afterEnd(h, m.given.Judging, true))
			m.tellWords(locksText(h, locks, m.startAgain()) + driftedText(some, all))
			for _, e := range events {
				if e.Text != "" {
					m.Printf("  %s  %-8s %s\n", e.At.UTC().Format("2006-01-02 15:04:05"), text.Printable(e.Kind), eventText(&e))
				}
			}
			return nil
		},
	}
}

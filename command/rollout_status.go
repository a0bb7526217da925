package command

import "context"

func newRolloutStatus(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Show how a rollout stands",
		Usage:    "[options] [ID|NAME]",
		Description: `Shows state, stages and counts of a rollout, as the nodes' answers give them now.
Without an argument the only unfinished rollout is meant, or else the newest. Of
one that has not begun it shows what it waits for.

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
			if w, err := r.Waits(ctx, id); err == nil && w != nil && h.Token == 0 {
				if m.JSON {
					return m.PrintJSON(viewWaiting(w))
				}
				m.Printf("%s", waitingText(w))
				return nil
			}
			if m.JSON {
				return m.PrintJSON(viewRollout(h, ""))
			}
			m.Printf("%s", rolloutText(h))
			return nil
		},
	}
}

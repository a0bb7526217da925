package command

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

func newAgentStatus(m *Meta) *command {
	var f agentFlags
	return &command{
		Meta:     m,
		Synopsis: "Show what this node has accepted",
		Usage:    "[options]",
		Description: `Reads the state folder of this node's agent: for each config the highest order
accepted, what stands on disk, and what became of the last order. It asks
nobody, takes no lock, and works while the agent runs or does not.`,
		Examples: []example{{"What has this node?", "aimlock agent status -state-dir /var/lib/aimlock"}},
		Groups:   groupJSON,
		Flags:    f.registerState,
		Run: func(context.Context, *input) error {
			dir, err := m.stateFolder(&f)
			if err != nil {
				return err
			}
			all, err := agent.ReadStatus(dir)
			if err != nil {
				return usagef("-state-dir: %w", err)
			}
			if m.JSON {
				return m.PrintJSON(all)
			}
			if len(all) == 0 {
				m.Notef("This node has accepted nothing yet.\n")
				return nil
			}
			w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "CONFIG\tSTATE\tREVISION\tORDER\tDESTINATION\tLAST ERROR")
			for _, s := range all {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", text.Printable(s.Config), s.State, text.Printable(first(s.Revision, "-")), s.Order,
					text.Printable(first(s.Destination, "-")), text.Clip(text.Printable(first(s.Error, "-")), 100))
			}
			return w.Flush()
		},
	}
}

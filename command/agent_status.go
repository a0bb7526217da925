package command

import (
	"context"
	"fmt"
	"slices"
	"strings"
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
accepted, what stands on disk or was given to which target, what became of the
last order, and which other configs it is applied with, all or none. One that is
"waiting" has a newer order of which the others' part is missing. It asks nobody,
takes no lock, and works while the agent runs or does not.`,
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
				m.Notef("No order has arrived on this node yet.\n")
				return nil
			}
			w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
			groups := slices.ContainsFunc(all, func(s agent.Status) bool { return len(s.Configs) > 1 })
			with := func(text string) string {
				if groups {
					return text + "\t"
				}
				return ""
			}
			_, _ = fmt.Fprintln(w, "CONFIG\tSTATE\tREVISION\tORDER\tDESTINATION\t"+with("ALL OR NONE WITH")+"LAST ERROR")
			for _, s := range all {
				others := slices.DeleteFunc(slices.Clone(s.Configs), func(c string) bool { return c == s.Config })
				at := first(s.Destination, "-")
				if s.Target != "" {
					at += " at target " + s.Target
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s%s\n", text.Printable(s.Config), s.State, text.Printable(first(s.Revision, "-")), s.Order,
					text.Printable(at), with(text.Clip(text.Printable(first(strings.Join(others, ", "), "-")), 60)), text.Clip(text.Printable(first(s.Error, s.Drift.Text(), "-")), 100))
			}
			return w.Flush()
		},
	}
}

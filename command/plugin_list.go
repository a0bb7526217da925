package command

import (
	"context"
	"fmt"
	"sync"
	"text/tabwriter"

	"github.com/aim-control/aimlock/internal/text"
)

func newPluginList(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "List the plugins and whether they can be used",
		Usage:    "[options]",
		Description: `Lists the plugins of the config file and of the folder of plugins. Those whose
file is the one that is pinned are started and asked what they are; the others
are not started, and what is wrong with them is said.`,
		Examples: []example{{"All plugins of this machine", "aimlock plugin list -config aimlock.hcl"}},
		Groups:   groupJSON | groupPlugin,
		Run: func(ctx context.Context, _ *input) error {
			h := m.Plugins()
			views := make([]pluginView, len(h.Names()))
			var wg sync.WaitGroup
			for i, name := range h.Names() {
				p, err := h.Plugin(name)
				if err != nil {
					return err
				}
				wg.Go(func() { views[i] = viewPlugin(ctx, p) })
			}
			wg.Wait()
			if err := h.Err(); err != nil {
				m.Notef("Warning: %s\n", text.Printable(err.Error()))
			}
			if m.JSON {
				return m.PrintJSON(views)
			}
			if len(views) == 0 {
				m.Notef("There are no plugins: name a folder of them (-plugin-dir), or write a plugin block into the config file (-config).\n")
				return nil
			}
			w := tabwriter.NewWriter(m.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tKIND\tVERSION\tSTATE\tSHA256")
			for _, v := range views {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, dash(v.kinds()), dash(v.Version), v.State, dash(v.SHA256))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, v := range views {
				if v.Problem != "" {
					m.Printf("\n%s: %s\n", v.Name, v.Problem)
				}
			}
			return nil
		},
	}
}

package command

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/aim-control/aimlock/internal/text"
)

func newPluginInfo(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Show what a plugin is and what it takes",
		Usage:    "[options] NAME|PATH",
		Description: `Starts a plugin and shows what it says of itself: its kinds, the arguments that
each takes, the facts of an evidence plugin, its capabilities and the version of
the protocol. One whose checksum is not pinned is not started: then the checksum
is shown, and the line to add to the config file.

PATH, which has a slash, is a file that need not be in any configuration.`,
		Examples: []example{
			{"A plugin of the config file", "aimlock plugin info -config aimlock.hcl oncall"},
			{"The checksum of a new one", "aimlock plugin info ./oncall"},
		},
		Groups:  groupJSON | groupPlugin,
		MinArgs: 1, MaxArgs: 1,
		Complete: completeFiles("*"),
		Run: func(ctx context.Context, in *input) error {
			p, err := m.findPlugin(in.Args[0])
			if err != nil {
				return err
			}
			v := viewPlugin(ctx, p)
			if m.JSON {
				return m.PrintJSON(v)
			}
			m.Printf("%s", v.text())
			return nil
		},
	}
}

func (v *pluginView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", v.Name)
	if v.Version != "" {
		fmt.Fprintf(&b, " %s", v.Version)
	}
	fmt.Fprintf(&b, "\n")
	if v.Doc != "" {
		fmt.Fprintf(&b, "%s\n", v.Doc)
	}
	fmt.Fprintf(&b, "\nfile      %s\nsha256    %s\n", dash(text.Printable(v.Path)), dash(v.SHA256))
	if v.Problem != "" {
		fmt.Fprintf(&b, "state     %s: %s\n", v.State, v.Problem)
		return b.String()
	}
	fmt.Fprintf(&b, "protocol  %d\n", v.Protocol)
	if v.SDK != "" {
		fmt.Fprintf(&b, "sdk       %s\n", v.SDK)
	}
	for _, k := range v.Kinds {
		fmt.Fprintf(&b, "\n%s", k.Kind)
		if len(k.Capabilities) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(k.Capabilities, ", "))
		}
		fmt.Fprintln(&b)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, f := range k.Facts {
			fmt.Fprintf(w, "  plugin.%s.%s\t%s\t%s\n", v.Name, f.Name, f.Type, f.Doc)
		}
		for _, a := range k.Arguments {
			how := "optional"
			switch {
			case a.Required:
				how = "required"
			case a.Default != nil:
				how = fmt.Sprintf("default %v", a.Default)
			}
			if a.Secret {
				how += ", secret"
			}
			fmt.Fprintf(w, "  %s\t%s, %s\t%s\n", a.Name, a.Type, how, a.Doc)
		}
		_ = w.Flush() // to memory
	}
	return b.String()
}

package command

import (
	"context"

	"github.com/aim-control/aimlock/internal/version"
)

func newVersion(m *Meta) *command {
	return &command{
		Meta:        m,
		Synopsis:    "Print the version of this binary",
		Usage:       "[options]",
		Description: "Prints the version, the commit and the Go release that this binary was built from.",
		Examples:    []example{{"For a bug report", "aimlock version -json"}},
		Groups:      groupJSON,
		Run: func(context.Context, *input) error {
			if m.JSON {
				return m.PrintJSON(version.Get())
			}
			m.Printf("%s\n", version.Get())
			return nil
		},
	}
}

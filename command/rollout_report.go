package command

import (
	"bytes"
	"context"
	"flag"
	"time"

	"github.com/google/renameio/v2"

	"github.com/aim-control/aimlock/internal/htmlreport"
)

func newRolloutReport(m *Meta) *command {
	path := ""
	return &command{
		Meta:     m,
		Synopsis: "Write an HTML report of a rollout",
		Usage:    "[options] [ID|NAME]",
		Description: `Writes all that is known of a rollout as one HTML page: its stages and how long
they took, every node, failures with their output, gates, breaks of its locks, and
its log. The page needs nothing but itself, and runs no script.

Without an argument the only unfinished rollout is meant, or else the newest. It
changes nothing in Consul.`,
		Examples: []example{
			{"To a file", "aimlock rollout report -o report.html aim-lock-config"},
			{"To a program", "aimlock rollout report > report.html"},
		},
		Groups: groupConsul,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&path, "o", "", "Write to `FILE`, which is replaced at once and as a whole. Default: stdout.")
		},
		MaxArgs: 1,
		Run: func(ctx context.Context, in *input) error {
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			id, err := m.findRollout(ctx, r, in.Args)
			if err != nil {
				return err
			}
			story, err := r.Story(ctx, id)
			if err != nil {
				return rolloutError(err)
			}
			var page bytes.Buffer
			if err := htmlreport.Write(&page, story, time.Now()); err != nil {
				return err
			}
			if path == "" || path == "-" {
				_, err = m.Stdout.Write(page.Bytes())
				return err
			}
			if err := renameio.WriteFile(path, page.Bytes(), 0o644); err != nil {
				return exitf(ExitFailed, "-o: %w", err)
			}
			m.Notef("%s: %d bytes about %s\n", path, page.Len(), id)
			return nil
		},
	}
}

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/aim-control/aimlock/internal/demo"
	"github.com/aim-control/aimlock/internal/hostproc"
)

func newDemo(m *Meta) *command {
	dir := ""
	return &command{
		Meta:     m,
		Synopsis: "Tell the whole story with real processes",
		Usage:    "[options]",
		Description: `Starts a Consul inside this process and a fleet of agents as child processes,
rolls a config out in stages, kills the orchestrator with SIGKILL in the middle
of one, and lets the next one find the lock HOT, explain it, break it and go on;
stops that one with SIGSTOP and wakes it after a third has finished, to see it
give up; and writes an order in its name, to see a node refuse it by its token.
It then reads every node's file and exits 0 only if all is as it should be. It
takes less than a minute and needs nothing installed. It needs Linux, as the
proof that a killed process is dead does.`,
		Examples: []example{{"See it", "aimlock demo"}, {"Keep the files to look at", "aimlock demo -dir /tmp/aimlock-demo"}},
		Groups:   0,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&dir, "dir", "", "Write everything to the `FOLDER` and leave it there. It must be empty or not\nexist. Default: a temporary one.")
		},
		Run: func(ctx context.Context, _ *input) error {
			if missing := hostproc.NeedsLinux(); missing != "" {
				return fmt.Errorf("the story needs Linux: %s. On this machine try `aimlock dev`", missing)
			}
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program's own file: %w", err)
			}
			keep := dir != ""
			if !keep {
				if dir, err = os.MkdirTemp("", "aimlock-demo-"); err != nil {
					return err
				}
				defer func() { _ = os.RemoveAll(dir) }()
			} else if err := emptyDir(dir); err != nil {
				return err
			}
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			return demo.Run(ctx, demo.Config{Exe: exe, Dir: dir, Keep: keep, Out: folding{m.Stdout}, Log: m.Log})
		},
	}
}

func emptyDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return usagef("-dir: %w", err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return usagef("-dir: %w", err)
	}
	if len(list) > 0 {
		return usagef("-dir %s is not empty: choose another folder, or empty it", dir)
	}
	return nil
}

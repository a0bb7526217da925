package command_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/aim-control/aimlock/command"
	"github.com/aim-control/aimlock/internal/signals"
)

// TestMain makes the test binary double as aimlock: scripts run it as a child
// process with its own signals, exit code and streams.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"aimlock": func() {
			ctx, stop := signals.Notify(context.Background(), os.Exit)
			code := command.Run(ctx, os.Args[1:], command.OS())
			stop()
			os.Exit(code)
		},
	})
}

// TestScript runs testdata/script/*.txtar. `go test ./command -run
// TestScript/NAME -v` runs one.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
		Setup: func(e *testscript.Env) error {
			// Nothing of the developer's own set-up reaches a script.
			for _, name := range []string{
				"AIMLOCK_CONFIG", "AIMLOCK_LOG", "AIMLOCK_PREFIX", "CONSUL_HTTP_ADDR",
				"CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE", "CONSUL_NAMESPACE", "NOMAD_ADDR", "NOMAD_TOKEN",
			} {
				e.Setenv(name, "")
			}
			e.Setenv("NO_COLOR", "1")
			return nil
		},
	})
}

// exits runs `exits CODE PROGRAM ARGS…` and checks the very exit code, which
// `! exec` does not tell.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		ee, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Check(err)
		}
		got = ee.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

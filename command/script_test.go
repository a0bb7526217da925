package command_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

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
		"testplugin": testPlugin,
		"kv": func() {
			if err := kv(os.Args[1:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		},
	})
}

// TestScript runs testdata/script/*.txtar, whose commands script_tools_test.go
// lists. Nothing of
// the caller's environment reaches a script. `go test ./command -run TestScript/NAME -v` runs one.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		// A program that hangs ends with its stacks printed, and soon.
		Deadline:            time.Now().Add(10 * time.Minute),
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"devconsul":  devConsul,
			"eventually": eventually,
			"exits":      exits,
			"flocked":    flocked,
			"goplugin":   goPlugin,
			"words":      words,
		},
		Setup: func(e *testscript.Env) error {
			// The race detector waits a second at the exit of each program.
			endWhatIsLeft(e)
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
	})
}

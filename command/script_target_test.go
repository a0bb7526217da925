package command_test

import (
	"os"
	"os/exec"

	"github.com/rogpeppe/go-internal/testscript"
)

// goPlugin builds a program of examples/plugins: goplugin NAME FILE.
func goPlugin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: goplugin NAME FILE")
	}
	path := ts.MkAbs(args[1])
	build := exec.Command("go", "build", "-o", path, "github.com/aim-control/aimlock/examples/plugins/"+args[0])
	if out, err := build.CombinedOutput(); err != nil {
		ts.Fatalf("%v\n%s", err, out)
	}
	ts.Check(os.Chmod(path, 0o755)) // whatever the umask is: nobody else may change it
}

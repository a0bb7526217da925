// Command aimlock rolls config files out to a fleet under a Consul lock, and
// breaks that lock safely when its holder is gone. Run `aimlock help`; to read
// the code, go on with command/commands.go and orchestrator/doc.go.
package main

import (
	"context"
	"os"

	"github.com/aim-control/aimlock/command"
	"github.com/aim-control/aimlock/internal/signals"
)

func main() {
	ctx, stop := signals.Notify(context.Background(), os.Exit)
	code := command.Run(ctx, command.Argv(os.Args), command.OS())
	stop()
	os.Exit(code)
}

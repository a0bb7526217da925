package command

import (
	"context"
	"runtime/debug"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/aim-control/aimlock/internal/footprint"
)

// started tells systemd that a daemon's flags and files are in order and that it is
// at work, where systemd wants to know (Type=notify). Nothing that the daemon starts
// may say so in its place.
func (m *Meta) started() {
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		m.Log.Warn("systemd could not be told that this is ready", "error", err)
	}
}

// resting runs a daemon that waits nearly all the time, beside the programs that the
// machine is for: garbage is collected early, and what it does not use is not mapped.
func (m *Meta) resting(ctx context.Context, run func(context.Context) error) error {
	if m.Env("GOGC") == "" {
		debug.SetGCPercent(daemonGC)
	}
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		footprint.Keep(ctx, m.Log)
	}()
	defer func() {
		stop()
		<-done
	}()
	return run(ctx)
}

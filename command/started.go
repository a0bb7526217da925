package command

import "github.com/coreos/go-systemd/v22/daemon"

// started tells systemd that a daemon's flags and files are in order and that it is
// at work, where systemd wants to know (Type=notify). Nothing that the daemon starts
// may say so in its place.
func (m *Meta) started() {
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		m.Log.Warn("systemd could not be told that this is ready", "error", err)
	}
}

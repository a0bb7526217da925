package signals

import (
	"os"
	"os/signal"
	"syscall"
)

// Hangups returns a channel that gets a value for SIGHUP, which asks a daemon to
// read its files again. Several that come before the first was seen to are one.
// stop gives the signal its default meaning back.
func Hangups() (ch <-chan struct{}, stop func()) {
	in, out := make(chan os.Signal, 1), make(chan struct{}, 1)
	done := make(chan struct{})
	signal.Notify(in, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-in:
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, func() {
		signal.Stop(in)
		close(done)
	}
}

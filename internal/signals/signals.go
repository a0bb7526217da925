// Package signals turns SIGINT and SIGTERM into a cancelled context. It
// imports only the standard library.
package signals

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Error is the cause of a context that a signal cancelled.
type Error struct{ Signal syscall.Signal }

func (e Error) Error() string { return fmt.Sprintf("interrupted by signal: %s", e.Signal) }

// ExitCode is what a shell reports for a process that this signal ended.
func (e Error) ExitCode() int { return 128 + int(e.Signal) }

// Notify returns a context that the first SIGINT or SIGTERM cancels, with an
// Error as its cause. A second one calls exit with 128 plus its number: whoever
// sends it wants the process gone now, whatever it is still cleaning up. stop
// gives the signals their default meaning back.
func Notify(parent context.Context, exit func(code int)) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2)
	done := make(chan struct{})
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case s := <-ch:
				e := Error{Signal: s.(syscall.Signal)}
				if n > 0 {
					exit(e.ExitCode())
					return
				}
				cancel(e)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
		cancel(context.Canceled)
	}
}

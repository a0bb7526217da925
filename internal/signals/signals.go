// Package signals turns SIGINT and SIGTERM into a cancelled context. It
// imports only the standard library.
package signals

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Error is the cause of a context that a signal cancelled.
type Error struct{ Signal syscall.Signal }

func (e Error) Error() string { return fmt.Sprintf("interrupted by signal: %s", e.Signal) }

// ExitCode is what a shell reports for a process that this signal ended.
func (e Error) ExitCode() int { return 128 + int(e.Signal) }

// Interrupt ends this process and the others of its group by SIGINT, as ^C does.
// It is for a process that gave its terminal to another group, which ^C ended: a
// shell goes on with its loop or script, unless what it waits for ends by the
// signal and it gets the signal itself. It returns where SIGINT is ignored.
func Interrupt() {
	signal.Reset(syscall.SIGINT)
	if syscall.Kill(0, syscall.SIGINT) == nil && !signal.Ignored(syscall.SIGINT) {
		<-time.After(time.Second) // it is on its way, unless it is blocked
	}
}

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

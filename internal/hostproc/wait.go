package hostproc

import (
	"context"
	"time"
)

// lookEvery is how often a process is looked at whose end the kernel does not
// tell.
const lookEvery = time.Second

// WaitEnd waits until it is no longer so that the process lives, which [Alive]
// then explains, or until ctx ends, whose cause it returns. It notices an end at
// once by a pidfd, and within a second where there is none (before Linux 5.10,
// or where descriptors have run out).
func WaitEnd(ctx context.Context, p Process) error {
	if waitPidfd(ctx, p) {
		return context.Cause(ctx)
	}
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		if alive, _ := Alive(p.PID, p.StartTicks); alive != True {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

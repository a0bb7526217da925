package hostproc

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"
)

// The end of a process is told whether or not its parent reaps it, and a wait
// ends with its context.
func TestWaitEnd(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Lookup(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	if err := WaitEnd(ctx, p); err == nil || err.Error() != "enough" {
		t.Errorf("of a live process: %v", err)
	}
	reused := Process{PID: p.PID, StartTicks: p.StartTicks + 1}
	if err := WaitEnd(t.Context(), reused); err != nil {
		t.Errorf("of a reused pid: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- WaitEnd(t.Context(), p) }()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("of a process that was killed: %v", err)
	}
	if alive, why := Alive(p.PID, p.StartTicks); alive != False {
		t.Errorf("it is %s: %s", alive, why)
	}
	_ = cmd.Wait()
	if err := WaitEnd(t.Context(), p); err != nil {
		t.Errorf("of a process that is reaped: %v", err)
	}
}

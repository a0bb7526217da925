package signals_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/internal/signals"
)

func TestFirstCancelsSecondExits(t *testing.T) {
	exited := make(chan int, 1)
	ctx, stop := signals.Notify(t.Context(), func(code int) { exited <- code })
	defer stop()

	raise(t, syscall.SIGTERM)
	<-ctx.Done()
	sig, ok := errors.AsType[signals.Error](context.Cause(ctx))
	if !ok || sig.Signal != syscall.SIGTERM || sig.ExitCode() != 143 {
		t.Fatalf("cause %v, want SIGTERM with exit code 143", context.Cause(ctx))
	}
	select {
	case code := <-exited:
		t.Fatalf("the first signal ended the process with %d", code)
	default:
	}

	raise(t, syscall.SIGINT)
	if code := <-exited; code != 130 {
		t.Errorf("the second signal ended the process with %d, want 130", code)
	}
}

func TestStop(t *testing.T) {
	ctx, stop := signals.Notify(t.Context(), func(int) { t.Error("exit called") })
	stop()
	<-ctx.Done()
	if _, ok := errors.AsType[signals.Error](context.Cause(ctx)); ok {
		t.Errorf("stop left a signal as the cause: %v", context.Cause(ctx))
	}
}

// Its group ends by SIGINT, which it was not sent, and not by an exit code.
func TestInterrupt(t *testing.T) {
	if os.Getenv("SIGNALS_TEST_INTERRUPT") != "" {
		signals.Interrupt()
		t.Fatal("Interrupt returned")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "sh", "-c", `"$0" -test.run "^TestInterrupt$"; echo went on; true`, exe)
	c.Env = append(os.Environ(), "SIGNALS_TEST_INTERRUPT=1")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.CombinedOutput()
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatalf("sh: %v\n%s", err, out)
	}
	ws, ok := ee.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() || ws.Signal() != syscall.SIGINT {
		t.Errorf("sh ended with %v, want SIGINT\n%s", err, out)
	}
}

func raise(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(syscall.Getpid(), sig); err != nil {
		t.Fatal(err)
	}
}

// Package program runs other programs within bounds: without a shell, in a process
// group of their own that dies with a time-out and with this process, and with no
// more of their output kept than its end. It imports nothing of the rest.
//
// Package supervise is for the child of a lock, which must not outlive its
// parent whatever happens. Here a kill is enough.
package program

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// pipeDelay is how long the output of a program that has ended is still read: a
// child of it may hold the pipe for ever.
const pipeDelay = time.Second

// Call is one run of a program.
type Call struct {
	// Argv is the program and its arguments, Env its whole environment.
	Argv, Env []string
	// Dir is where it runs; empty: where this process does.
	Dir string
	// Out takes what it prints, on both of its outputs.
	Out *Tail
}

// Run runs a program and waits for it. When ctx ends, its whole process group is
// killed: what hangs is often a child of it. The error is nil for status 0, also
// where a child that it left behind holds its output; else an *exec.ExitError, or
// why it could not be run: see Reason.
func Run(ctx context.Context, c Call) error {
	done := make(chan error, 1)
	go func() {
		// The parent-death signal comes when this thread ends, so the thread must
		// not end before the program does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
		cmd.Env, cmd.Dir = c.Env, c.Dir
		cmd.Stdout, cmd.Stderr = c.Out, c.Out
		cmd.SysProcAttr = groupAttr()
		cmd.WaitDelay = pipeDelay
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		done <- cmd.Run()
	}()
	if err := <-done; !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}

// Reason drops the repeated program from an error of Run.
func Reason(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	if xe, ok := errors.AsType[*exec.Error](err); ok {
		return xe.Err
	}
	return err
}

// Signal tells which signal ended a program; ok is false where none did.
func Signal(err *exec.ExitError) (s syscall.Signal, ok bool) {
	ws, ok := err.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return 0, false
	}
	return ws.Signal(), true
}

// Tail keeps the end of what is written to it: at least the last Max bytes, in
// memory of twice that. It is safe for concurrent use.
type Tail struct {
	Max int

	mu  sync.Mutex
	buf []byte
	cut bool
}

// Write implements io.Writer and never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > t.Max {
		// What stood before it is no longer next to what is kept of it.
		t.buf, t.cut, p = t.buf[:0], true, p[len(p)-t.Max:]
	}
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.Max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.Max:]...)
		t.cut = true
	}
	return n, nil
}

// Kept is a copy of what was kept, up to twice Max bytes; cut tells that there was
// more before it.
func (t *Tail) Kept() (b []byte, cut bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf...), t.cut
}

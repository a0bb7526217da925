package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/records"
)

const (
	// defaultTimeout bounds a command whose entry names no time-out.
	defaultTimeout = 30 * time.Second
	// maxTimeout bounds what an entry can ask for: the config is locked while
	// its commands run.
	maxTimeout = 24 * time.Hour
	// pipeDelay is how long the output of a command that has ended is still
	// read: a child of it may hold the pipe for ever.
	pipeDelay = time.Second
	// maxOutput is how much of a command's output is kept: its end.
	maxOutput = 4 << 10
)

// commandError is a command that did not succeed. Its message names the
// program, and never its arguments: they may be secret.
type commandError struct {
	What, Program string
	Err           error
	// Output is the end of what it printed, made harmless.
	Output string
}

func (e *commandError) Error() string {
	return fmt.Sprintf("%s: %s %v", e.What, filepath.Base(e.Program), e.Err)
}

func (e *commandError) Unwrap() error { return e.Err }

// environment is what a command sees: a few plain settings of the agent's own
// environment, never Consul's token, and what it is run for.
func environment(vars map[string]string) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	return env
}

// run runs one command in a process group of its own and waits for it. The
// error is a *commandError, or the cause of ctx if that ended first. clean, if
// it is not nil, takes out of the output what nobody shall see.
func run(ctx context.Context, what string, c *records.Command, env []string, subst *strings.Replacer, clean func(text []byte, cut bool) []byte) error {
	if c == nil || len(c.Argv) == 0 {
		return nil
	}
	timeout := defaultTimeout
	if c.Timeout > 0 {
		timeout = min(time.Duration(c.Timeout*float64(time.Second)), maxTimeout)
	}
	argv := make([]string, len(c.Argv))
	for i, a := range c.Argv {
		argv[i] = subst.Replace(a)
	}
	errTimeout := fmt.Errorf("did not end within %s", timeout)
	tctx, cancel := context.WithTimeoutCause(ctx, timeout, errTimeout)
	defer cancel()

	out := &tail{max: maxOutput, clean: clean}
	done := make(chan error, 1)
	go func() {
		// The parent-death signal comes when this thread ends, so the thread
		// must not end before the command does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- start(tctx, argv, env, out)
	}()
	err := <-done
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		// It ended well; a child that it left behind holds its output.
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case tctx.Err() != nil:
		err = errTimeout
	default:
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			err = describeExit(ee)
		} else {
			err = fmt.Errorf("cannot be run: %w", cutPath(err))
		}
	}
	return &commandError{What: what, Program: argv[0], Err: err, Output: out.String()}
}

func start(ctx context.Context, argv, env []string, out *tail) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = groupAttr()
	cmd.WaitDelay = pipeDelay
	cmd.Cancel = func() error {
		// The whole group: what hangs is often a child of the command.
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return cmd.Run()
}

func describeExit(e *exec.ExitError) error {
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Errorf("was ended by signal %d (%s)", int(ws.Signal()), ws.Signal())
	}
	return fmt.Errorf("ended with status %d", e.ExitCode())
}

// cutPath drops the repeated program from an error of exec.
func cutPath(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	if xe, ok := errors.AsType[*exec.Error](err); ok {
		return xe.Err
	}
	return err
}

// tail keeps the last max bytes written to it, in memory of twice that.
type tail struct {
	mu  sync.Mutex
	max int
	buf []byte
	cut bool
	// clean is applied to what was kept; cut tells it that the beginning is
	// missing.
	clean func(text []byte, cut bool) []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > t.max {
		p, t.cut = p[len(p)-t.max:], true
	}
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
		t.cut = true
	}
	return n, nil
}

// String is the output as it may be shown to people and put in JSON: no
// control characters but line ends and tabs, and valid UTF-8.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, cut := t.buf, t.cut
	if t.clean != nil {
		b = t.clean(b, cut)
	}
	if len(b) > t.max {
		b, cut = b[len(b)-t.max:], true
	}
	s := harmless(b)
	if cut {
		s = "…" + s
	}
	return s
}

func harmless(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == utf8.RuneError && n == 1:
			s.WriteRune(utf8.RuneError)
		case r == '\r' && len(b) > 1 && b[1] == '\n':
		case r == '\n' || r == '\t':
			s.WriteRune(r)
		case r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			fmt.Fprintf(&s, `\x%02x`, r)
		default:
			s.WriteRune(r)
		}
		b = b[n:]
	}
	return strings.TrimRight(s.String(), "\n\t ")
}

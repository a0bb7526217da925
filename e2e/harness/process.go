package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Spec is a command to run.
type Spec struct {
	Path string
	Args []string
	// Env is added to the test's own environment, less what that says about
	// Consul, Nomad and aimlock.
	Env []string
	Dir string
	// Name names it in failures, the base of Path if empty.
	Name string
	// Stdin may be nil.
	Stdin []byte
	// Enter moves the thread that starts the command to where it shall run, such
	// as to a namespace. The thread is not used for anything else. It may be nil.
	Enter func() error
	// Logs is the folder for stdout and stderr, to which a second run appends; ""
	// is one that goes away with the test.
	Logs string
}

// Process is a command that runs, or ran. Its methods may be used from several
// goroutines.
type Process struct {
	t      testing.TB
	spec   Spec
	cmd    *exec.Cmd
	stdout string // files
	stderr string
	done   chan struct{}
	err    error // valid after done
	// released is set by Release: its number may be somebody else's by now.
	released atomic.Bool
}

// Start runs a command until it ends or the test does. It leads a process group
// of its own, so that a child of it which is left over dies with the test too.
func Start(t testing.TB, spec Spec) *Process {
	t.Helper()
	if spec.Name == "" {
		spec.Name = filepath.Base(spec.Path)
	}
	p := &Process{t: t, spec: spec, done: make(chan struct{})}
	dir := spec.Logs
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p.stdout, p.stderr = filepath.Join(dir, "stdout"), filepath.Join(dir, "stderr")
	p.run()
	t.Cleanup(func() {
		if p.released.Load() {
			return
		}
		p.KillGroup()
		if t.Failed() && spec.Logs == "" {
			t.Logf("%s, end of stderr:\n%s", spec.Name, tail(p.Stderr(), 60))
		}
	})
	return p
}

func (p *Process) run() {
	p.t.Helper()
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			p.t.Fatal(err)
		}
		return f
	}
	out, errs := open(p.stdout), open(p.stderr)
	p.cmd = exec.Command(p.spec.Path, p.spec.Args...)
	p.cmd.Dir = p.spec.Dir
	p.cmd.Env = append(cleanEnv(), p.spec.Env...)
	p.cmd.Stdout, p.cmd.Stderr = out, errs
	if p.spec.Stdin != nil {
		p.cmd.Stdin = bytes.NewReader(p.spec.Stdin)
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is tied to the thread that forks: this goroutine
		// keeps it until the child is gone.
		runtime.LockOSThread()
		defer close(p.done)
		var err error
		if p.spec.Enter != nil {
			err = p.spec.Enter() // so the thread ends with this goroutine
		} else {
			defer runtime.UnlockOSThread()
		}
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
		out.Close()
		errs.Close()
	}()
	if err := <-started; err != nil {
		p.t.Fatalf("start %s: %v", p.spec.Name, err)
	}
}

// cleanEnv is the environment without the settings of the tools under test.
func cleanEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "CONSUL_") || strings.HasPrefix(kv, "NOMAD_") || strings.HasPrefix(kv, "AIMLOCK_")
	})
}

// Pid is the process ID.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends a signal; a process that has ended is no failure.
func (p *Process) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("signal %v to %s: %v", sig, p.spec.Name, err)
	}
}

// Kill kills the process alone (kill -9) and waits for its end.
func (p *Process) Kill() {
	p.t.Helper()
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// KillGroup kills the process and all children of it that kept its group.
func (p *Process) KillGroup() {
	select {
	case <-p.done:
		// The kernel gives the number of a group to nobody as long as the group has
		// members. So where a process has it that is not this one, which was reaped,
		// the group is gone, and what has its number by now is somebody else's.
		if err := syscall.Kill(p.cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
			return
		}
	default:
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		p.t.Logf("kill the group of %s: %v", p.spec.Name, err)
	}
	<-p.done
}

// Release kills what is left of the process and its group, as the end of the test
// does for all others. A test that starts thousands calls it as soon as it is done
// with one: when the test ends, another program may have the same number.
func (p *Process) Release() {
	if !p.released.Swap(true) {
		p.KillGroup()
	}
}

// Freeze stops the process (SIGSTOP) until Thaw.
func (p *Process) Freeze() { p.t.Helper(); p.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on (SIGCONT).
func (p *Process) Thaw() { p.t.Helper(); p.Signal(syscall.SIGCONT) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns the exit code; 128 + n after signal n. The
// test fails if it does not end within limit.
func (p *Process) Wait(limit time.Duration) int {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), limit)
	defer cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.t.Fatalf("%s has not ended within %v; stdout:\n%s\nstderr:\n%s", p.spec.Name, limit, tail(p.Stdout(), 30), tail(p.Stderr(), 30))
	}
	ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// CPU is the processor time that the ended process has used.
func (p *Process) CPU() time.Duration {
	<-p.done
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// Stdout is what it has written to stdout so far.
func (p *Process) Stdout() string { return read(p.stdout) }

// Stderr is what it has written to stderr so far.
func (p *Process) Stderr() string { return read(p.stderr) }

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	return string(b)
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("(%d lines left out)", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}

// Result is how a command ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Run runs a command to its end, which must come within limit.
func Run(t testing.TB, limit time.Duration, spec Spec) Result {
	t.Helper()
	p := Start(t, spec)
	code := p.Wait(limit)
	return Result{code, p.Stdout(), p.Stderr()}
}

// Output runs a command that must exit 0, and returns its stdout.
func Output(t testing.TB, limit time.Duration, spec Spec) string {
	t.Helper()
	r := Run(t, limit, spec)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit %d; stdout:\n%s\nstderr:\n%s", spec.Path, strings.Join(spec.Args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Eventually tries until it succeeds, and fails the test after limit. It is for
// what nothing else tells: a file, a process.
func Eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

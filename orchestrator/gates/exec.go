package gates

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

const (
	// maxOutput is how much of a program's output is kept: its end.
	maxOutput = 4 << 10
	// pipeDelay is how long the output of a program that has ended is still
	// read: a child of it may hold the pipe for ever.
	pipeDelay = time.Second
)

// execGate runs a program on the orchestrator's machine, without a shell. It
// passes with status 0 and fails with 1; every other end of it is unknown.
type execGate struct{ env environment }

var _ Kind = (*execGate)(nil)

func (k *execGate) Ask(ctx context.Context, q Question) Answer {
	g := q.Gate.Exec
	if g == nil || len(g.Command) == 0 {
		return unknown("the gate has no command")
	}
	if p := g.Command[0]; q.Dir == "" && !filepath.IsAbs(p) && strings.ContainsRune(p, filepath.Separator) {
		return unknown("%s is relative to the folder of the spec, and that is not known here", text.Printable(p))
	}
	dir, err := os.MkdirTemp("", "aimlock-gate-")
	if err != nil {
		return failed("%v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	env, err := k.environ(g, &q, dir)
	if err != nil {
		return failed("%v", err)
	}
	program := text.Printable(filepath.Base(g.Command[0]))
	out := &tail{max: maxOutput}
	done := make(chan error, 1)
	go func() {
		// The parent-death signal comes when this thread ends, so the thread
		// must not end before the program does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- runGroup(ctx, g.Command, env, q.Dir, out)
	}()
	err = <-done
	last := out.lastLine()
	why := func(s string) string {
		if last != "" {
			s += ": " + last
		}
		return s
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return answer(orchestrator.Pass, "exit 0", "%s", why(program+" ended with status 0"))
	case ctx.Err() != nil:
		return failed("%s", why(program+" did not end in time, and was killed"))
	}
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return failed("%s cannot be run: %v", program, cutPath(err))
	}
	if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		a := failed("%s", why(fmt.Sprintf("%s was ended by signal %d (%s)", program, int(ws.Signal()), ws.Signal())))
		a.Value = fmt.Sprintf("signal %d", int(ws.Signal()))
		return a
	}
	a := answer(orchestrator.Fail, fmt.Sprintf("exit %d", ee.ExitCode()), "%s", why(fmt.Sprintf("%s ended with status %d", program, ee.ExitCode())))
	if ee.ExitCode() != 1 {
		a.Answer = orchestrator.Unknown
	}
	return a
}

// environ is what a program sees: a few plain settings of this process's
// environment, what it is asked for, and what the gate adds.
func (k *execGate) environ(g *orchestrator.GateExec, q *Question, dir string) ([]string, error) {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"} {
		if v, ok := k.env.lookup(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.Env)) {
		v, err := k.env.expand(fmt.Sprintf("env %q", name), g.Env[name])
		if err != nil {
			return nil, err
		}
		env = append(env, name+"="+v)
	}
	// The names of ten thousand nodes are too long for an environment.
	updated, rest := filepath.Join(dir, "updated"), filepath.Join(dir, "rest")
	if err := errors.Join(writeLines(updated, q.Updated), writeLines(rest, q.Rest)); err != nil {
		return nil, err
	}
	return append(env,
		"AIMLOCK_ROLLOUT="+q.Rollout, "AIMLOCK_STAGE="+q.Stage, "AIMLOCK_GATE="+q.Gate.Name,
		fmt.Sprintf("AIMLOCK_EPOCH=%d", q.Epoch), fmt.Sprintf("AIMLOCK_TOKEN=%d", q.Token),
		"AIMLOCK_UPDATED_NODES="+updated, "AIMLOCK_REST_NODES="+rest,
	), nil
}

func writeLines(path string, lines []string) error {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// runGroup runs a program in a process group of its own, which dies with it when
// ctx ends.
func runGroup(ctx context.Context, argv, env []string, dir string, out *tail) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir = env, dir
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = groupAttr()
	cmd.WaitDelay = pipeDelay
	cmd.Cancel = func() error {
		// The whole group: what hangs is often a child of the program.
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	return cmd.Run()
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

// tail keeps the last max bytes written to it, in memory of twice that. It is
// read when the program has ended.
type tail struct {
	max int
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	p = p[max(0, len(p)-t.max):]
	if t.buf = append(t.buf, p...); len(t.buf) > 2*t.max {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
	}
	return n, nil
}

// lastLine is the last line that is not empty: where programs say what is wrong.
func (t *tail) lastLine() string {
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(t.buf), "?")), "\n")
	return text.Clip(text.Printable(strings.TrimSpace(lines[len(lines)-1])), 200)
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/program"
	"github.com/aim-control/aimlock/internal/records"
)

const (
	// defaultTimeout bounds a command whose entry names no time-out.
	defaultTimeout = 30 * time.Second
	// maxTimeout bounds what an entry can ask for: the config is locked while
	// its commands run.
	maxTimeout = 24 * time.Hour
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

	out := &program.Tail{Max: maxOutput}
	err := program.Run(tctx, program.Call{Argv: argv, Env: env, Dir: "/", Out: out})
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case tctx.Err() != nil:
		err = errTimeout
	default:
		if ee, ok := errors.AsType[*exec.ExitError](err); ok {
			err = describeExit(ee)
		} else {
			err = fmt.Errorf("cannot be run: %w", program.Reason(err))
		}
	}
	return &commandError{What: what, Program: argv[0], Err: err, Output: shown(out, clean)}
}

func describeExit(e *exec.ExitError) error {
	if sig, killed := program.Signal(e); killed {
		return fmt.Errorf("was ended by signal %d (%s)", int(sig), sig)
	}
	return fmt.Errorf("ended with status %d", e.ExitCode())
}

// shown is output as it may be shown to people and put in JSON: no control
// characters but line ends and tabs, and valid UTF-8. clean, if it is not nil, is
// applied before it is cut.
func shown(t *program.Tail, clean func(text []byte, cut bool) []byte) string {
	b, cut := t.Kept()
	if clean != nil {
		b = clean(b, cut)
	}
	if len(b) > t.Max {
		b, cut = b[len(b)-t.Max:], true
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

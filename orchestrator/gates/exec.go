package gates

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/program"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// maxOutput is how much of a program's output is kept: its end.
const maxOutput = 4 << 10

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
	name := text.Printable(filepath.Base(g.Command[0]))
	out := &program.Tail{Max: maxOutput}
	err = program.Run(ctx, program.Call{Argv: g.Command, Env: env, Dir: q.Dir, Out: out})
	last := lastLine(out)
	why := func(s string) string {
		if last != "" {
			s += ": " + last
		}
		return s
	}
	switch {
	case err == nil:
		return answer(orchestrator.Pass, "exit 0", "%s", why(name+" ended with status 0"))
	case ctx.Err() != nil:
		return failed("%s", why(name+" did not end in time, and was killed"))
	}
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return failed("%s cannot be run: %v", name, program.Reason(err))
	}
	if sig, killed := program.Signal(ee); killed {
		a := failed("%s", why(fmt.Sprintf("%s was ended by signal %d (%s)", name, int(sig), sig)))
		a.Value = fmt.Sprintf("signal %d", int(sig))
		return a
	}
	a := answer(orchestrator.Fail, fmt.Sprintf("exit %d", ee.ExitCode()), "%s", why(fmt.Sprintf("%s ended with status %d", name, ee.ExitCode())))
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

// lastLine is the last line that is not empty: where programs say what is wrong.
func lastLine(t *program.Tail) string {
	b, _ := t.Kept()
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(b), "?")), "\n")
	return text.Clip(text.Printable(strings.TrimSpace(lines[len(lines)-1])), 200)
}

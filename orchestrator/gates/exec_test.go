package gates

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

func execQuestion(env map[string]string, command ...string) Question {
	return Question{
		Gate: orchestrator.Gate{
			Name: "smoke", Kind: orchestrator.GateKindExec, Timeout: 20 * time.Second,
			Exec: &orchestrator.GateExec{Command: command, Env: env},
		},
		Rollout: "r-1", Stage: "canary", Epoch: 3, Token: 7,
		Updated: []string{"n1", "n2"}, Rest: []string{"n3"},
	}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// program writes an executable script.
func shell(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestExec(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", secret)
	dir := t.TempDir()
	shell(t, filepath.Join(dir, "here"), `echo "from $(pwd)"; exit 1`)
	if err := os.WriteFile(filepath.Join(dir, "not-executable"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		command   []string
		env       map[string]string
		want, why string
		value     string
	}{
		{name: "0", command: sh("exit 0"), want: "pass", why: "sh ended with status 0", value: "exit 0"},
		{name: "1", command: sh("echo first; echo last >&2; echo; exit 1"), want: "fail", why: "sh ended with status 1: last", value: "exit 1"},
		{name: "2", command: sh("exit 2"), want: "unknown", why: "status 2", value: "exit 2"},
		{name: "127", command: sh("no-such-program-of-anybody"), want: "unknown", why: "status 127", value: "exit 127"},
		{name: "signal", command: sh("kill -TERM $$"), want: "error", why: "signal 15", value: "signal 15"},
		{name: "missing", command: []string{"./missing"}, want: "error", why: "missing cannot be run: no such file"},
		{name: "not on PATH", command: []string{"no-such-program-of-anybody"}, want: "error", why: "cannot be run: executable file not found"},
		{name: "not executable", command: []string{"./not-executable"}, want: "error", why: "permission denied"},
		{name: "of the spec's folder", command: []string{"./here"}, want: "fail", why: "from " + resolved, value: "exit 1"},
		{name: "escapes", command: sh(`printf '\033[2Jred\033[0m \377\n'; exit 1`), want: "fail", why: "red", value: "exit 1"},
		{name: "huge output", command: sh(`head -c 3000000 /dev/zero | tr '\0' x; echo; echo the end; exit 1`), want: "fail", why: "the end", value: "exit 1"},
		{name: "huge line", command: sh(`head -c 3000000 /dev/zero | tr '\0' x; exit 1`), want: "fail", why: "xxx", value: "exit 1"},
		{name: "env", command: sh(`[ "$A" = "x s3cr3t-value y" ] && echo "$AIMLOCK_ROLLOUT $AIMLOCK_STAGE $AIMLOCK_GATE $AIMLOCK_EPOCH $AIMLOCK_TOKEN"`), env: map[string]string{"A": "x ${env.TOKEN} y"}, want: "pass", why: "r-1 canary smoke 3 7", value: "exit 0"},
		{name: "env that is not there", command: sh("exit 0"), env: map[string]string{"A": "${env.ABSENT}"}, want: "error", why: `env "A" needs the environment variable ABSENT`},
		{name: "no token of Consul", command: sh(`[ -z "${CONSUL_HTTP_TOKEN+x}" ]`), want: "pass", why: "status 0", value: "exit 0"},
		{name: "nodes", command: sh(`echo $(cat "$AIMLOCK_UPDATED_NODES") and $(cat "$AIMLOCK_REST_NODES")`), want: "pass", why: "n1 n2 and n3", value: "exit 0"},
		{name: "no stdin", command: sh(`read x && exit 1; exit 0`), want: "pass", why: "status 0", value: "exit 0"},
		{name: "arguments are not for a shell", command: []string{"/bin/echo", "$(id)", ";", "*"}, want: "pass", why: "$(id) ; *", value: "exit 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := execQuestion(c.env, c.command...)
			q.Dir = dir
			a := testSet(Config{}).Ask(t.Context(), q)
			check(t, a, c.want, c.why)
			if a.Value != c.value {
				t.Errorf("value %q, want %q", a.Value, c.value)
			}
		})
	}
}

// TestExecNodeFiles: the files of nodes are gone when the answer is there.
func TestExecNodeFiles(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	out := filepath.Join(t.TempDir(), "out")
	a := testSet(Config{}).Ask(t.Context(), execQuestion(nil, sh(`stat -c %a "$AIMLOCK_UPDATED_NODES" > `+out)...))
	check(t, a, "pass", "")
	if b, err := os.ReadFile(out); err != nil || string(b) != "600\n" {
		t.Errorf("the mode of the file is %q, %v", b, err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestExecTimeout: the time-out ends the whole process group, a grandchild that
// ignores signals included.
func TestExecTimeout(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: needs /proc")
	}
	pids := filepath.Join(t.TempDir(), "pids")
	q := execQuestion(nil, sh(`trap '' TERM INT; (trap '' TERM; echo $(exec sh -c 'echo $PPID') >> `+pids+`; while :; do sleep 1; done) & echo $$ >> `+pids+`; echo on the way; wait`)...)
	q.Gate.Timeout = 400 * time.Millisecond
	start := time.Now()
	a := testSet(Config{}).Ask(t.Context(), q)
	check(t, a, "error", "")
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	list := strings.Fields(string(b))
	if len(list) != 2 {
		t.Fatalf("processes %q", list)
	}
	for _, f := range list {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		gone(t, pid)
	}
}

// gone waits for the end of a process; one that nobody has reaped yet has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		_, state, _ := strings.Cut(string(stat), ") ")
		if err != nil || strings.HasPrefix(state, "Z") || syscall.Kill(pid, 0) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("process %d lives on: %s", pid, stat)
		}
	}
}

// TestExecHeldPipe: a daemon that keeps the output open does not hold up the
// answer, and does not change it.
func TestExecHeldPipe(t *testing.T) {
	for code, want := range map[string]string{"0": "pass", "1": "fail", "3": "unknown"} {
		q := execQuestion(nil, sh(`sleep 60 & echo $!; exit `+code)...)
		start := time.Now()
		a := testSet(Config{}).Ask(t.Context(), q)
		check(t, a, want, "sh ended with status "+code)
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("it took %s", d)
		}
		_, last, _ := strings.Cut(a.Why, ": ")
		pid, err := strconv.Atoi(last)
		if err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

package program

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestRun(t *testing.T) {
	t.Parallel()
	run := func(ctx context.Context, argv ...string) (string, error) {
		out := &Tail{Max: 64}
		err := Run(ctx, Call{Argv: argv, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Dir: "/", Out: out})
		b, _ := out.Kept()
		return string(b), err
	}
	if out, err := run(t.Context(), "sh", "-c", "echo $A; pwd; echo to stderr >&2"); err != nil || out != "b\n/\nto stderr\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err := run(t.Context(), "sh", "-c", "exit 3")
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok || ee.ExitCode() != 3 {
		t.Errorf("exit 3: %v", err)
	} else if s, killed := Signal(ee); killed {
		t.Errorf("exit 3 is taken for signal %v", s)
	}
	_, err = run(t.Context(), "sh", "-c", "kill -TERM $$")
	if ee, ok := errors.AsType[*exec.ExitError](err); !ok {
		t.Errorf("a signal: %v", err)
	} else if s, killed := Signal(ee); !killed || s != syscall.SIGTERM {
		t.Errorf("signal %v, %v", s, killed)
	}
	if _, err := run(t.Context(), "/nothing/here"); Reason(err) == nil || strings.Contains(Reason(err).Error(), "nothing") {
		t.Errorf("no program: %v", Reason(err))
	}
	// A child that is left behind does not keep Run, and a time-out ends the whole
	// group.
	if _, err := run(t.Context(), "sh", "-c", "sleep 600 & exit 0"); err != nil {
		t.Errorf("a child left behind: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := run(ctx, "sh", "-c", "sleep 600; echo never"); err == nil || time.Since(began) > 30*time.Second {
		t.Errorf("a time-out: %v after %s", err, time.Since(began))
	}
}

func TestTail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tail := &Tail{Max: rapid.IntRange(1, 8).Draw(t, "max")}
		all := ""
		for _, s := range rapid.SliceOf(rapid.StringMatching(`[a-z]{0,20}`)).Draw(t, "writes") {
			if n, err := tail.Write([]byte(s)); n != len(s) || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			all += s
		}
		b, cut := tail.Kept()
		if got := string(b); !strings.HasSuffix(all, got) || len(got) < min(len(all), tail.Max) || len(got) > 2*tail.Max || cut != (got != all) {
			t.Fatalf("of %q %q is kept, cut %v", all, got, cut)
		}
	})
}

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

const journalPolicy = `policy "fleet" {
  locks = ["push"]

  hot "stalled" {
    when   = progress.age > duration("%s")
    for    = "1s"
    reason = "no progress at ${progress.done} of ${progress.total}"
  }

  break {
    approval = "auto"

    confirm {
      observations = 2
      every        = "500ms"
    }

    step "take" {
    }
  }
}
`

// A holder works, stalls and is broken by the locksmith; another one comes next.
// The story tells all of it in its order, and the journal of it, judged anew,
// shows what other policies would have made of it.
func TestStoryOfAStall(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	dir := t.TempDir()
	policy := func(name, bound string) string {
		path := filepath.Join(dir, name+".hcl")
		if err := os.WriteFile(path, fmt.Appendf(nil, journalPolicy, bound), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	in, journal := policy("in", "3s"), filepath.Join(dir, "journal")
	guard := harness.Start(t, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"locksmith", "-policy", in, "-journal", journal}, Env: c.Env()})

	progress := filepath.Join(dir, "progress")
	harness.Start(t, lockExec(t, c, "-policy", in, "-progress-file", progress, "push", "--",
		"sh", "-c", `echo 1/4 nodes >"$0"; sleep 600`, progress))
	harness.Eventually(t, cmdLimit, "the first has the lock and works", func() bool {
		_, err := os.Stat(progress)
		return err == nil
	})
	next := harness.Run(t, 2*cmdLimit, lockExec(t, c, "-policy", in, "-no-break", "push", "--", "echo", "next"))
	if next.Code != 0 || next.Stdout != "next\n" {
		t.Fatalf("who came next: exit %d, %q\n%s\nlocksmith: %s", next.Code, next.Stdout, next.Stderr, guard.Stderr())
	}
	explain := func() (story struct {
		Cause    string
		Timeline []struct{ At, What, By, Detail, Clock, Source string }
	}) {
		out := harness.Output(t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"lock", "explain", "-json", "-policy", in, "-journal", journal, "push"}, Env: c.Env()})
		if err := json.Unmarshal([]byte(out), &story); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return story
	}
	want := []string{"acquired", "progress", "progress stands still from here", "judged HOT by rule stalled", "break begun", "step take done", "break unlocked", "acquired", "released"}
	story := explain()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the story told last: %s\n%+v", story.Cause, story.Timeline)
		}
	})
	harness.Eventually(t, cmdLimit, "the story is told", func() bool {
		at := 0
		story = explain()
		for _, e := range story.Timeline {
			if at < len(want) && e.What == want[at] {
				at++
			}
		}
		return at == len(want)
	})
	if !strings.Contains(story.Cause, "let go of it") {
		t.Errorf("cause: %q", story.Cause)
	}
	begun := 0
	for _, e := range story.Timeline {
		if e.What == "break begun" {
			begun++
			if !strings.Contains(e.Detail, "no progress at 1 of 4; on progress.age = ") {
				t.Errorf("%+v", e)
			}
		}
	}
	if begun != 1 {
		t.Errorf("the break is told %d times: %+v", begun, story.Timeline)
	}

	guard.Signal(syscall.SIGTERM)
	guard.Wait(cmdLimit)
	replay := func(policy string) (code int, rep struct {
		Differences []struct {
			Lock      string
			Then, Now struct{ State, Rule, Broken string }
		}
		Skipped int
	}) {
		r := harness.Run(t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"policy", "replay", "-json", "-detailed-exitcode", "-policy", policy, journal}})
		if err := json.Unmarshal([]byte(r.Stdout), &rep); err != nil {
			t.Fatalf("%v\n%s%s", err, r.Stdout, r.Stderr)
		}
		return r.Code, rep
	}
	if code, rep := replay(in); code != 0 || len(rep.Differences) > 0 || rep.Skipped > 0 {
		t.Errorf("by the very policies: exit %d, %+v", code, rep)
	}
	code, rep := replay(policy("loose", "1h"))
	if code != 3 || len(rep.Differences) != 1 || rep.Differences[0].Lock != "push" || rep.Differences[0].Then.State != "HOT" ||
		rep.Differences[0].Then.Rule != "stalled" || rep.Differences[0].Then.Broken == "" || rep.Differences[0].Now.State != "HELD" {
		t.Errorf("by looser policies: exit %d, %+v", code, rep)
	}
	code, rep = replay(policy("strict", "1s"))
	if code != 3 || len(rep.Differences) != 1 || rep.Differences[0].Then.State != "HELD" || rep.Differences[0].Now.State != "HOT" || rep.Differences[0].Now.Broken == "" {
		t.Errorf("by stricter policies: exit %d, %+v", code, rep)
	}
}

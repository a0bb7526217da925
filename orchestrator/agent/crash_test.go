package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// TestMain lets the test binary be an agent that is killed in mid-work.
func TestMain(m *testing.M) {
	if at := os.Getenv("AIMLOCK_TEST_CRASH_AT"); at != "" {
		crashChild(at)
		os.Exit(0)
	}
	flag.Parse()
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = f.Value.Set(checks)
	}
	os.Exit(m.Run())
}

// story is an order carried out on a node that has "one" by r1; what stands
// before and what shall stand after it.
type story struct {
	name          string
	setup         func(t testing.TB, r *rig)
	entry         func(trace string) *records.Desired
	content       string
	before, after string
	result        string
}

func stories() []story {
	seen := func(trace string) *records.Command {
		return sh(`cat "$AIMLOCK_DESTINATION" >>` + trace + ` 2>/dev/null || echo none >>` + trace)
	}
	return []story{
		{
			name: "first", content: "two\n", after: "two\n", result: records.ResultApplied,
			setup: func(testing.TB, *rig) {},
			entry: func(trace string) *records.Desired {
				d := entry(order(2, 1), "r2", "two\n")
				d.Validate, d.Reload, d.Healthy = sh("true"), seen(trace), sh("true")
				return d
			},
		},
		{
			name: "apply", content: "two\n", before: "one\n", after: "two\n", result: records.ResultApplied,
			setup: func(t testing.TB, r *rig) {
				r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
			},
			entry: func(trace string) *records.Desired {
				d := entry(order(2, 1), "r2", "two\n")
				d.Validate, d.Reload, d.Healthy = sh("true"), seen(trace), sh("true")
				return d
			},
		},
		{
			name: "unhealthy", content: "two\n", before: "one\n", after: "one\n", result: records.ResultFailed,
			setup: func(t testing.TB, r *rig) {
				r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
			},
			entry: func(trace string) *records.Desired {
				d := entry(order(2, 1), "r2", "two\n")
				d.Reload, d.Healthy = seen(trace), sh("exit 1")
				return d
			},
		},
		{
			name: "restore", before: "two\n", after: "one\n", result: records.ResultRolledBack,
			setup: func(t testing.TB, r *rig) {
				r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
				r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
			},
			entry: func(trace string) *records.Desired {
				d := restoreEntry(order(2, 2), "r2")
				d.Reload = seen(trace)
				return d
			},
		},
		{
			name: "restore to nothing", before: "two\n", after: "", result: records.ResultRolledBack,
			setup: func(t testing.TB, r *rig) {
				r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
			},
			entry: func(trace string) *records.Desired {
				d := restoreEntry(order(2, 2), "r2")
				d.Reload = seen(trace)
				return d
			},
		},
	}
}

// crashChild carries out one story and kills itself at the step whose number
// is given.
func crashChild(at string) {
	n, err := strconv.Atoi(at)
	if err != nil {
		panic(err)
	}
	r := &rig{root: os.Getenv("AIMLOCK_TEST_ROOT"), state: os.Getenv("AIMLOCK_TEST_STATE")}
	r.fence = r.newFence()
	i := 0
	r.step = func(string) {
		if i == n {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		i++
	}
	for _, s := range stories() {
		if s.name == os.Getenv("AIMLOCK_TEST_STORY") {
			_, _ = r.apply(context.Background(), conf, s.entry(os.Getenv("AIMLOCK_TEST_TRACE")), from(s.content))
		}
	}
	groupChild(r, os.Getenv("AIMLOCK_TEST_STORY"))
}

// TestKilled ends an agent by SIGKILL between any two of its writes. The file
// must be the old or the new one, whole; and a restart must come to the same
// end as if nothing had happened, with the programs told of what stands.
func TestKilled(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			var steps []string
			prepared := newRig(t)
			s.setup(t, prepared)
			r := prepared.copy(t)
			r.step = func(name string) { steps = append(steps, name) }
			r.must(t, s.entry("/dev/null"), s.content, s.result)
			if len(steps) < 10 {
				t.Fatalf("only the steps %v", steps)
			}
			for i, name := range steps {
				r := prepared.copy(t)
				killAt(t, r, s, i, fmt.Sprintf("%d (%s)", i, name))
			}
		})
	}
}

func killAt(t *testing.T, r *rig, s story, i int, name string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "AIMLOCK_TEST_CRASH_AT="+strconv.Itoa(i), "AIMLOCK_TEST_STORY="+s.name,
		"AIMLOCK_TEST_ROOT="+r.root, "AIMLOCK_TEST_STATE="+r.state, "AIMLOCK_TEST_TRACE="+trace)
	out, err := cmd.CombinedOutput()
	ee, ok := errors.AsType[*exec.ExitError](err)
	if !ok || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("step %s: the child was not killed: %v\n%s", name, err, out)
	}
	if got := r.read(t); got != s.before && got != s.after && got != "two\n" {
		t.Fatalf("step %s: file is %q after the crash", name, got)
	}
	// An older order is refused from the acceptance on, crash or not.
	if st, err := loadState(configDir(r.state, conf), conf); err == nil && st.Mark == s.entry("").Order {
		if out, err := r.apply(t.Context(), conf, entry(order(1, 9), "r1", "old\n"), from("old\n")); err != nil || out.Refused == nil {
			t.Fatalf("step %s: an older order after the crash: %+v %v", name, out, err)
		}
	}
	fin, err := r.finish(t.Context(), conf)
	if err != nil {
		t.Fatalf("step %s: restart: %v", name, err)
	}
	res, err := r.apply(t.Context(), conf, s.entry(trace), from(s.content))
	if err != nil {
		t.Fatalf("step %s: the order again: %v", name, err)
	}
	rep := res.Report
	if rep == nil {
		rep = fin.Report
	}
	if rep == nil {
		rep = res.Standing
	}
	if rep.Result != s.result || rep.Order != s.entry("").Order {
		t.Errorf("step %s: %s of %s (%s), want %s", name, rep.Result, rep.Order, rep.Error, s.result)
	}
	if got := r.read(t); got != s.after {
		t.Errorf("step %s: file is %q in the end, want %q", name, got, s.after)
	}
	if l := r.leftovers(t); len(l) > 0 {
		t.Errorf("step %s: left over: %v", name, l)
	}
	told, _ := os.ReadFile(trace)
	want := s.after
	if want == "" {
		want = "none\n"
	}
	if !strings.HasSuffix(string(told), want) {
		t.Errorf("step %s: the program was last told of %q, want %q", name, told, want)
	}
}

type crash struct{}

// TestFenceProperty lets two agents, crashes at any step, restarts, failing
// commands, restores and lost states come in any order: the order that writes
// the file never goes back, and an older one never changes it.
func TestFenceProperty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		r := &rig{root: filepath.Join(dir, strconv.Itoa(n), "root"), state: filepath.Join(dir, strconv.Itoa(n), "state")}
		if err := errors.Join(os.MkdirAll(r.root, 0o755), folder(filepath.Join(r.state, "configs"))); err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(filepath.Join(dir, strconv.Itoa(n))) }()
		var wrote, accepted orchestrator.Order
		var reported *records.Actual
		contents := map[orchestrator.Order]string{}

		act := func(do func(*fence) (outcome, error)) (out outcome, err error, crashed bool) {
			f := r.newFence()
			f.log = hclog.NewNullLogger()
			f.recover = func(context.Context, string) (*records.Actual, error) { return reported, nil }
			left := rapid.IntRange(0, 40).Draw(rt, "crash after")
			f.step = func(name string) {
				st, err := loadState(configDir(r.state, conf), conf)
				if name == "before rename" || name == "before restore" {
					if err != nil || st.Mark.Less(wrote) || st.Mark.Less(accepted) {
						rt.Fatalf("%s under mark %v, but %v has written and %v was accepted (%v)", name, st, wrote, accepted, err)
					}
					wrote = st.Mark
				}
				if err == nil && name == "after accepted" {
					accepted = st.Mark
				}
				if left--; left == 0 {
					panic(crash{})
				}
			}
			defer func() {
				switch p := recover().(type) {
				case nil:
				case crash:
					crashed = true
				default:
					panic(p)
				}
			}()
			out, err = do(f)
			if err != nil {
				rt.Fatalf("%v", err)
			}
			if out.Report != nil {
				reported = out.Report
			}
			return out, err, false
		}
		rt.Repeat(map[string]func(*rapid.T){
			"apply": func(rt *rapid.T) {
				o := order(rapid.Uint64Range(1, 6).Draw(rt, "token"), rapid.Uint64Range(1, 3).Draw(rt, "seq"))
				rollout := fmt.Sprint("r", o.Token)
				content := rapid.SampledFrom([]string{"a\n", "b\n", o.String() + "\n"}).Draw(rt, "content")
				if c, ok := contents[o]; ok {
					content = c
				}
				contents[o] = content
				d := entry(o, rollout, content)
				switch rapid.IntRange(0, 9).Draw(rt, "kind") {
				case 0:
					d = restoreEntry(o, rollout)
				case 1:
					d.Validate = &records.Command{Argv: []string{"/bin/false"}}
				case 2:
					d.Healthy = &records.Command{Argv: []string{"/bin/false"}}
				}
				before := r.read(rt)
				high := accepted
				out, _, crashed := act(func(f *fence) (outcome, error) { return f.apply(context.Background(), conf, d, from(content)) })
				if crashed {
					return
				}
				after := r.read(rt)
				switch {
				case o.Less(high):
					if out.Refused == nil || before != after {
						rt.Fatalf("order %s after %s: %+v, file %q → %q", o, high, out, before, after)
					}
				case out.Report != nil && out.Report.Result == records.ResultApplied && after != content:
					rt.Fatalf("applied %s, but the file is %q", o, after)
				case out.Report == nil && out.Standing == nil:
					rt.Fatalf("order %s has no answer", o)
				}
				if out.Report != nil && out.Report.SHA256 != "" && out.Report.SHA256 != sum256([]byte(after)) {
					rt.Fatalf("the report says %+v, the file is %q", out.Report, after)
				}
			},
			"restart": func(*rapid.T) {
				act(func(f *fence) (outcome, error) { return f.finish(context.Background(), conf) })
			},
			"lose state": func(rt *rapid.T) {
				st, err := loadState(configDir(r.state, conf), conf)
				if err != nil || st.Phase != phaseDone || reported == nil || st.Mark != reported.Order {
					rt.Skip("the report does not tell the mark")
				}
				if err := os.RemoveAll(configDir(r.state, conf)); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				if got := r.read(rt); got != "" && !strings.HasSuffix(got, "\n") {
					rt.Fatalf("file is %q", got)
				}
			},
		})
	})
}

// TestConcurrent lets many processes' worth of fences work at once: the newest
// order wins, and each is applied or refused.
func TestConcurrent(t *testing.T) {
	r := newRig(t)
	const n = 24
	errs := make(chan error, n)
	for i := range uint64(n) {
		f := r.newFence()
		go func() {
			o := order(i*7%n+1, 1)
			c := o.String() + "\n"
			_, err := f.apply(context.Background(), conf, entry(o, "r", c), from(c))
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got, want := r.read(t), order(n, 1).String()+"\n"; got != want {
		t.Errorf("file is %q, want %q", got, want)
	}
}

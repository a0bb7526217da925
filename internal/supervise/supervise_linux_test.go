package supervise

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
)

func prepare(t *testing.T, cfg Config) *Supervisor {
	t.Helper()
	if cfg.Nonce == "" {
		cfg.Nonce = fmt.Sprintf("n-%s-%d", strings.ReplaceAll(t.Name(), ",", ";"), time.Now().UnixNano())
	}
	s, err := Prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func wait(t *testing.T, s *Supervisor) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return s.Wait(ctx)
}

func sh(script string, args ...string) []string {
	return append([]string{"sh", "-c", script, "sh"}, args...)
}

// output runs a command whose stdout it returns, to the end.
func output(t *testing.T, env, argv []string, extra ...*os.File) (string, int) {
	t.Helper()
	s := prepare(t, Config{Grace: limit})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Start(argv, env, nil, w, os.Stderr, extra...); err != nil {
		t.Fatal(err)
	}
	w.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	code, err := wait(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), code
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 255": 255,
		"kill -KILL $$": 137, "kill -TERM $$": 143, "kill -INT $$": 130,
	} {
		if out, got := output(t, os.Environ(), sh(script)); got != want || out != "" {
			t.Errorf("%s: code %d, output %q, want %d", script, got, out, want)
		}
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nonsense"), []byte{1, 2, 3}, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		argv []string
		code int
	}{
		{"not in PATH", []string{"no-such-program"}, 127},
		{"no such file", []string{filepath.Join(dir, "absent")}, 127},
		{"a file as a folder", []string{plain + "/x"}, 127},
		{"not executable", []string{plain}, 126},
		{"not executable, in PATH", []string{"plain"}, 126},
		{"a folder", []string{dir}, 126},
		{"no program at all", []string{"nonsense"}, 126},
		{"nothing", nil, 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := prepare(t, Config{})
			err := s.Start(c.argv, []string{"PATH=" + dir}, nil, nil, nil)
			var se *StartError
			if !errors.As(err, &se) || se.Code != c.code {
				t.Fatalf("Start = %v, want a StartError with code %d", err, c.code)
			}
			code, err := wait(t, s)
			if code != c.code || !errors.As(err, &se) || errors.Is(err, ErrSurvivors) {
				t.Errorf("Wait = %d, %v, want %d and the same error", code, err, c.code)
			}
			if err := s.Start(sh("exit 0"), nil, nil, nil, nil); err == nil {
				t.Error("a second start was taken")
			}
		})
	}
}

// A supervisor that ends before it is ready has started nothing: the lock that it
// was for may be let go.
func TestSupervisorNeverReady(t *testing.T) {
	t.Parallel()
	s, err := Prepare(Config{Nonce: "n-never-ready"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.proc.Kill(); err != nil {
		t.Fatal(err)
	}
	err = s.Start(sh("exit 0"), os.Environ(), nil, nil, nil)
	if err == nil {
		t.Error("it started a command")
	}
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if !ready {
		if _, werr := s.Wait(t.Context()); errors.Is(errors.Join(err, werr), ErrSurvivors) {
			t.Errorf("%v; %v", err, werr)
		}
	}
	if cerr := s.Close(); errors.Is(cerr, ErrSurvivors) != ready {
		t.Errorf("ready %v: %v", ready, cerr)
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	show := `printf '%s|%s' "$AIMLOCK_NONCE" "$ODD"`
	env := []string{"PATH=" + os.Getenv("PATH"), "ODD=\xff\xfe=\n"}
	for _, c := range []struct {
		name  string
		outer []string
		want  string
	}{
		{"alone", nil, "n-inner|\xff\xfe=\n"},
		{"under another lock", []string{"AIMLOCK_NONCE=n-outer,n-outermost"}, "n-inner,n-outer,n-outermost|\xff\xfe=\n"},
		{"empty", []string{"AIMLOCK_NONCE="}, "n-inner|\xff\xfe=\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := prepare(t, Config{Nonce: "n-inner"})
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			given := append(slices.Clone(c.outer), env...)
			if err := s.Start(sh(show), given, nil, w, os.Stderr); err != nil {
				t.Fatal(err)
			}
			w.Close()
			got, err := io.ReadAll(r)
			if err != nil || string(got) != c.want {
				t.Errorf("the command has %q, want %q (%v)", got, c.want, err)
			}
			wait(t, s)
		})
	}
	if _, err := Prepare(Config{Nonce: "a,b"}); err == nil {
		t.Error("a nonce with a comma was taken")
	}
	if _, err := Prepare(Config{}); err == nil {
		t.Error("no nonce was taken")
	}
}

// The command gets what it would get without a supervisor: three descriptors
// and those passed, all blocking, and no signal ignored or blocked.
func TestInheritance(t *testing.T) {
	t.Parallel()
	const fds = `for f in /proc/$$/fd/*; do readlink $f >/dev/null && printf '%s ' ${f##*/}; done; ulimit -n; exec grep -E '^Sig(Blk|Ign)' /proc/self/status`
	want, err := exec.CommandContext(t.Context(), "sh", "-c", fds).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := output(t, os.Environ(), sh(fds)); got != string(want) {
		t.Errorf("under a supervisor:\n%swithout:\n%s", got, want)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	output(t, os.Environ(), sh("echo from descriptor 3 >&3"), w)
	w.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "from descriptor 3\n" {
		t.Errorf("descriptor 3 carried %q (%v)", b, err)
	}
}

func TestStreams(t *testing.T) {
	t.Parallel()
	s := prepare(t, Config{Grace: limit})
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start([]string{"cat"}, os.Environ(), inR, outW, os.Stderr); err != nil {
		t.Fatal(err)
	}
	inR.Close()
	outW.Close()
	data := bytes.Repeat([]byte("sixteen bytes...\n"), 1<<20)
	wrote := make(chan error, 1)
	go func() {
		_, err := inW.Write(data)
		wrote <- errors.Join(err, inW.Close())
	}()
	h := sha256.New()
	n, err := io.Copy(h, outR)
	outR.Close()
	if err := errors.Join(err, <-wrote); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); n != int64(len(data)) || !bytes.Equal(h.Sum(nil), sum[:]) {
		t.Errorf("%d bytes came through, want the same %d", n, len(data))
	}
	// The end of stdin came through too, or cat would not end.
	if code, err := wait(t, s); code != 0 || err != nil {
		t.Errorf("Wait = %d, %v", code, err)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		does  string
		grace time.Duration
		code  int
	}{
		{"asked", "stay", time.Hour, 143},
		{"stubborn", "stubborn", 300 * time.Millisecond, 137},
		{"no grace", "stay", 0, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := prepare(t, Config{})
			spawns := kinds[:3]
			if err := s.Start(role("tree", append([]string{dir, c.does}, spawns...)...), os.Environ(), nil, nil, os.Stderr); err != nil {
				t.Fatal(err)
			}
			name := map[bool]string{true: "stubborn", false: "tree"}[c.does == "stubborn"]
			tree := map[string]hostproc.Process{name: mustAwait(t, dir, name)}
			for _, k := range spawns {
				tree[k] = mustAwait(t, dir, k)
			}
			began := time.Now()
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					if err := s.Stop(c.grace); err != nil {
						t.Errorf("Stop = %v", err)
					}
				})
			}
			wg.Wait()
			if c.code == 137 && time.Since(began) < c.grace {
				t.Errorf("the grace of %s was cut to %s", c.grace, time.Since(began))
			}
			mustDie(t, time.Nanosecond, tree)
			if code, err := wait(t, s); code != c.code || err != nil {
				t.Errorf("Wait = %d, %v, want %d", code, err, c.code)
			}
		})
	}
}

// A stop reaches what was suspended.
func TestStopOfStoppedTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := prepare(t, Config{})
	if err := s.Start(role("tree", dir, "stay", "setsid"), os.Environ(), nil, nil, os.Stderr); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"tree", "setsid"} {
		p := mustAwait(t, dir, k)
		if err := hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stop(time.Hour); err != nil {
		t.Errorf("Stop = %v", err)
	}
	if code, err := wait(t, s); code != 143 || err != nil {
		t.Errorf("Wait = %d, %v, want 143", code, err)
	}
}

// What a command leaves behind is ended before Wait returns.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		grace time.Duration
		kinds []string
	}{
		{"in time", time.Hour, []string{"plain", "setsid", "daemon", "cleaned"}},
		{"stubborn", 200 * time.Millisecond, kinds},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := prepare(t, Config{Grace: c.grace})
			if err := s.Start(role("tree", append([]string{dir, "leave"}, c.kinds...)...), os.Environ(), nil, nil, os.Stderr); err != nil {
				t.Fatal(err)
			}
			tree := map[string]hostproc.Process{}
			for _, k := range c.kinds {
				tree[k] = mustAwait(t, dir, k)
			}
			if code, err := wait(t, s); code != 3 || err != nil {
				t.Errorf("Wait = %d, %v, want 3", code, err)
			}
			mustDie(t, time.Nanosecond, tree)
		})
	}
}

func TestSignal(t *testing.T) {
	t.Parallel()
	s := prepare(t, Config{Grace: limit})
	if err := s.Signal(syscall.SIGUSR1); !errors.Is(err, ErrNotStarted) {
		t.Errorf("before the start: %v, want ErrNotStarted", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Start(role("signals"), os.Environ(), nil, w, os.Stderr); err != nil {
		t.Fatal(err)
	}
	w.Close()
	out := bufio.NewReader(r)
	for _, step := range []struct {
		want string
		sig  os.Signal
	}{{"ready\n", syscall.SIGUSR1}, {"got it\n", syscall.SIGTERM}} {
		if line, err := out.ReadString('\n'); line != step.want {
			t.Fatalf("the command said %q (%v), want %q", line, err, step.want)
		}
		if err := s.Signal(step.sig); err != nil {
			t.Fatal(err)
		}
	}
	if code, err := wait(t, s); code != 9 || err != nil {
		t.Errorf("Wait = %d, %v, want 9", code, err)
	}
}

func TestLeaseIsOverBeforeStart(t *testing.T) {
	t.Parallel()
	s := prepare(t, Config{})
	if err := s.ExtendTo(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(sh("exit 0"), os.Environ(), nil, nil, nil); !errors.Is(err, ErrLease) {
		t.Errorf("Start = %v, want ErrLease", err)
	}
	if _, err := wait(t, s); !errors.Is(err, ErrLease) || errors.Is(err, ErrSurvivors) {
		t.Errorf("Wait = %v, want ErrLease", err)
	}
}

func TestLeaseEndsACommand(t *testing.T) {
	t.Parallel()
	s := prepare(t, Config{Grace: time.Hour})
	if err := s.Extend(2 * time.Second); err != nil {
		t.Fatal(err)
	}
	ends := time.Now().Add(2 * time.Second)
	if err := s.Start(sh("trap '' TERM; while :; do sleep 60; done"), os.Environ(), nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	code, err := wait(t, s)
	if code != 137 || !errors.Is(err, ErrLease) || errors.Is(err, ErrSurvivors) {
		t.Errorf("Wait = %d, %v, want 137 and ErrLease", code, err)
	}
	if left := time.Until(ends); left > time.Second {
		t.Errorf("ended %s before the lease", left)
	}
}

func TestCloseUnused(t *testing.T) {
	t.Parallel()
	s := prepare(t, Config{})
	p := s.Process()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait with a cancelled context = %v", err)
	}
	mustLive(t, map[string]hostproc.Process{"supervisor": hostproc.Process(p)})
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	mustDie(t, time.Nanosecond, map[string]hostproc.Process{"supervisor": hostproc.Process(p)})
	if err := s.Start(sh("exit 0"), nil, nil, nil, nil); err == nil {
		t.Error("started after Close")
	}
	if _, err := wait(t, s); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait = %v, want ErrClosed", err)
	}
}

// Not parallel: it counts what the process has.
func TestNothingLeaks(t *testing.T) {
	cycle := func(i int) {
		s, err := Prepare(Config{Nonce: "n-leak"})
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 0:
			err = s.Start(sh("exit 0"), os.Environ(), nil, nil, nil)
		case 1:
			err = s.Start(sh("sleep 60 & exit 0"), os.Environ(), nil, nil, nil)
		case 2:
			if err := s.Start([]string{"no-such-program"}, os.Environ(), nil, nil, nil); err == nil {
				t.Fatal("started")
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%4 < 2 {
			if code, err := wait(t, s); code != 0 || err != nil {
				t.Fatalf("Wait = %d, %v", code, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		p := s.Process()
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID)); err == nil {
			t.Fatal("the supervisor is not reaped")
		}
	}
	cycle(0)
	fds, routines := fdCount(t), runtime.NumGoroutine()
	for i := range 12 {
		cycle(i)
	}
	if err := poll(limit, "goroutines to end", func() bool { return runtime.NumGoroutine() <= routines }); err != nil {
		t.Error(err)
	}
	if now := fdCount(t); now > fds {
		t.Errorf("%d descriptors, %d before", now, fds)
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPrepare(b *testing.B) {
	for b.Loop() {
		s, err := Prepare(Config{Nonce: "n-bench"})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// The supervisor is prepared while the lock is waited for, so its start does not
// count.
func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s, err := Prepare(Config{Nonce: "n-bench"})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := s.Start([]string{"true"}, os.Environ(), nil, nil, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// What a bare start costs, for comparison.
func BenchmarkBareRun(b *testing.B) {
	for b.Loop() {
		if err := exec.CommandContext(b.Context(), "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

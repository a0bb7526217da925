package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// The test binary also plays the supervisor, its parent and the processes under
// it: os.Args[1] says which.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "role" {
		os.Exit(play(os.Args[2], os.Args[3:]))
	}
	// The race detector makes each process linger for a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(m.Run())
}

// role is the argv of a process that plays role.
func role(name string, args ...string) []string {
	return append([]string{"/proc/self/exe", "role", name}, args...)
}

func play(name string, args []string) int {
	switch name {
	case "tree":
		return playTree(args[0], args[1:])
	case "leaf":
		return playLeaf(args[0], args[1])
	case "spawn":
		// The middle of a double fork.
		return spawn(args[0], args[1])
	case "parent":
		return playParent(args[0], args[1], args[2:])
	case "terminal":
		return playTerminal()
	case "shell":
		return playShell(args)
	case "signals":
		got := make(chan os.Signal, 1)
		signal.Notify(got, syscall.SIGUSR1, syscall.SIGTERM)
		fmt.Println("ready")
		for sig := range got {
			if sig == syscall.SIGTERM {
				return 9
			}
			fmt.Println("got it")
		}
	case "root":
		// What sudo does: real and effective ids.
		if err := syscall.Setuid(0); err != nil {
			fmt.Println(err)
			return 1
		}
		return playLeaf("root", args[0])
	}
	fmt.Fprintln(os.Stderr, "no such role:", name)
	return 1
}

// kinds of processes that a tree has besides its root.
var kinds = []string{"plain", "setsid", "daemon", "stubborn", "cleaned"}

// playTree starts one process of each kind, then does as it is told: "stay",
// "stubborn" (stay, SIGTERM or not) or "leave".
func playTree(dir string, args []string) int {
	for _, k := range args[1:] {
		if code := spawn(k, dir); code != 0 {
			return code
		}
	}
	for _, k := range args[1:] {
		if _, err := await(dir, k, time.Minute); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	switch args[0] {
	case "stubborn":
		return playLeaf("stubborn", dir)
	case "leave":
		return 3
	}
	return playLeaf("tree", dir)
}

func spawn(kind, dir string) int {
	argv := role("leaf", kind, dir)
	attr := &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, nil, os.Stderr}}
	switch kind {
	case "setsid", "grandchild":
		attr.Sys = &syscall.SysProcAttr{Setsid: true}
	case "daemon":
		argv = role("spawn", "grandchild", dir)
		attr.Sys = &syscall.SysProcAttr{Setsid: true}
	case "bare":
		attr.Env = []string{}
	case "cleaned":
		attr.Env = []string{}
		attr.Sys = &syscall.SysProcAttr{Setsid: true}
	}
	if _, err := os.StartProcess(argv[0], argv, attr); err != nil {
		fmt.Fprintln(os.Stderr, "spawn", kind+":", err)
		return 1
	}
	return 0
}

// playLeaf writes down who it is and stays until a signal ends it.
func playLeaf(kind, dir string) int {
	if kind == "grandchild" {
		kind = "daemon"
	}
	if kind == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	never := make(chan os.Signal, 1)
	signal.Notify(never, syscall.SIGUSR2)
	if err := writeDown(dir, kind, os.Getpid()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	<-never
	return 0
}

func writeDown(dir, kind string, pid int) error {
	p, err := hostproc.Lookup(pid)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, kind)
	if err := os.WriteFile(file+".tmp", fmt.Appendf(nil, "%d %d", p.PID, p.StartTicks), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

// await reads what a process of a kind wrote down.
func await(dir, kind string, within time.Duration) (hostproc.Process, error) {
	var p hostproc.Process
	err := poll(within, kind+" to start", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, kind))
		if err != nil {
			return false
		}
		_, err = fmt.Sscanf(string(b), "%d %d", &p.PID, &p.StartTicks)
		return err == nil
	})
	return p, err
}

func poll(within time.Duration, what string, cond func() bool) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			return fmt.Errorf("waited %s for %s", within, what)
		case <-tick.C:
		}
	}
	return nil
}

// playParent is a process that runs argv under a supervisor, to be killed or
// stopped. With a lease it renews that five times in it.
func playParent(dir, lease string, argv []string) int {
	fail := func(err error) int {
		fmt.Println("parent:", err)
		return 1
	}
	d, err := time.ParseDuration(lease)
	if err != nil {
		return fail(err)
	}
	s, err := Prepare(Config{Nonce: nonceOf(dir), Grace: time.Minute})
	if err != nil {
		return fail(err)
	}
	defer s.Close()
	if err := writeDown(dir, "supervisor", s.Process().PID); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if d > 0 {
		if err := s.ExtendTo(time.Now().Add(d)); err != nil {
			return fail(err)
		}
		go func() {
			for tick := time.NewTicker(d / 5); ; {
				select {
				case <-ctx.Done():
					tick.Stop()
					return
				case <-tick.C:
					s.ExtendTo(time.Now().Add(d))
				}
			}
		}()
	}
	if err := s.Start(argv, os.Environ(), os.Stdin, os.Stdout, os.Stderr); err != nil {
		return fail(err)
	}
	passed := make(chan os.Signal, 1)
	signal.Notify(passed, syscall.SIGTERM)
	go func() {
		for sig := range passed {
			s.Signal(sig)
		}
	}()
	code, err := s.Wait(ctx)
	fmt.Printf("parent: code %d, survivors %v, error %v, interrupted %v\n", code, errors.Is(err, ErrSurvivors), err, s.Interrupted())
	if len(argv) > 2 && argv[2] == "terminal" {
		// Is the terminal back?
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Printf("parent got %q %v\n", line, err)
	}
	return 0
}

// nonceOf is a test's own: its folder is.
func nonceOf(dir string) string { return strings.ReplaceAll(dir, ",", ";") }

// playTerminal answers each line until a signal ends it.
func playTerminal() int {
	fmt.Println("command ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Printf("command got %q\n", in.Text())
	}
	return 0
}

// startParent starts a parent with a tree under it and waits until all of it is
// there. The tree is killed at the end of the test, whatever becomes of it.
func startParent(t *testing.T, lease string, rootDoes string, spawns ...string) (parent *exec.Cmd, sup hostproc.Process, tree map[string]hostproc.Process) {
	t.Helper()
	dir := t.TempDir()
	argv := role("parent", append([]string{dir, lease}, role("tree", append([]string{dir, rootDoes}, spawns...)...)...)...)
	c := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	rootName := "tree"
	if rootDoes == "stubborn" {
		rootName = "stubborn"
	}
	sup = mustAwait(t, dir, "supervisor")
	tree = map[string]hostproc.Process{}
	for _, k := range append([]string{rootName}, spawns...) {
		tree[k] = mustAwait(t, dir, k)
	}
	return c, sup, tree
}

func mustAwait(t *testing.T, dir, kind string) hostproc.Process {
	t.Helper()
	p, err := await(dir, kind, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGKILL) })
	return p
}

// mustDie waits for the end of all of them.
func mustDie(t *testing.T, within time.Duration, procs map[string]hostproc.Process) {
	t.Helper()
	began := time.Now()
	err := poll(within, "all to die", func() bool {
		for _, p := range procs {
			if alive, _ := hostproc.Alive(p.PID, p.StartTicks); alive != hostproc.False {
				return false
			}
		}
		return true
	})
	if err != nil {
		var left []string
		for k, p := range procs {
			if alive, why := hostproc.Alive(p.PID, p.StartTicks); alive != hostproc.False {
				left = append(left, k+": "+why)
			}
		}
		t.Fatalf("after %s: %s", within, strings.Join(left, "; "))
	}
	t.Logf("all dead within %s", time.Since(began).Round(time.Millisecond))
}

func mustLive(t *testing.T, procs map[string]hostproc.Process) {
	t.Helper()
	for k, p := range procs {
		if alive, why := hostproc.Alive(p.PID, p.StartTicks); alive != hostproc.True {
			t.Errorf("%s: %s", k, why)
		}
	}
}

func fdCount(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/" + strconv.Itoa(os.Getpid()) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

package hostproc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roleVar makes the test binary play a process that a test looks at.
const roleVar = "HOSTPROC_TEST_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	switch role {
	case "block":
		os.Stdout.WriteString("ready\n")
	case "parent":
		// A child with the same environment, which lives as long as stdin,
		// and this process with it.
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), roleVar+"=block")
		c.Stdin, c.Stdout = os.Stdin, os.Stdout
		if err := c.Run(); err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
		}
		os.Exit(0)
	case "headless":
		go endLeader()
		select {} // leaves the leader to the goroutines
	case "self":
		id, err := Self()
		fmt.Printf("%q %d %v\n", id.PIDNS, id.StartTicks, err)
		os.Stdout.WriteString("ready\n")
	case "tree-gone":
		gone, why := TreeGone(os.Getenv("ASK_NONCE"), 0, os.Getenv("ASK_CGROUP"))
		fmt.Printf("%s: %s\n", gone, why)
		os.Exit(0)
	}
	untilStdinEnds()
}

func untilStdinEnds() {
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// endLeader ends the thread that is the process's leader and no other.
func endLeader() {
	for next := make(chan struct{}); ; <-next {
		go func() {
			runtime.LockOSThread()
			if syscall.Gettid() == syscall.Getpid() {
				go untilStdinEnds()
				syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
			}
			next <- struct{}{}
			select {} // keeps the thread from the next one
		}()
	}
}

// proc is a process that a test started: it ends when its stdin does.
type proc struct {
	*exec.Cmd
	Process
	stdin io.Closer
	out   *bufio.Reader
}

func start(t *testing.T, role string, env ...string) *proc {
	t.Helper()
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env = append(append(os.Environ(), roleVar+"="+role), env...)
	return startCmd(t, c)
}

func startCmd(t *testing.T, c *exec.Cmd) *proc {
	t.Helper()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Lookup(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p := &proc{Cmd: c, Process: id, stdin: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		in.Close()
		syscall.Kill(p.PID, syscall.SIGKILL)
		c.Wait()
	})
	return p
}

// ready waits for the line that a role prints when it is set up.
func (p *proc) ready(t *testing.T) *proc {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("started process said %q (%v), want ready", line, err)
	}
	return p
}

// eventually polls a condition that only a kernel's doing makes true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("not after 20 s: %s", what)
		case <-tick.C:
		}
	}
}

func (p *proc) waitState(t *testing.T, want byte) {
	t.Helper()
	eventually(t, "state "+string(want), func() bool {
		s, ok := StateOf(p.PID)
		return ok && s == want
	})
}

// waitDead waits until a killed process is a zombie with all of its threads:
// the leader may be one before they are.
func (p *proc) waitDead(t *testing.T) {
	t.Helper()
	eventually(t, "the process's death", func() bool {
		alive, _ := Alive(p.PID, p.StartTicks)
		return alive == False
	})
}

func TestAlive(t *testing.T) {
	check := func(t *testing.T, pid int, ticks uint64, want Tri, why string) {
		t.Helper()
		got, gotWhy := Alive(pid, ticks)
		if got != want || !strings.Contains(gotWhy, why) {
			t.Errorf("Alive(%d, %d) = %s %q, want %s, with %q in the reason", pid, ticks, got, gotWhy, want, why)
		}
	}
	t.Run("running", func(t *testing.T) {
		p := start(t, "block").ready(t)
		check(t, p.PID, p.StartTicks, True, "runs")
	})
	t.Run("itself", func(t *testing.T) {
		id, err := Self()
		if err != nil {
			t.Fatal(err)
		}
		check(t, id.PID, id.StartTicks, True, "runs")
	})
	t.Run("no pid", func(t *testing.T) {
		// The kernel would take the last for pid 1.
		for _, pid := range []int{0, -5, 1<<22 + 1, 1<<32 + 1} {
			check(t, pid, 7, Unknown, "pid")
		}
	})
	t.Run("stopped", func(t *testing.T) {
		p := start(t, "block").ready(t)
		syscall.Kill(p.PID, syscall.SIGSTOP)
		p.waitState(t, 'T')
		check(t, p.PID, p.StartTicks, True, "stopped")
	})
	t.Run("killed and not reaped", func(t *testing.T) {
		p := start(t, "block").ready(t)
		syscall.Kill(p.PID, syscall.SIGKILL)
		p.waitDead(t)
		check(t, p.PID, p.StartTicks, False, "zombie")
		check(t, p.PID, 0, False, "zombie")
	})
	t.Run("killed and reaped", func(t *testing.T) {
		p := start(t, "block").ready(t)
		syscall.Kill(p.PID, syscall.SIGKILL)
		p.Wait()
		check(t, p.PID, p.StartTicks, False, "no process has pid")
		check(t, p.PID, 0, False, "no process has pid")
	})
	t.Run("reused pid", func(t *testing.T) {
		p := start(t, "block").ready(t)
		check(t, p.PID, p.StartTicks-1, False, "reused")
		check(t, p.PID, p.StartTicks+1, False, "reused")
	})
	t.Run("leader ended, threads live", func(t *testing.T) {
		p := start(t, "headless")
		p.waitState(t, 'Z')
		check(t, p.PID, p.StartTicks, True, "runs")
		p.stdin.Close()
		p.waitDead(t)
	})
	t.Run("no start time", func(t *testing.T) {
		p := start(t, "block").ready(t)
		check(t, p.PID, 0, Unknown, "no start time")
	})
	t.Run("no pid", func(t *testing.T) {
		check(t, 0, 1, Unknown, "no pid")
		check(t, -1, 1, Unknown, "no pid")
	})
}

func TestSignalProcess(t *testing.T) {
	p := start(t, "block").ready(t)
	if err := SignalProcess(p.PID, p.StartTicks+1, syscall.SIGKILL); !errors.Is(err, ErrReused) {
		t.Errorf("another start time: %v, want ErrReused", err)
	}
	if err := SignalProcess(p.PID, 0, syscall.SIGKILL); !errors.Is(err, ErrUnverified) {
		t.Errorf("no start time: %v, want ErrUnverified", err)
	}
	if alive, why := Alive(p.PID, p.StartTicks); alive != True {
		t.Fatalf("a refused signal was sent: %s", why)
	}
	if err := SignalProcess(p.PID, p.StartTicks, syscall.SIGKILL); err != nil {
		t.Errorf("SIGKILL: %v", err)
	}
	p.waitDead(t)
	p.Wait()
	if err := SignalProcess(p.PID, p.StartTicks, syscall.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("after its end: %v, want os.ErrProcessDone", err)
	}
}

func TestTreeGone(t *testing.T) {
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	gone := func(t *testing.T, nonce string, after uint64, want Tri) {
		t.Helper()
		if got, why := TreeGone(nonce, after, self.CGroup); got != want {
			t.Errorf("TreeGone = %s (%s), want %s", got, why, want)
		}
	}
	t.Run("a child, then its end", func(t *testing.T) {
		p := start(t, "block", NonceVar+"=n-child").ready(t)
		gone(t, "n-child", self.StartTicks, False)
		gone(t, "n-chil", self.StartTicks, True)
		gone(t, "n-child", p.StartTicks+1, True)
		syscall.Kill(p.PID, syscall.SIGKILL)
		// It is not reaped: a zombie is gone.
		p.waitDead(t)
		gone(t, "n-child", self.StartTicks, True)
	})
	t.Run("a grandchild outlives the child", func(t *testing.T) {
		p := start(t, "parent", NonceVar+"=n-grand").ready(t)
		ds, err := Descendants(p.PID)
		if err != nil || len(ds) != 1 {
			t.Fatalf("Descendants = %v, %v, want one", ds, err)
		}
		if cs, err := Children(p.PID); err == nil && (len(cs) != 1 || cs[0] != ds[0].PID) {
			t.Errorf("Children = %v, want %d", cs, ds[0].PID)
		}
		syscall.Kill(p.PID, syscall.SIGKILL)
		p.waitDead(t)
		gone(t, "n-grand", self.StartTicks, False)
		if m, err := Marked("n-grand", self.StartTicks); err != nil || len(m) != 1 || m[0] != ds[0].Process {
			t.Errorf("Marked = %v, %v, want %v", m, err, ds)
		}
		if err := SignalProcess(ds[0].PID, ds[0].StartTicks, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the tree's end", func() bool {
			g, _ := TreeGone("n-grand", self.StartTicks, self.CGroup)
			return g == True
		})
	})
	t.Run("under two locks", func(t *testing.T) {
		start(t, "block", NonceVar+"=n-inner,n-outer").ready(t)
		gone(t, "n-inner", self.StartTicks, False)
		gone(t, "n-outer", self.StartTicks, False)
		gone(t, "n-inner,n-outer", self.StartTicks, True)
	})
	t.Run("leader ended, threads live", func(t *testing.T) {
		p := start(t, "headless", NonceVar+"=n-headless")
		p.waitState(t, 'Z')
		gone(t, "n-headless", self.StartTicks, False)
	})
	t.Run("no nonce", func(t *testing.T) { gone(t, "", 0, Unknown) })
	t.Run("really no environment", func(t *testing.T) {
		c := exec.CommandContext(t.Context(), "cat")
		c.Env = []string{}
		p := startCmd(t, c)
		eventually(t, "an empty environment", func() bool {
			_, m := markOf(p.PID, "n", 0)
			return m == unmarked
		})
		gone(t, "n-none", self.StartTicks, True)
	})
}

// A checker without the right to read another user's environment must not take
// that for an absence.
func TestTreeGoneUnreadable(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to start processes of two other users")
	}
	self, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	as := func(uid uint32, role string, env ...string) *proc {
		c := exec.CommandContext(t.Context(), "/proc/self/exe")
		c.Env = append(append(os.Environ(), roleVar+"="+role), env...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
		return startCmd(t, c)
	}
	as(64001, "block", NonceVar+"=n-hidden").ready(t)
	ask := func(cgroup string) string {
		p := as(64002, "tree-gone", "ASK_NONCE=n-hidden", "ASK_CGROUP="+cgroup)
		line, err := p.out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	if got := ask(self.CGroup); !strings.HasPrefix(got, "unknown: ") {
		t.Errorf("in the same cgroup: %q, want unknown", got)
	}
	if got := ask(""); !strings.HasPrefix(got, "unknown: ") {
		t.Errorf("with an unknown cgroup: %q, want unknown", got)
	}
	if got := ask("/of-something-else"); !strings.HasPrefix(got, "true: ") {
		t.Errorf("in another cgroup: %q, want true", got)
	}
}

func TestSelf(t *testing.T) {
	before := BootSeconds()
	id, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if id.Host == "" || id.User == "" || id.CGroup == "" || id.PID != os.Getpid() {
		t.Errorf("Self leaves something out: %+v", id)
	}
	if len(id.BootID) != 36 || !strings.HasPrefix(id.PIDNS, "pid:[") {
		t.Errorf("boot id %q, pid namespace %q", id.BootID, id.PIDNS)
	}
	if age := time.Since(id.StartedAt); age < 0 || age > time.Hour {
		t.Errorf("started at %s, %s ago", id.StartedAt, age)
	}
	if again, err := Self(); err != nil || again.Process() != id.Process() || again.CGroup != id.CGroup {
		t.Errorf("Self twice: %+v and %+v (%v)", id, again, err)
	}
	if after := BootSeconds(); before <= 0 || after < before {
		t.Errorf("the boot clock went from %f to %f", before, after)
	}
}

// unshared starts a process in namespaces of its own, and returns what it says of
// itself.
func unshared(t *testing.T, args ...string) (p *proc, pidNS string, ticks uint64, problem string) {
	t.Helper()
	args = append(args, "--fork", "--kill-child")
	if out, err := exec.CommandContext(t.Context(), "unshare", append(args, "true")...).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: unshare %s needs its program, root and the kernel's namespaces: %v %s", strings.Join(args, " "), err, out)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "unshare", append(args, exe)...)
	c.Env = append(os.Environ(), roleVar+"=self", NonceVar+"=n-unshared")
	p = startCmd(t, c)
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(line, "%q %d", &pidNS, &ticks); err != nil {
		t.Fatalf("it said %q: %v", line, err)
	}
	return p.ready(t), pidNS, ticks, line
}

// In another time namespace the same process has another start time, so that who
// looks from there would take a living one for dead: its identity is not of here.
func TestSelfInATimeNamespace(t *testing.T) {
	here, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	p, pidNS, ticks, _ := unshared(t, "--time", "--boottime", "100000")
	ds, err := Descendants(p.PID)
	if err != nil || len(ds) != 1 {
		t.Fatalf("Descendants = %v, %v, want one", ds, err)
	}
	if alive, why := Alive(ds[0].PID, ds[0].StartTicks); alive != True {
		t.Fatalf("it does not live: %s", why)
	}
	if alive, why := Alive(ds[0].PID, ticks); alive != False {
		t.Fatalf("the start time that it has for itself counts here, too: %s", why)
	}
	if pidNS == here.PIDNS || !strings.HasPrefix(pidNS, here.PIDNS+" time:[") || TimeNS(pidNS) == TimeNS(here.PIDNS) {
		t.Errorf("it says that it is in %q, as this process is in %q", pidNS, here.PIDNS)
	}
}

// A pid namespace that has no /proc of its own looks at processes of another one by
// its own numbers.
func TestSelfWithAForeignProc(t *testing.T) {
	if _, pidNS, ticks, said := unshared(t, "--pid"); pidNS != "" || ticks != 0 || !strings.Contains(said, "mount /proc anew") {
		t.Errorf("it takes another process for itself: %s", said)
	}
	if _, pidNS, ticks, said := unshared(t, "--pid", "--mount-proc"); pidNS == "" || ticks == 0 || !strings.Contains(said, "<nil>") {
		t.Errorf("with a /proc of its own: %s", said)
	}
}

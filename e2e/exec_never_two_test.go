package e2e

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// writers is a file to which the commands under one lock write: each its start,
// then a line every 50 ms, then its end.
type writers struct {
	t            *testing.T
	events, done string
}

func newWriters(t *testing.T) *writers {
	dir := t.TempDir()
	return &writers{t, filepath.Join(dir, "events"), filepath.Join(dir, "done")}
}

// run starts a writer under the lock. What does the work has left the command's
// session and its parent.
func (w *writers) run(c *harness.Consul, env ...string) *harness.Process {
	w.t.Helper()
	const work = `echo start $AIMLOCK_TOKEN >>"$0"
		while [ ! -e "$1" ]; do echo works $AIMLOCK_TOKEN >>"$0"; sleep 0.05; done
		echo end $AIMLOCK_TOKEN >>"$0"`
	const script = `setsid sh -c "$2" "$0" "$1" & wait`
	spec := lockExec(w.t, c, "push", "--", "sh", "-c", script, w.events, w.done, work)
	spec.Env = append(spec.Env, env...)
	return harness.Start(w.t, spec)
}

func (w *writers) lines() [][]string {
	b, err := os.ReadFile(w.events)
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var out [][]string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 {
			out = append(out, f)
		}
	}
	return out
}

func (w *writers) starts() int {
	n := 0
	for _, f := range w.lines() {
		if f[0] == "start" {
			n++
		}
	}
	return n
}

// never fails the test if a command wrote after the next one had started, or if a
// token did not grow.
func (w *writers) never() {
	w.t.Helper()
	owner := uint64(0)
	for _, f := range w.lines() {
		token, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		if f[0] == "start" {
			if token <= owner {
				w.t.Errorf("token %d after %d", token, owner)
			}
			owner = token
		}
		if token != owner {
			w.t.Fatalf("%s under token %d while the command of token %d runs", f[0], token, owner)
		}
	}
}

// supervisorOf finds the supervisor of a lock exec.
func supervisorOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b))
	for _, d := range dirs {
		b, err := os.ReadFile(d)
		if err != nil {
			continue // the thread ended
		}
		fields = append(fields, strings.Fields(string(b))...)
	}
	for _, f := range fields {
		comm, err := os.ReadFile("/proc/" + f + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == "lock-supervisor" {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("pid %d has no supervisor among %v", pid, fields)
	return 0
}

// The supervisor is killed (kill -9), and with it or before it aimlock itself:
// what the command started is dead before the next one starts.
func TestExecSupervisorKilled(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, name := range []string{"supervisor", "aimlock"} {
		wg.Go(func() {
			t.Run(name, func(t *testing.T) {
				w, prefix := newWriters(t), "AIMLOCK_PREFIX="+name
				a := w.run(c, prefix)
				harness.Eventually(t, cmdLimit, "the first command works", func() bool { return w.starts() == 1 })
				b := w.run(c, prefix)
				harness.Eventually(t, cmdLimit, "the second one waits", func() bool { return strings.Contains(b.Stderr(), "push: HELD") })
				victim := a.Pid()
				if name == "supervisor" {
					victim = supervisorOf(t, a.Pid())
				}
				if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				harness.Eventually(t, fleetLimit, "the second command works", func() bool { return w.starts() == 2 })
				touch(t, w.done)
				if code := b.Wait(cmdLimit); code != 0 {
					t.Errorf("the second holder: exit %d:\n%s", code, b.Stderr())
				}
				w.never()
			})
		})
	}
}

// The leader of the cluster dies while one command runs and another waits: the
// lock is kept or passes on, and never do both run.
func TestExecLeaderKilled(t *testing.T) {
	t.Parallel()
	cluster := harness.StartCluster(t)
	leader, at := cluster.Leader(), cluster.Followers()
	w := newWriters(t)
	a := w.run(at[0])
	harness.Eventually(t, cmdLimit, "the first command works", func() bool { return w.starts() == 1 })
	b := w.run(at[1])
	harness.Eventually(t, cmdLimit, "the second one waits", func() bool { return strings.Contains(b.Stderr(), "push: HELD") })
	leader.Kill()
	cluster.NewLeader(leader, fleetLimit)
	before := len(w.lines())
	harness.Eventually(t, fleetLimit, "work goes on under the new leader", func() bool { return len(w.lines()) > before+20 })
	touch(t, w.done)
	if code := b.Wait(fleetLimit); code != 0 {
		t.Errorf("the second holder: exit %d:\n%s", code, b.Stderr())
	}
	if code := a.Wait(fleetLimit); code != 0 && code != 7 {
		t.Errorf("the first holder: exit %d:\n%s", code, a.Stderr())
	}
	w.never()
}

// wire stands between a process and Consul, and can be cut: then nothing comes
// through, and nobody is told.
type wire struct {
	l   net.Listener
	cut atomic.Bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go w.pass(in, out)
			go w.pass(out, in)
		}
	}()
	return w
}

func (w *wire) pass(from io.Reader, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			to.Close()
			return
		}
		if w.cut.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// The holder is cut off from Consul: its command is ended before the lock passes
// on, and it says that the lock was lost.
func TestExecCutOff(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	line := newWire(t, c.Addr)
	w := newWriters(t)
	a := w.run(c, "CONSUL_HTTP_ADDR="+line.l.Addr().String())
	harness.Eventually(t, cmdLimit, "the first command works", func() bool { return w.starts() == 1 })
	b := w.run(c)
	harness.Eventually(t, cmdLimit, "the second one waits", func() bool { return strings.Contains(b.Stderr(), "push: HELD") })
	line.cut.Store(true)
	if code := a.Wait(fleetLimit); code != 7 || !strings.Contains(a.Stderr(), "ERROR: push: LOST\n") {
		t.Errorf("the holder that was cut off: exit %d:\n%s", code, a.Stderr())
	}
	if n := w.starts(); n != 1 {
		t.Errorf("the next command had started before the first holder gave up")
	}
	harness.Eventually(t, fleetLimit, "the second command works", func() bool { return w.starts() == 2 })
	touch(t, w.done)
	if code := b.Wait(cmdLimit); code != 0 {
		t.Errorf("the second holder: exit %d:\n%s", code, b.Stderr())
	}
	w.never()
}

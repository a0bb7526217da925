package supervise

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// limit is for what takes milliseconds, on a machine that is busy.
const limit = 20 * time.Second

func TestParentKilled(t *testing.T) {
	t.Parallel()
	c, sup, tree := startParent(t, "0s", "stubborn", kinds[:3]...)
	mustLive(t, tree)
	c.Process.Kill()
	tree["supervisor"] = sup
	mustDie(t, limit, tree)
}

// A process with a cleaned environment carries no mark: that it dies shows that
// the supervisor goes by descent.
func TestParentKilledAllKinds(t *testing.T) {
	t.Parallel()
	c, sup, tree := startParent(t, "0s", "stay", kinds...)
	mustLive(t, tree)
	c.Process.Kill()
	tree["supervisor"] = sup
	mustDie(t, limit, tree)
}

func TestParentKilledWhileTreeIsStopped(t *testing.T) {
	t.Parallel()
	c, sup, tree := startParent(t, "0s", "stay", kinds...)
	for _, p := range tree {
		if err := hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	c.Process.Kill()
	tree["supervisor"] = sup
	mustDie(t, limit, tree)
}

// What forks and ends all the time is never there when a search is over.
func TestParentKilledMovingTarget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script := filepath.Join(dir, "hydra")
	if err := os.WriteFile(script, []byte("setsid sh \"$0\" &\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	argv := role("parent", append([]string{dir, "0s"}, sh(`sh "$1" & sh "$1" & echo up; exec sleep 600`, script)...)...)
	c := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	out := newLines(t, c)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	out.want(t, "up")
	sup := mustAwait(t, dir, "supervisor")
	// Beyond its first generations.
	nonce := nonceOf(dir)
	if err := poll(limit, "the generations", func() bool {
		heads, err := hostproc.Marked(nonce, sup.StartTicks+10)
		return err == nil && len(heads) > 0
	}); err != nil {
		t.Fatal(err)
	}
	c.Process.Kill()
	mustDie(t, limit, map[string]hostproc.Process{"supervisor": sup})
	if gone, why := hostproc.TreeGone(nonce, sup.StartTicks, ""); gone != hostproc.True {
		t.Error(why)
	}
}

// The parent is stopped, so that nobody renews the lease: all must be over
// before it is.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	const lease = 8 * time.Second
	c, sup, tree := startParent(t, lease.String(), "stubborn", kinds[:3]...)
	// Renewed: the tree outlives its first lease.
	outlived := time.NewTimer(lease + lease/4)
	defer outlived.Stop()
	<-outlived.C
	mustLive(t, tree)

	stopped := time.Now()
	if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The last renewal was before this moment, so the lease ends before
	// stopped + lease.
	mustDie(t, lease, tree)
	if lived := time.Since(stopped); lived < lease/2 {
		t.Errorf("ended %s after the stop, with a lease of %s", lived, lease)
	}
	mustDie(t, limit, map[string]hostproc.Process{"supervisor": sup})
}

func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Prepare(Config{Nonce: nonceOf(dir)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// "bare" has no mark, but stayed in the group.
	err = s.Start(role("tree", dir, "stay", "plain", "setsid", "daemon", "stubborn", "bare"), os.Environ(), nil, nil, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	tree := map[string]hostproc.Process{}
	for _, k := range []string{"tree", "plain", "setsid", "daemon", "stubborn", "bare"} {
		tree[k] = mustAwait(t, dir, k)
	}
	p := s.Process()
	if err := hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	code, err := wait(t, s)
	if code != 137 || !errors.Is(err, ErrSupervisorDied) || !errors.Is(err, ErrSurvivors) {
		t.Errorf("Wait = %d, %v, want 137, ErrSupervisorDied and no proof of death", code, err)
	}
	// All the same they are dead.
	mustDie(t, time.Nanosecond, tree)
}

// Nobody is left to kill anything: the kernel kills the command, and what it had
// started shows to everybody who asks.
func TestBothKilled(t *testing.T) {
	t.Parallel()
	c, sup, tree := startParent(t, "0s", "stay", "setsid")
	nonce := nonceOf(c.Args[3])
	// Stopped first, so that it cannot help.
	c.Process.Signal(syscall.SIGSTOP)
	if err := hostproc.SignalProcess(sup.PID, sup.StartTicks, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustDie(t, limit, map[string]hostproc.Process{"tree": tree["tree"], "supervisor": sup})
	c.Process.Kill()
	c.Wait()
	if gone, why := hostproc.TreeGone(nonce, sup.StartTicks, ""); gone != hostproc.False {
		t.Errorf("TreeGone = %s (%s), want false", gone, why)
	}
	mustLive(t, map[string]hostproc.Process{"setsid": tree["setsid"]})
}

// A supervisor that somebody stopped does its part again as soon as it is
// needed.
func TestSupervisorStopped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		act  func(*Supervisor) error
		code int
		err  error
	}{
		{"stop", func(s *Supervisor) error { return s.Stop(time.Hour) }, 143, nil},
		{"lease", func(s *Supervisor) error { return s.ExtendTo(time.Now()) }, 137, ErrLease},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := prepare(t, Config{Grace: time.Hour})
			if err := s.Start(role("tree", dir, "stay", "setsid"), os.Environ(), nil, nil, os.Stderr); err != nil {
				t.Fatal(err)
			}
			tree := map[string]hostproc.Process{"tree": mustAwait(t, dir, "tree"), "setsid": mustAwait(t, dir, "setsid")}
			p := s.Process()
			if err := hostproc.SignalProcess(p.PID, p.StartTicks, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if err := poll(limit, "the supervisor to stop", func() bool {
				state, _ := hostproc.StateOf(p.PID)
				return state == 'T'
			}); err != nil {
				t.Fatal(err)
			}
			if err := c.act(s); err != nil {
				t.Error(err)
			}
			if code, err := wait(t, s); code != c.code || !errors.Is(err, c.err) || errors.Is(err, ErrSurvivors) {
				t.Errorf("Wait = %d, %v, want %d, %v", code, err, c.code, c.err)
			}
			mustDie(t, time.Nanosecond, tree)
		})
	}
}

// Who may not signal what the command became must not say that it is gone.
func TestSurvivors(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to make a program that becomes root")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "becomes-root")
	copyFile(t, program, "/proc/self/exe")
	for path, mode := range map[string]os.FileMode{filepath.Dir(dir): 0o755, dir: 0o777, program: 0o755 | os.ModeSetuid} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	argv := role("parent", dir, "2s", program, "role", "root", dir)
	c := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64001, Gid: 64001}}
	out := newLines(t, c)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	sup, root := mustAwait(t, dir, "supervisor"), mustAwait(t, dir, "root")
	stopAt := time.Now()
	c.Process.Signal(syscall.SIGSTOP)
	if err := poll(limit, "the lease to run out", func() bool { return time.Since(stopAt) > 2*time.Second }); err != nil {
		t.Fatal(err)
	}
	c.Process.Signal(syscall.SIGCONT)
	out.want(t, "survivors true")
	if got := out.last(); !strings.Contains(got, "not permitted") {
		t.Errorf("the reason is missing: %s", got)
	}
	// Both stay for all to see.
	mustLive(t, map[string]hostproc.Process{"supervisor": sup, "root": root})
	if err := hostproc.SignalProcess(root.PID, root.StartTicks, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustDie(t, limit, map[string]hostproc.Process{"supervisor": sup, "root": root})
}

package evidence_test

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
)

// inState waits until the process is in a state of proc_pid_stat(5).
func inState(t *testing.T, cmd *exec.Cmd, want byte) hostproc.Process {
	t.Helper()
	p, err := hostproc.Lookup(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if state, ok := hostproc.StateOf(p.PID); ok && state == want {
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("pid %d does not get into state %c", p.PID, want)
		}
		<-time.After(time.Millisecond)
	}
}

func started(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func zombieProcess(t *testing.T) hostproc.Process {
	t.Helper()
	cmd := started(t)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	return inState(t, cmd, 'Z')
}

func stoppedProcess(t *testing.T) hostproc.Process {
	t.Helper()
	cmd := started(t)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return inState(t, cmd, 'T')
}

package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/plugin"
)

// hostUntilKilled has a plugin that keeps a process of its own, prints the pids of the
// plugin and of its supervisor, and waits to be killed.
func hostUntilKilled(left string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	sum, err := sums.of(exe)
	if err != nil {
		return err
	}
	h := New(Config{Specs: []Spec{{Name: "p", Path: exe, Args: []string{"fault-plugin", keeps, left}, SHA256: sum, StartTimeout: 20 * time.Second, Timeout: 20 * time.Second}}})
	if _, err := h.Break(context.Background(), "p", nil, &plugin.BreakRequest{ID: "1"}); err != nil {
		return err
	}
	p, err := h.Plugin("p")
	if err != nil {
		return err
	}
	fmt.Println(p.proc.run.ID(), p.proc.run.sup.Process().PID)
	_, err = bufio.NewReader(os.Stdin).ReadByte()
	return errors.Join(errors.New("it was not killed"), err)
}

// TestHostIsKilled: with kill -9 of aimlock, its plugins die, their supervisors, and
// all that they have started.
func TestHostIsKilled(t *testing.T) {
	t.Parallel()
	left := filepath.Join(t.TempDir(), "left")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "plugin-host", left)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err, cmd.Wait())
	}
	kept, err := os.ReadFile(left)
	if err != nil {
		t.Fatal(err)
	}
	processes := map[string]hostproc.Process{}
	for i, word := range append(strings.Fields(line), strings.TrimSpace(string(kept))) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		name := []string{"the plugin", "its supervisor", "what it started"}[i]
		if processes[name], err = hostproc.Lookup(pid); err != nil {
			t.Fatalf("%s does not run: %v", name, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for name, p := range processes {
		for lives(p) {
			select {
			case <-tick.C:
			case <-end:
				t.Fatalf("%s, pid %d, lives on", name, p.PID)
			}
		}
	}
}

func lives(p hostproc.Process) bool {
	now, err := hostproc.Lookup(p.PID)
	if err != nil || now.StartTicks != p.StartTicks {
		return false
	}
	state, ok := hostproc.StateOf(p.PID)
	return ok && state != 'Z'
}

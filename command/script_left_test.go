package command_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// endWhatIsLeft ends what a script started in the background and did not end itself,
// as one that fails half-way does not: an agent would run on for ever, and keep what it
// inherited, such as the lock under which the tests were run.
func endWhatIsLeft(e *testscript.Env) {
	mark := []byte("\x00WORK=" + e.WorkDir + "\x00")
	e.Defer(func() {
		// What one of them starts meanwhile is met in the next round.
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
			left := 0
			envs, _ := filepath.Glob("/proc/[0-9]*/environ")
			for _, path := range envs {
				env, err := os.ReadFile(path)
				if err != nil || !bytes.Contains(append([]byte{0}, env...), mark) {
					continue
				}
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err != nil {
					continue
				}
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			if left == 0 {
				return
			}
		}
	})
}

// TestEndWhatIsLeft: of a script that fails, nothing runs on.
func TestEndWhatIsLeft(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skip("there is no /proc")
	}
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	script := filepath.Join(dir, "leaves.txtar")
	if err := os.WriteFile(script, []byte("exec sh -c 'sleep 600 >/dev/null 2>&1 & echo $! >"+pid+"'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{Files: []string{script}, Setup: func(e *testscript.Env) error { endWhatIsLeft(e); return nil }})
	})
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join("/proc", string(bytes.TrimSpace(b)), "environ")
	if env, err := os.ReadFile(left); err == nil && len(env) > 0 { // a zombie has none
		t.Errorf("process %s runs on", b)
	}
}

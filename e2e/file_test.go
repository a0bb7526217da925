package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

type fileReport struct {
	Path   string `json:"path"`
	Locked *bool  `json:"locked"`
	Locks  []struct {
		Kind     string `json:"kind"`
		Mode     string `json:"mode"`
		PID      int    `json:"pid"`
		PIDAlive *bool  `json:"pid_alive"`
		KeptBy   []struct {
			PID     int    `json:"pid"`
			Command string `json:"command"`
			How     string `json:"how"`
		} `json:"kept_by"`
		Why string `json:"why"`
	} `json:"locks"`
}

// What flock(1) leaves locked after it was killed, its child keeps: lslocks shows
// a pid that nobody has, and aimlock who it is. No Consul runs.
func TestExplainFileOfADeadFlock(t *testing.T) {
	t.Parallel()
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Skip("SKIPPED: needs flock of util-linux")
	}
	path := filepath.Join(t.TempDir(), "backup.lock")
	job := exec.CommandContext(t.Context(), flock, path, "sh", "-c", "echo $$; exec cat")
	stdin, err := job.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// A pipe of the test's own: Wait would otherwise wait for the child too.
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	job.Stdout = w
	if err := job.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	kid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := job.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := job.Process.Wait(); err != nil {
		t.Fatal(err)
	}

	look := func(args ...string) harness.Result {
		t.Helper()
		r := harness.Run(t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(t), Args: append([]string{"lock", "explain", "-file", path}, args...)})
		if r.Code != 0 || r.Stderr != "" {
			t.Fatalf("exit %d, %s", r.Code, r.Stderr)
		}
		return r
	}
	var got fileReport
	if r := look("-json"); json.Unmarshal([]byte(r.Stdout), &got) != nil || got.Path != path || got.Locked == nil || !*got.Locked || len(got.Locks) != 1 {
		t.Fatalf("got %s", r.Stdout)
	}
	l := got.Locks[0]
	if l.Kind != "flock" || l.Mode != "write" || l.PID != job.Process.Pid || l.PIDAlive == nil || *l.PIDAlive {
		t.Errorf("want a flock of pid %d, which is dead: %+v", job.Process.Pid, l)
	}
	if len(l.KeptBy) != 1 || l.KeptBy[0].PID != kid || l.KeptBy[0].How != "inherited or passed" || !strings.Contains(l.Why, strconv.Itoa(kid)) {
		t.Errorf("want it kept by pid %d: %+v", kid, l)
	}
	if r := look(); !strings.Contains(r.Stdout, "pid "+strconv.Itoa(job.Process.Pid)+", which has ended") {
		t.Errorf("got %s", r.Stdout)
	}

	stdin.Close()
	if _, err := io.Copy(io.Discard, lines); err != nil { // ends when the child does
		t.Fatal(err)
	}
	// Its output is closed before its lock is.
	for end := time.Now().Add(cmdLimit); ; {
		r := look("-json")
		if json.Unmarshal([]byte(r.Stdout), &got) == nil && got.Locked != nil && !*got.Locked {
			break
		} else if time.Now().After(end) {
			t.Fatalf("after its end: %s", r.Stdout)
		}
	}
}

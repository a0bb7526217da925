package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

func lockExec(t *testing.T, c *harness.Consul, args ...string) harness.Spec {
	t.Helper()
	return harness.Spec{Path: harness.Aimlock.Path(t), Args: append([]string{"lock", "exec"}, args...), Env: c.Env()}
}

// The exit code is the command's own, and what a clean end leaves in Consul is
// neither a session nor a service.
func TestExecEndsClean(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 128 + 15} {
		r := harness.Run(t, cmdLimit, lockExec(t, c, "push", "--", "sh", "-c", script))
		if r.Code != want || r.Stdout != "" {
			t.Errorf("%s: exit %d, want %d; %q", script, r.Code, want, r.Stdout)
		}
		if strings.Contains(r.Stderr, "ERROR:") {
			t.Errorf("%s: aimlock complains of a command that ended by itself: %s", script, r.Stderr)
		}
	}
	sessions, _, err := c.Client().Session().List(&api.QueryOptions{RequireConsistent: true})
	if err != nil || len(sessions) != 0 {
		t.Errorf("%d sessions are left, %v", len(sessions), err)
	}
	services, err := c.Client().Agent().Services()
	if err != nil || len(services) != 0 {
		t.Errorf("%d services are left, %v", len(services), err)
	}
	p, _, err := c.Client().KV().Get("aimlock/locks/push", nil)
	if err != nil || p == nil || p.Session != "" || !strings.Contains(string(p.Value), `"released":true`) {
		t.Errorf("the lock is not left released: %+v, %v", p, err)
	}
}

// alive reports whether a process runs; one that nobody has reaped yet does not.
func alive(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// A held lock refuses who does not wait. When its holder is killed (kill -9), the
// whole tree of its command dies with it, also what left the session, and the
// next one has the lock soon.
func TestExecKilled(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	dir := t.TempDir()
	pids := []string{filepath.Join(dir, "child"), filepath.Join(dir, "grandchild")}
	a := harness.Start(t, lockExec(t, c, "push", "--", "sh", "-c",
		`setsid sh -c 'echo $$ >"$0.new" && mv "$0.new" "$0"; exec sleep 600' "$1" & echo $$ >"$0.new" && mv "$0.new" "$0"; wait`, pids[0], pids[1]))
	harness.Eventually(t, cmdLimit, "the command runs", func() bool { return exists(pids[0]) && exists(pids[1]) })
	for i, path := range pids {
		pids[i] = strings.TrimSpace(readFile(t, path))
		if !alive(pids[i]) {
			t.Fatalf("process %s does not run", pids[i])
		}
	}

	r := harness.Run(t, cmdLimit, lockExec(t, c, "-try", "push", "--", "echo", "never"))
	if r.Code != 4 || !strings.HasPrefix(r.Stderr, "ERROR: push: HELD\n") || r.Stdout != "" {
		t.Errorf("-try on a held lock: exit %d, %q, %q", r.Code, r.Stdout, r.Stderr)
	}
	if !strings.Contains(r.Stderr, "pid "+strconv.Itoa(a.Pid())) {
		t.Errorf("the refusal does not say who holds the lock: %s", r.Stderr)
	}

	// A zombie, which nobody has reaped yet, does nothing any more.
	const script = `for p; do grep -sq "^State:.[^Z]" "/proc/$p/status" && echo "$p still runs"; done; echo $AIMLOCK_TOKEN`
	b := harness.Start(t, lockExec(t, c, "push", "--", "sh", "-c", script, "sh", pids[0], pids[1]))
	harness.Eventually(t, cmdLimit, "the next one waits", func() bool { return strings.Contains(b.Stderr(), "push: HELD") })
	a.Kill()
	// consul lock takes longer than this limit.
	if code := b.Wait(cmdLimit); code != 0 {
		t.Errorf("the next holder: exit %d, %s", code, b.Stderr())
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %s runs on after its holder was killed and the lock passed on", pid)
		}
	}
	if token, err := strconv.ParseUint(strings.TrimSpace(b.Stdout()), 10, 64); err != nil || token == 0 {
		t.Errorf("the command was given token %q", b.Stdout())
	}
}

// The locks of consul lock are listed beside aimlock's own.
func TestListsConsulLock(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")}
	harness.Start(t, lockExec(t, c, "push", "--", "sh", "-c", `touch "$0"; exec sleep 600`, files[0]))
	harness.Start(t, harness.Spec{
		Path: harness.ConsulBin.Path(t), Args: []string{"lock", "ops/push", "touch " + files[1] + " && exec sleep 600"}, Env: c.Env(),
	})
	harness.Eventually(t, cmdLimit, "both hold", func() bool { return exists(files[0]) && exists(files[1]) })
	out := harness.Output(t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"lock", "list", "-json"}, Env: c.Env()})
	var list []struct {
		Name   string `json:"name"`
		Key    string `json:"key"`
		State  string `json:"state"`
		Holder struct {
			Tool string `json:"tool"`
		} `json:"holder"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	tools := map[string]string{}
	for _, l := range list {
		tools[l.Key] = l.State + " by " + l.Holder.Tool
	}
	if len(list) != 2 || tools["aimlock/locks/push"] != "HELD by aimlock" || tools["ops/push/.lock"] != "HELD by consul-lock" {
		t.Errorf("lock list says %v in\n%s", tools, out)
	}
}

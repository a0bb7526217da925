package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

// onHost makes a command run on another host, as far as one machine can be
// two: with a host name of its own and, if apart, in a pid namespace of its own
// with its own /proc, where no process of this one is to be seen. The boot id
// stays the machine's.
func onHost(t *testing.T, host string, apart bool, s harness.Spec) harness.Spec {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err == nil {
		err = exec.CommandContext(t.Context(), unshare, "--uts", "--pid", "--fork", "--mount-proc", "true").Run()
	}
	if err != nil {
		t.Skipf("SKIPPED: a second host needs unshare(1) and root: %v", err)
	}
	args := []string{"--uts"}
	if apart {
		args = append(args, "--pid", "--fork", "--kill-child", "--mount-proc")
	}
	// The shell becomes the command, so that it has the pid that is killed.
	args = append(args, "sh", "-c", `hostname "$0" && exec "$@"`, host, s.Path)
	s.Args, s.Path = append(args, s.Args...), unshare
	return s
}

// hosts are two Consul nodes, each with hosts' names of their own, under a
// server.
type hosts struct {
	server, a, b *harness.Consul
}

func startHosts(t *testing.T) *hosts {
	t.Helper()
	s := harness.StartConsul(t)
	return &hosts{s, harness.StartClient(t, s, harness.WithName("node-a")), harness.StartClient(t, s, harness.WithName("node-b"))}
}

// agentOn starts an aimlock agent on host a, and waits until it is registered.
func (h *hosts) agentOn(t *testing.T, host string) *harness.Process {
	t.Helper()
	p := harness.Start(t, onHost(t, host, false, harness.Spec{Path: harness.Aimlock.Path(t), Env: h.a.Env(),
		Args: []string{"agent", "-node", host, "-state-dir", filepath.Join(t.TempDir(), "state")}}))
	harness.Eventually(t, cmdLimit, "the agent is registered", func() bool {
		list, _, err := h.server.Client().Health().Service("aimlock-agent", "", true, nil)
		return err == nil && len(list) == 1
	})
	return p
}

// holds reports whether a process of host holds the lock.
func (h *hosts) holds(host string) bool {
	p, _, err := h.server.Client().KV().Get("aimlock/locks/push", &api.QueryOptions{RequireConsistent: true})
	return err == nil && p != nil && p.Session != "" && strings.Contains(string(p.Value), `"host":"`+host+`"`)
}

type aliveFact struct{ known, alive bool }

// alive is what a command on host b makes of the holder.
func (h *hosts) alive(t *testing.T) (aliveFact, string) {
	t.Helper()
	r := harness.Run(t, cmdLimit, onHost(t, "host-b", true, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"lock", "status", "-json", "push"}, Env: h.b.Env()}))
	var st struct {
		Evidence []struct {
			Fact, Why, Source string
			Known             bool
			Value             any
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &st); err != nil {
		t.Fatalf("%v\n%s\n%s", err, r.Stdout, r.Stderr)
	}
	for _, e := range st.Evidence {
		if e.Fact == "holder.alive" {
			lives, _ := e.Value.(bool)
			return aliveFact{e.Known, lives}, e.Source + e.Why
		}
	}
	t.Fatalf("no holder.alive in %s", r.Stdout)
	return aliveFact{}, ""
}

// A holder on one host is killed (kill -9). Its host's agent sees that, and a
// waiter on another host, which cannot see the process, takes the lock within a
// second and waits for no quiesce: everything of the old hold is proved dead.
// Without the agent it would be the check's TTL, confirmation and 15 s.
func TestDeathOnAnotherHost(t *testing.T) {
	t.Parallel()
	h := startHosts(t)
	h.agentOn(t, "host-a")
	dir := t.TempDir()
	pid, ran := filepath.Join(dir, "pid"), filepath.Join(dir, "ran")
	old := harness.Start(t, onHost(t, "host-a", false, harness.Spec{Path: harness.Aimlock.Path(t), Env: h.a.Env(),
		Args: []string{"lock", "exec", "push", "--", "sh", "-c", `echo $$ > "$0.new" && mv "$0.new" "$0"; exec sleep 600`, pid}}))
	harness.Eventually(t, cmdLimit, "the child runs", func() bool { return exists(pid) })
	harness.Eventually(t, cmdLimit, "host b knows that the holder lives", func() bool {
		got, _ := h.alive(t)
		return got.known && got.alive
	})
	next := harness.Start(t, onHost(t, "host-b", true, harness.Spec{Path: harness.Aimlock.Path(t), Env: h.b.Env(),
		Args: []string{"lock", "exec", "push", "--", "sh", "-c", `touch "$0"; exec sleep 600`, ran}}))
	harness.Eventually(t, cmdLimit, "the next one waits", func() bool { return strings.Contains(next.Stderr(), "waiting") })
	start := time.Now()
	old.Kill()
	harness.Eventually(t, cmdLimit, "the command of host b runs", func() bool { return exists(ran) })
	took := time.Since(start)
	t.Logf("the next command runs %s after the kill", took)
	if !h.holds("host-b") {
		t.Error("host b does not hold the lock")
	}
	// A check's TTL is 10 s, and the quiesce 15 s: on a busy machine a second
	// may be some.
	if took > 6*time.Second {
		t.Errorf("it took %s", took)
	}
	child, err := os.ReadFile(pid)
	if err != nil || alive(strings.TrimSpace(string(child))) {
		t.Errorf("the old child %s runs, %v", child, err)
	}
	if !strings.Contains(next.Stderr(), "agent of host host-a") {
		t.Errorf("it is not said on whose evidence:\n%s", next.Stderr())
	}
	harness.Eventually(t, cmdLimit, "what was said of the old hold is taken away", func() bool {
		p, _, err := h.server.Client().KV().Get("aimlock/observed/push/node-a", nil)
		return err == nil && p == nil
	})
}

// What an agent said of a live holder is believed while the agent runs, and not
// any longer; and a stopped holder is not dead.
func TestAliveOnAnotherHost(t *testing.T) {
	t.Parallel()
	h := startHosts(t)
	agent := h.agentOn(t, "host-a")
	old := harness.Start(t, onHost(t, "host-a", false, harness.Spec{Path: harness.Aimlock.Path(t), Env: h.a.Env(),
		Args: []string{"lock", "exec", "push", "--", "sleep", "600"}}))
	harness.Eventually(t, cmdLimit, "host a holds the lock", func() bool { return h.holds("host-a") })
	harness.Eventually(t, cmdLimit, "host b knows that the holder lives", func() bool {
		got, _ := h.alive(t)
		return got.known && got.alive
	})
	agent.Signal(syscall.SIGKILL)
	agent.Wait(cmdLimit)
	why := ""
	harness.Eventually(t, cmdLimit, "host b knows nothing any more", func() bool {
		var got aliveFact
		got, why = h.alive(t)
		return !got.known
	})
	if !strings.Contains(why, "its check is critical") {
		t.Errorf("the reason is %q", why)
	}
	if !h.holds("host-a") {
		t.Errorf("the lock was lost:\n%s", old.Stderr())
	}
}

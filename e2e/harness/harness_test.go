package harness_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

const limit = 60 * time.Second

func put(t *testing.T, c *harness.Consul, key string) {
	t.Helper()
	if _, err := c.Client().KV().Put(&api.KVPair{Key: key, Value: []byte("x")}, nil); err != nil {
		t.Fatal(err)
	}
}

func has(c *harness.Consul, key string) bool {
	p, _, err := c.Client().KV().Get(key, &api.QueryOptions{RequireConsistent: true})
	return err == nil && p != nil
}

// A cluster keeps its data and serves on through the death of its leader, and a
// server that comes back catches up.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := harness.StartCluster(t)
	old := c.Leader()
	if n := len(c.Followers()); n != 2 {
		t.Fatalf("%d followers", n)
	}
	put(t, old, "before")
	old.Kill()
	leader := c.NewLeader(old, limit)
	harness.Eventually(t, limit, "the new leader serves", func() bool { return has(leader, "before") })
	put(t, leader, "while it was dead")
	old.Restart()
	harness.Eventually(t, limit, "the old leader is back", func() bool { return has(old, "while it was dead") })

	frozen := c.Leader()
	frozen.Freeze()
	leader = c.NewLeader(frozen, limit)
	harness.Eventually(t, limit, "the cluster serves without its frozen leader", func() bool { return has(leader, "before") })
	frozen.Thaw()
	harness.Eventually(t, limit, "the frozen leader is back", func() bool { return has(frozen, "before") })
}

// A client agent that dies is failed by Serf, and one that leaves is gone.
func TestClient(t *testing.T) {
	t.Parallel()
	server := harness.StartConsul(t)
	client := harness.StartClient(t, server, harness.WithName("dies"))
	leaver := harness.StartClient(t, server, harness.WithName("leaves"))
	put(t, client, "through the client")
	if !has(server, "through the client") {
		t.Error("the server has not what its client wrote")
	}
	leaver.Leave()
	client.Kill()
	catalog, health := server.Client().Catalog(), server.Client().Health()
	harness.Eventually(t, limit, "the leaver is out of the catalog", func() bool {
		n, _, err := catalog.Node("leaves", nil)
		return err == nil && n == nil
	})
	harness.Eventually(t, limit, "the dead client fails", func() bool {
		checks, _, err := health.Node("dies", nil)
		return err == nil && len(checks) == 1 && checks[0].Status == api.HealthCritical
	})
}

// A server with its state on disk has it after a restart.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData())
	if c.DataDir() == "" {
		t.Error("no data dir")
	}
	put(t, c, "a")
	c.Stop()
	c.Restart()
	c.WaitReady()
	if !has(c, "a") {
		t.Error("the key is gone")
	}
}

// With ACLs, a client without rights is refused a key, and sees no sessions
// instead of an error.
func TestACL(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithACL("5b5c4ab6-3d7b-4d3c-9a0e-5d1f1c6d7e8f"))
	put(t, c, "a")
	if _, _, err := c.Client().Session().Create(nil, nil); err != nil {
		t.Fatal(err)
	}
	anonymous := c.ClientWith("")
	if _, _, err := anonymous.KV().Get("a", nil); err == nil {
		t.Error("anybody may read keys")
	}
	if all, _, err := anonymous.Session().List(nil); err != nil || len(all) != 0 {
		t.Errorf("anybody sees %d sessions, %v", len(all), err)
	}
	if all, _, err := c.Client().Session().List(nil); err != nil || len(all) != 1 {
		t.Errorf("the management token sees %d sessions, %v", len(all), err)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	sh := func(script string) harness.Result {
		return harness.Run(t, limit, harness.Spec{Path: "/bin/sh", Args: []string{"-c", script}, Stdin: []byte("in"), Env: []string{"A=b"}})
	}
	r := sh("cat; echo $A; echo err >&2; exit 3")
	if r.Code != 3 || r.Stdout != "inb\n" || r.Stderr != "err\n" {
		t.Errorf("got %+v", r)
	}
	if r := sh("kill -9 $$"); r.Code != 128+9 {
		t.Errorf("exit %d after SIGKILL", r.Code)
	}
}

const orphanMaker = "HARNESS_TEST_ORPHAN_MAKER"

// What a test started dies with the test's process, even if that is killed.
func TestNothingOutlivesTheTest(t *testing.T) {
	if os.Getenv(orphanMaker) != "" {
		p := harness.Start(t, harness.Spec{Path: "/bin/sh", Args: []string{"-c", "exec sleep 600"}})
		if _, err := os.Stdout.WriteString(strconv.Itoa(p.Pid()) + "\n"); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.Done()
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNothingOutlivesTheTest$")
	cmd.Env = append(os.Environ(), orphanMaker+"=1")
	out, err := cmd.Output()
	if err == nil {
		t.Fatalf("the test process was not killed: %s", out)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatalf("no pid in %q", out)
	}
	harness.Eventually(t, limit, "the child of the killed test is gone", func() bool {
		return !running(pid)
	})
}

// running tells whether a process exists and is not a zombie, which one is that
// nobody has reaped yet.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

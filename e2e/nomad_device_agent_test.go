package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/plugin/nomaddevice"
)

// contentOfDigits is a content whose revision Nomad takes for a number.
func contentOfDigits(t *testing.T) (content, revision string) {
	t.Helper()
	for n := range 100000 {
		content = fmt.Sprintf("revision = %d\n", n)
		sum := sha256.Sum256([]byte(content))
		if revision = hex.EncodeToString(sum[:])[:12]; strings.Trim(revision, "0123456789") == "" {
			return content, revision
		}
	}
	t.Fatal("no revision is made of digits alone")
	return "", ""
}

func revisionOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])[:12]
}

// placement is where the allocations of a job are.
type placement struct {
	ID, NodeName, ClientStatus, DesiredStatus string
}

// runExample runs the example job under another name.
func (c *nomadCluster) runExample(job, revision string) {
	c.t.Helper()
	src, err := os.ReadFile(filepath.Join(harness.Root(c.t), "examples/nomad/placed-by-config.nomad.hcl"))
	if err != nil {
		c.t.Fatal(err)
	}
	path := filepath.Join(c.t.TempDir(), "job.nomad.hcl")
	src = bytes.ReplaceAll(src, []byte(`job "placed-by-config"`), fmt.Appendf(nil, "job %q", job))
	if err := os.WriteFile(path, src, 0o600); err != nil {
		c.t.Fatal(err)
	}
	r := harness.Run(c.t, cmdLimit, harness.Spec{
		Path: nomadBin(c.t), Args: []string{"job", "run", "-detach", "-var", "revision=" + revision, path}, Env: []string{"NOMAD_ADDR=" + c.addr},
	})
	if r.Code != 0 {
		c.t.Fatalf("nomad job run: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

func (c *nomadCluster) allocations(job string) []placement {
	var out []placement
	if err := c.get("/v1/job/"+job+"/allocations", &out); err != nil {
		c.t.Logf("allocations of %s: %v", job, err)
	}
	return out
}

// placed waits until a job runs, and returns where.
func (c *nomadCluster) placed(job, on string) placement {
	c.t.Helper()
	var all []placement
	harness.Eventually(c.t, nomadLimit, "job "+job+" runs", func() bool {
		all = c.allocations(job)
		return len(all) == 1 && all[0].ClientStatus == "running"
	})
	if all[0].NodeName != on {
		c.t.Errorf("job %s runs on %s, want %s", job, all[0].NodeName, on)
	}
	return all[0]
}

// waits checks that a job waits for a machine: Nomad has judged it, and keeps an
// evaluation that is blocked.
func (c *nomadCluster) waits(job string) {
	c.t.Helper()
	harness.Eventually(c.t, nomadLimit, "job "+job+" waits", func() bool {
		var evals []struct{ Status string }
		if c.get("/v1/job/"+job+"/evaluations", &evals) != nil {
			return false
		}
		for _, e := range evals {
			if e.Status == "blocked" {
				return true
			}
		}
		return false
	})
	if all := c.allocations(job); len(all) != 0 {
		c.t.Errorf("job %s is placed: %+v", job, all)
	}
}

// deviceOn waits until a client's node has a device as ok wants it.
func (c *nomadCluster) deviceOn(client, what string, ok func(attributes map[string]map[string]any, healthy int) bool) {
	c.t.Helper()
	last := "none"
	defer func() {
		if c.t.Failed() {
			c.t.Logf("device on %s, last: %s", client, last)
		}
	}()
	harness.Eventually(c.t, nomadLimit, client+" has a device that "+what, func() bool {
		var nodes []struct{ ID, Name string }
		if c.get("/v1/nodes", &nodes) != nil {
			return false
		}
		for _, n := range nodes {
			if n.Name != client {
				continue
			}
			var node struct {
				NodeResources struct {
					Devices []struct {
						Vendor, Type, Name string
						Attributes         map[string]map[string]any
						Instances          []struct {
							ID, HealthDescription string
							Healthy               bool
						}
					}
				}
			}
			if err := c.get("/v1/node/"+n.ID, &node); err != nil {
				last = err.Error()
				return false
			}
			for _, d := range node.NodeResources.Devices {
				if d.Vendor != "aimlock" || d.Type != "config" || d.Name != deviceConfig {
					continue
				}
				healthy := 0
				for _, i := range d.Instances {
					if i.Healthy {
						healthy++
					}
				}
				last = fmt.Sprintf("%d of %d healthy (%s), %v", healthy, len(d.Instances), d.Instances[0].HealthDescription, d.Attributes)
				return ok(d.Attributes, healthy)
			}
		}
		return false
	})
}

// TestNomadLoadsDevices: a real Nomad places the example job only where a config
// has reached a revision and its lock is not HOT, and evicts nobody.
func TestNomadLoadsDevices(t *testing.T) {
	t.Parallel()
	nomadBin(t)
	consul := harness.StartConsul(t)
	one, two := newDeviceNode(t, consul.Addr, "n1"), newDeviceNode(t, consul.Addr, "n2")
	var configs []string
	var plugins string
	for _, n := range []*deviceNode{one, two} {
		plugins = filepath.Join(n.dir, "plugins")
		if err := os.Mkdir(plugins, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(harness.Aimlock.Path(t), filepath.Join(plugins, nomaddevice.Name)); err != nil {
			t.Fatal(err)
		}
		configs = append(configs, fmt.Sprintf(`plugin_dir = %q
plugin %q {
  config {
    state_dir     = %q
    root          = %q
    slots         = 8
    policies      = [%q]
    lock_interval = "1s"
    consul {
      address = %q
    }
  }
}
`, plugins, nomaddevice.Name, n.stateDir(), n.root(), n.write("policy.hcl", devicePolicy), consul.Addr))
	}
	firstContent := "revision = first\n"
	one.applied(firstContent)
	c := startNomadWith(t, configs...)
	isHealthy := func(a map[string]map[string]any) (is, told bool) {
		is, told = a["healthy"]["Bool"].(bool)
		return is, told
	}
	healthy := func(revision string) func(map[string]map[string]any, int) bool {
		return func(a map[string]map[string]any, n int) bool {
			is, _ := isHealthy(a)
			return n == 8 && is && (a["revision"]["String"] == revision || fmt.Sprintf("%.0f", a["revision"]["Int"]) == revision)
		}
	}
	unhealthy := func(a map[string]map[string]any, n int) bool {
		is, told := isHealthy(a)
		return n == 0 && told && !is
	}

	// Only the one machine has it.
	c.runExample("first", revisionOf(firstContent))
	first := c.placed("first", "client")
	harness.Eventually(t, nomadLimit, "the task has its variables", func() bool {
		log, err := os.ReadFile(filepath.Join(c.dir, "client", "alloc", first.ID, "alloc", "logs", "app.stdout.0"))
		return err == nil && bytes.Contains(log, []byte("AIMLOCK_CONFIG_AIM_LOCK_CONFIG_CONF_REVISION="+revisionOf(firstContent)+"\n"))
	})

	// Nobody has the next revision yet, which Nomad takes for a number; then the
	// other machine reaches it.
	content, digits := contentOfDigits(t)
	c.runExample("next", digits)
	c.waits("next")
	two.applied(content)
	c.placed("next", "client2")

	// One rollout brings both to the same, so that they are one class; then the agent of one is gone. Nomad judges one machine of a class for
	// all, and must not take one of these for the other.
	one.write("fleet.hcl", "node \"n1\" {\n}\nnode \"n2\" {\n}\n")
	bothContent := "revision = both\n"
	both := revisionOf(bothContent)
	one.applied(bothContent)
	c.deviceOn("client", "is at the new revision", healthy(both))
	c.deviceOn("client2", "is at the new revision", healthy(both))
	one.agent.Kill()
	c.deviceOn("client", "is unhealthy", unhealthy)
	for i := range 4 {
		job := fmt.Sprintf("beside-%d", i)
		c.runExample(job, both)
		c.placed(job, "client2")
	}

	// While the lock is HOT nobody is placed anywhere, and who runs stays.
	holder := two.holdLock()
	c.deviceOn("client2", "is unhealthy", unhealthy)
	c.runExample("later", both)
	c.waits("later")
	for _, job := range []string{"first", "next", "beside-0"} {
		if all := c.allocations(job); len(all) != 1 || all[0].ClientStatus != "running" || all[0].DesiredStatus != "run" {
			t.Errorf("job %s after the changes of health: %+v", job, all)
		}
	}
	holder.Signal(syscall.SIGTERM)
	holder.Wait(deviceLimit)
	c.placed("later", "client2")

	// A plugin that is killed is started again, and one whose client is killed
	// ends with it.
	running := func() (pids []int) {
		for _, n := range []*deviceNode{one, two} {
			pids = append(pids, processesOf(t, filepath.Join(n.dir, "plugins", nomaddevice.Name))...)
		}
		return pids
	}
	before := running()
	if len(before) != 2 {
		t.Fatalf("%d plugins run, want one for each client", len(before))
	}
	if err := syscall.Kill(before[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, nomadLimit, "the plugin is started again", func() bool {
		now := running()
		return len(now) == 2 && now[1] != before[1]
	})
	c.deviceOn("client2", "is healthy again", healthy(both))
	c.client.Kill()
	harness.Eventually(t, nomadLimit, "the plugin of the client that was killed ends", func() bool { return len(running()) == 1 })
}

// processesOf are the processes whose program was started by a path.
func processesOf(t *testing.T, path string) (pids []int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if b, err := os.ReadFile(line); err == nil && bytes.HasPrefix(b, append([]byte(path), 0)) {
			var pid int
			if _, err := fmt.Sscanf(line, "/proc/%d/cmdline", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

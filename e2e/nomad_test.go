package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	fleets "github.com/aim-control/aimlock/orchestrator/fleet"
)

// nomadBin is NOMAD_BIN or nomad on PATH. Without it the test is skipped.
func nomadBin(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("NOMAD_BIN"); bin != "" {
		return bin
	}
	bin, err := exec.LookPath("nomad")
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED AGAINST NOMAD: there is no nomad on PATH, and NOMAD_BIN is not set")
	}
	return bin
}

// nomadCluster is one server and one client, each a process of its own.
type nomadCluster struct {
	t      *testing.T
	addr   string
	client *harness.Process
}

func startNomad(t *testing.T) *nomadCluster {
	t.Helper()
	bin, dir := nomadBin(t), t.TempDir()
	t.Cleanup(func() { cleanNomad(t, dir) })
	ports := harness.FreePorts(t, 6)
	agent := func(name, hcl string, p []int) *harness.Process {
		file := filepath.Join(dir, name+".hcl")
		text := fmt.Sprintf(`data_dir = %q
name = %q
bind_addr = "127.0.0.1"
disable_update_check = true
ports {
  http = %d
  rpc  = %d
  serf = %d
}
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
%s`, filepath.Join(dir, name), name, p[0], p[1], p[2], hcl)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return harness.Start(t, harness.Spec{Path: bin, Args: []string{"agent", "-config", file}, Name: "nomad " + name})
	}
	c := &nomadCluster{t: t, addr: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	agent("server", `server {
  enabled           = true
  bootstrap_expect  = 1
  heartbeat_grace   = "1s"
  min_heartbeat_ttl = "1s"
}`, ports[:3])
	c.client = agent("client", fmt.Sprintf(`client {
  enabled    = true
  servers    = ["127.0.0.1:%d"]
  node_class = "small"
  meta {
    rack = "r1"
  }
  options = {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}`, ports[1]), ports[3:])
	harness.Eventually(t, time.Minute, "the client is ready", func() bool {
		var nodes []struct{ Status string }
		return c.get("/v1/nodes", &nodes) == nil && len(nodes) == 1 && nodes[0].Status == "ready"
	})
	return c
}

// cleanNomad takes away what a client leaves that is killed: its executors, which
// outlive it so that it can come back to its tasks, and the file systems that it
// mounted for them.
func cleanNomad(t *testing.T, dir string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, err := os.ReadFile(path)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && perr == nil && bytes.Contains(b, []byte(dir)) {
			// Not by one's group: the executor leads one, its task another.
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			if out, err := exec.Command("umount", f[1]).CombinedOutput(); err != nil {
				t.Logf("umount %s: %v: %s", f[1], err, out)
			}
		}
	}
}

func (c *nomadCluster) call(method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.addr+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: HTTP %d: %s", method, path, res.StatusCode, body)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(body, out)
}

func (c *nomadCluster) get(path string, out any) error { return c.call(http.MethodGet, path, nil, out) }

// run runs a command as a job of one allocation, and returns its id.
func (c *nomadCluster) run(job, kind string, argv ...string) string {
	c.t.Helper()
	off := map[string]any{"Attempts": 0, "Unlimited": false}
	err := c.call(http.MethodPut, "/v1/jobs", map[string]any{"Job": map[string]any{
		"ID": job, "Name": job, "Type": kind, "Datacenters": []string{"*"},
		"TaskGroups": []any{map[string]any{
			"Name": "g", "Count": 1, "ReschedulePolicy": off,
			"RestartPolicy": map[string]any{"Attempts": 0, "Mode": "fail", "Interval": int64(time.Minute), "Delay": int64(time.Second)},
			"Tasks": []any{map[string]any{
				"Name": "t", "Driver": "raw_exec", "Config": map[string]any{"command": argv[0], "args": argv[1:]},
				"Resources": map[string]any{"CPU": 20, "MemoryMB": 20},
			}},
		}},
	}}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	var allocs []struct{ ID string }
	harness.Eventually(c.t, time.Minute, "job "+job+" has an allocation", func() bool {
		return c.get("/v1/job/"+job+"/allocations", &allocs) == nil && len(allocs) > 0
	})
	return allocs[0].ID
}

// record keeps an answer for the unit tests, where NOMAD_RECORD is set.
func (c *nomadCluster) record(name, path string) {
	c.t.Helper()
	if os.Getenv("NOMAD_RECORD") == "" {
		return
	}
	var body any
	if err := c.get(path, &body); err != nil {
		c.t.Fatal(err)
	}
	if m, ok := body.(map[string]any); ok {
		// What machine it was is no matter.
		delete(m, "Meta")
		delete(m, "Attributes")
	}
	b, err := json.MarshalIndent(body, "", " ")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(harness.Root(c.t), "orchestrator/evidence/testdata/nomad", name), append(b, '\n'), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// TestNomad asks a real Nomad about allocations that run, complete, fail, are
// stopped, are lost with their client, and are collected.
func TestNomad(t *testing.T) {
	t.Parallel()
	c := startNomad(t)
	cl, err := nomadapi.New(nomadapi.Config{Address: c.addr})
	if err != nil {
		t.Fatal(err)
	}
	n := evidence.NewNomad(cl)
	ref := func(id string) evidence.AllocRef { return evidence.AllocRef{ID: id, Region: "global"} }
	becomes := func(id, what string) {
		t.Helper()
		last := ""
		index := uint64(0)
		harness.Eventually(t, time.Minute, "allocation is "+what, func() bool {
			a, next, err := n.Alloc(t.Context(), ref(id), evidence.Since{Index: index, Wait: 5 * time.Second})
			if err != nil {
				last = err.Error()
				return false
			}
			index = next
			last = strings.Join([]string{a.ClientStatus, a.DesiredStatus, a.NodeStatus}, " ")
			if a.Gone {
				last = "gone"
			}
			t.Logf("%s is %s", id, last)
			return last == what
		})
	}
	stays := c.run("stays", "service", "sleep", "60")
	stopped := c.run("stopped", "batch", "sleep", "60")
	ended, failed := c.run("ends", "batch", "true"), c.run("fails", "batch", "false")
	becomes(stays, "running run ready")
	becomes(stopped, "running run ready")
	becomes(ended, "complete run ready")
	becomes(failed, "failed run ready")
	if err := n.Stop(t.Context(), ref(stopped)); err != nil {
		t.Fatal(err)
	}
	becomes(stopped, "complete stop ready")

	// Another region, and an id that this one never had.
	if a, _, err := n.Alloc(t.Context(), evidence.AllocRef{ID: stays, Region: "mars"}, evidence.Since{}); err == nil || !strings.Contains(err.Error(), "No path to region") {
		t.Errorf("of another region: %+v, %v", a, err)
	}
	if a, _, err := n.Alloc(t.Context(), evidence.AllocRef{ID: strings.Repeat("0", 8) + stays[8:]}, evidence.Since{}); err == nil {
		t.Errorf("of no region: %+v", a)
	}

	// The fleet of its clients, by all that it filters.
	f := &fleets.Fleet{Meta: true, Nomad: func() (*nomadapi.Client, error) { return cl, nil }, Sources: []orchestrator.Source{{Nomad: &orchestrator.NomadSource{
		Region: "global", NodePool: "default", NodeClass: "small", Datacenter: "dc1", Meta: map[string]string{"rack": "r1"}, Filter: `SchedulingEligibility == "eligible"`,
	}}}}
	s, err := f.Survey(t.Context(), nil)
	if err != nil || len(s.Nodes) != 1 || s.Nodes[0].Name != "client" || s.Nodes[0].Meta["rack"] != "r1" || s.Nodes[0].Meta["node_class"] != "small" {
		t.Errorf("fleet %+v, %v", s, err)
	}
	f.Sources[0].Nomad.Meta["rack"] = "r2"
	if s, err := f.Survey(t.Context(), nil); err == nil {
		t.Errorf("fleet of another rack: %+v", s)
	}
	f.Sources[0].Nomad.Filter = `Nope == "x"`
	if _, err := f.Survey(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "Nope") {
		t.Errorf("fleet by no field: %v", err)
	}

	c.client.Kill()
	becomes(stays, "lost stop down")
	var lost struct{ NodeID string }
	if err := c.get("/v1/allocation/"+stays, &lost); err != nil {
		t.Fatal(err)
	}
	c.record("allocation-lost.json", "/v1/allocation/"+stays)
	c.record("node-down.json", "/v1/node/"+lost.NodeID)
	c.record("token-without-acls.json", "/v1/acl/token/self")
	// A client that is down is still of the fleet.
	f.Sources[0].Nomad = &orchestrator.NomadSource{}
	if s, err := f.Survey(t.Context(), nil); err != nil || len(s.Nodes) != 1 {
		t.Errorf("fleet of a client that is down: %+v, %v", s, err)
	}
	for _, job := range []string{"stays", "stopped", "ends", "fails"} {
		if err := c.call(http.MethodDelete, "/v1/job/"+job+"?purge=true", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, time.Minute, "the allocation is collected", func() bool {
		if err := c.call(http.MethodPut, "/v1/system/gc", nil, nil); err != nil {
			return false
		}
		a, _, err := n.Alloc(t.Context(), ref(ended), evidence.Since{})
		return err == nil && a.Gone
	})
}

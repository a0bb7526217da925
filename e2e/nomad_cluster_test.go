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
	"github.com/aim-control/aimlock/internal/nomadapi/nomadtest"
)

// nomadLimit bounds whatever is awaited of Nomad. What takes longest on a calm
// machine is that a client is said to be down, some 20 s, and that a change of a
// device steers placement: a client collects changes for five to ten seconds.
const nomadLimit = 5 * time.Minute

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

// nomadCluster is one server and its clients, each a process of its own, unless it
// is said otherwise.
type nomadCluster struct {
	t      *testing.T
	addr   string
	region string
	client *harness.Process // the first
	dir    string
	// token is of management, where Nomad asks for tokens.
	token string
	// http speaks TLS where Nomad does; nil: http.DefaultClient.
	http *http.Client
}

// nomadAgent starts an agent of Nomad. Its ports are those of HTTP, RPC and Serf.
func nomadAgent(t *testing.T, bin, dir, name, hcl string, ports []int) *harness.Process {
	t.Helper()
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
%s`, filepath.Join(dir, name), name, ports[0], ports[1], ports[2], hcl)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return harness.Start(t, harness.Spec{Path: bin, Args: []string{"agent", "-config", file}, Name: "nomad " + name})
}

// Parts of agents' configurations.
const (
	//
	// Nobody is said to be down because the machine is busy: a client has twenty
	// seconds and more to be heard, which is Nomad's default.
	nomadServer = `server {
  enabled          = true
  bootstrap_expect = 1
}
`
	// Of the port of the server, and of the fingerprints that are not taken.
	nomadClient = `client {
  enabled    = true
  servers    = ["127.0.0.1:%d"]
  node_class = "small"
  meta {
    rack = "r1"
  }
  options = {
    "fingerprint.denylist" = "%s"
  }
}
plugin "raw_exec" {
  config {
    enabled = true
  }
}
`
	// Nothing is asked that does not answer away from a cloud.
	nomadDenied = "env_aws,env_gce,env_azure,env_digitalocean"
)

func startNomad(t *testing.T) *nomadCluster {
	t.Helper()
	return startNomadWith(t, "")
}

// startNomadWith starts a client for each of configs, which are added to what
// every client has.
func startNomadWith(t *testing.T, configs ...string) *nomadCluster {
	t.Helper()
	bin, dir := nomadBin(t), t.TempDir()
	t.Cleanup(func() { cleanNomad(t, dir) })
	ports := harness.FreePorts(t, 3+3*len(configs))
	c := &nomadCluster{t: t, dir: dir, region: "global", addr: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	nomadAgent(t, bin, dir, "server", nomadServer, ports[:3])
	denied := nomadDenied
	if len(configs) > 1 {
		// A client tells of its signals in no order, so that no two are of one class.
		denied += ",signal"
	}
	for i, config := range configs {
		name := "client"
		if i > 0 {
			name += strconv.Itoa(i + 1)
		}
		p := nomadAgent(t, bin, dir, name, fmt.Sprintf(nomadClient, ports[1], denied)+config, ports[3+3*i:6+3*i])
		if i == 0 {
			c.client = p
		}
	}
	c.ready(len(configs))
	return c
}

// ready waits for so many clients.
func (c *nomadCluster) ready(clients int) {
	c.t.Helper()
	harness.Eventually(c.t, nomadLimit, "the clients are ready", func() bool {
		var nodes []struct{ Status string }
		if c.get("/v1/nodes", &nodes) != nil || len(nodes) != clients {
			return false
		}
		for _, n := range nodes {
			if n.Status != "ready" {
				return false
			}
		}
		return true
	})
}

// bootstrap makes the token of management, which c uses from then on.
func (c *nomadCluster) bootstrap() {
	c.t.Helper()
	var token struct{ SecretID string }
	harness.Eventually(c.t, nomadLimit, "there is a token of management", func() bool {
		return c.call(http.MethodPut, "/v1/acl/bootstrap", nil, &token) == nil
	})
	c.token = token.SecretID
}

// newToken makes a token with one policy of these rules, which lives for ttl; 0: for
// ever.
func (c *nomadCluster) newToken(name, rules string, ttl time.Duration) string {
	c.t.Helper()
	if err := c.call(http.MethodPut, "/v1/acl/policy/"+name, map[string]any{"Name": name, "Rules": rules}, nil); err != nil {
		c.t.Fatal(err)
	}
	in := map[string]any{"Name": name, "Type": "client", "Policies": []string{name}}
	if ttl > 0 {
		in["ExpirationTTL"] = ttl.String()
	}
	var token struct{ SecretID string }
	if err := c.call(http.MethodPut, "/v1/acl/token", in, &token); err != nil {
		c.t.Fatal(err)
	}
	return token.SecretID
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
	if c.token != "" {
		req.Header.Set("X-Nomad-Token", c.token)
	}
	client := c.http
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
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

// job is a job of one group and one task of raw_exec. update is its update block,
// nil for none.
func nomadJob(id, kind string, update map[string]any, argv ...string) map[string]any {
	group := map[string]any{
		"Name": "g", "Count": 1, "ReschedulePolicy": map[string]any{"Attempts": 0, "Unlimited": false},
		"RestartPolicy": map[string]any{"Attempts": 0, "Mode": "fail", "Interval": int64(time.Minute), "Delay": int64(time.Second)},
		"Tasks": []any{map[string]any{
			"Name": "t", "Driver": "raw_exec", "Config": map[string]any{"command": argv[0], "args": argv[1:]},
			"Resources": map[string]any{"CPU": 20, "MemoryMB": 20},
		}},
	}
	if update != nil {
		group["Update"] = update
	}
	return map[string]any{"ID": id, "Name": id, "Type": kind, "Datacenters": []string{"*"}, "TaskGroups": []any{group}}
}

// register gives a job to Nomad.
func (c *nomadCluster) register(job map[string]any) {
	c.t.Helper()
	path := "/v1/jobs"
	if ns, ok := job["Namespace"].(string); ok {
		path += "?namespace=" + ns
	}
	if err := c.call(http.MethodPut, path, map[string]any{"Job": job}, nil); err != nil {
		c.t.Fatal(err)
	}
}

// run runs a command as a job of one allocation, and returns its id.
func (c *nomadCluster) run(job, kind string, argv ...string) string {
	c.t.Helper()
	c.register(nomadJob(job, kind, nil, argv...))
	var allocs []struct{ ID string }
	harness.Eventually(c.t, nomadLimit, "job "+job+" has an allocation", func() bool {
		return c.get("/v1/job/"+job+"/allocations", &allocs) == nil && len(allocs) > 0
	})
	return allocs[0].ID
}

// recordings is a way to the cluster of which what goes by can be kept.
type recordings struct {
	*nomadtest.Recorder
	client *nomadapi.Client
	c      *nomadCluster
	how    string
}

// recorder stands before the cluster. how says what it was set up to be; token
// is what its client shows.
func (c *nomadCluster) recorder(how, token string) *recordings {
	c.t.Helper()
	r := &recordings{Recorder: nomadtest.Record(c.t, c.addr), c: c, how: how}
	var err error
	if r.client, err = nomadapi.New(nomadapi.Config{Address: r.Addr, Token: token}); err != nil {
		c.t.Fatal(err)
	}
	return r
}

// keep names what went by since the last keep.
func (r *recordings) keep(name string) {
	r.c.t.Helper()
	r.Save(filepath.Join(harness.Root(r.c.t), "internal/nomadapi/nomadtest/recorded"), name, r.c.version(), r.how)
}

// version is that of the cluster.
func (c *nomadCluster) version() string {
	c.t.Helper()
	var self struct {
		Member struct{ Tags map[string]string } `json:"member"`
	}
	if err := c.get("/v1/agent/self", &self); err != nil {
		c.t.Fatal(err)
	}
	return self.Member.Tags["build"]
}

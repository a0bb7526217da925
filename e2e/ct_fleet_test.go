package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// ctFleet is nodes that the real consul-template serves, as the files of
// examples/consul-template say, with nothing changed but where things stand.
type ctFleet struct {
	*fleet
	config  string // the consul-template configuration of the example
	nodeEnv map[string][]string
	procs   map[string]*harness.Process
}

// newCTFleet starts one consul-template for each of n nodes.
func newCTFleet(t *testing.T, c *harness.Consul, id string, n int, config string) *ctFleet {
	t.Helper()
	client, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		t.Fatal(err)
	}
	f := &ctFleet{
		fleet:  &fleet{t: t, consul: c, client: client, prefix: keys.Prefix(id + "/"), dir: t.TempDir(), env: c.Env()},
		config: config, nodeEnv: map[string][]string{}, procs: map[string]*harness.Process{},
	}
	var list []map[string]string
	for i := range n {
		node := fmt.Sprintf("%s-n%d", id, i+1)
		f.nodes = append(f.nodes, node)
		list = append(list, map[string]string{"node": node})
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	f.write("fleet.json", string(b))
	for _, node := range f.nodes {
		f.setUp(node)
		f.procs[node] = f.consulTemplate(node, "consul-template.hcl")
	}
	return f
}

// example is a file of the example, for one node of this test.
func (f *ctFleet) example(node, name string) string {
	f.t.Helper()
	text := readFile(f.t, filepath.Join(harness.Root(f.t), "examples", "consul-template", name))
	for old, place := range map[string]string{
		"/etc/aimlock": f.path(node, "etc"), "/var/lib/aimlock": f.path(node, "var"),
		// All nodes of the test are one machine.
		"aimlock agent apply": "aimlock agent apply -root " + f.path(node, "root"), "web-1": node,
	} {
		text = strings.ReplaceAll(text, old, place)
	}
	return text
}

func (f *ctFleet) path(node string, parts ...string) string {
	return filepath.Join(append([]string{f.dir, node}, parts...)...)
}

// setUp does what the example's README says of a machine.
func (f *ctFleet) setUp(node string) {
	f.t.Helper()
	for _, dir := range []string{"etc", "var", "root"} {
		if err := os.MkdirAll(f.path(node, dir), 0o750); err != nil {
			f.t.Fatal(err)
		}
	}
	template := f.example(node, "aimlock.ctmpl")
	f.write(node+"/etc/aimlock.ctmpl", template)
	for _, config := range []string{"aim_lock_config.conf", "aim_limits.conf"} {
		named := strings.Replace(template, `env "AIMLOCK_CONFIG_NAME"`, fmt.Sprintf("%q", config), 1)
		if named == template {
			f.t.Fatal("the template has no line that names the config")
		}
		f.write(node+"/etc/"+config+".ctmpl", named)
	}
	f.write(node+"/etc/consul-template.hcl", f.example(node, f.config))
	f.nodeEnv[node] = append([]string{
		"AIMLOCK_CONFIG_NAME=" + fleetConfig, "AIMLOCK_NODE=" + node, "AIMLOCK_STATE_DIR=" + f.path(node, "var"),
		"AIMLOCK_PREFIX=" + string(f.prefix), "CT_SECRET=of " + node,
		"PATH=" + filepath.Dir(harness.Aimlock.Path(f.t)) + ":" + os.Getenv("PATH"),
	}, f.env...)
	var file struct{ Service api.AgentServiceRegistration }
	if err := json.Unmarshal([]byte(f.example(node, "consul-service.json")), &file); err != nil {
		f.t.Fatal(err)
	}
	if err := f.consul.Client().Agent().ServiceRegister(&file.Service); err != nil {
		f.t.Fatal(err)
	}
}

// consulTemplate starts one on a node, by a file of the node's etc.
func (f *ctFleet) consulTemplate(node, config string) *harness.Process {
	f.t.Helper()
	return harness.Start(f.t, harness.Spec{
		Path: harness.ConsulTemplate.Path(f.t), Args: []string{"-config", f.path(node, "etc", config)},
		Env: f.nodeEnv[node], Name: "consul-template of " + node,
	})
}

// restart is what systemd does by the example's unit.
func (f *ctFleet) restart(node string) {
	f.t.Helper()
	unit := f.example(node, "aimlock-consul-template.service")
	_, line, ok := strings.Cut(unit, "ExecStartPre=-/bin/sh -c '")
	line, _, closed := strings.Cut(line, "'\n")
	if !ok || !closed {
		f.t.Fatalf("the unit has no ExecStartPre:\n%s", unit)
	}
	harness.Run(f.t, cmdLimit, harness.Spec{Path: "/bin/sh", Args: []string{"-c", line}, Env: f.nodeEnv[node]})
	f.procs[node] = f.consulTemplate(node, "consul-template.hcl")
}

// spec writes the rollout of one config in three stages; extra stands in its
// config block.
func (f *ctFleet) spec(content, extra string) {
	f.t.Helper()
	f.write("app.conf", content)
	f.write("rollout.hcl", fmt.Sprintf(`rollout "app" {
  config %q {
    source      = "app.conf"
    destination = "/etc/app/app.conf"
    %s
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "canary" {
    nodes = 1
  }
  stage "half" {
    percent      = 50
    max_parallel = 5
  }
  stage "rest" {
    percent = 100
  }
}
`, fleetConfig, extra))
}

// have counts the nodes with a content.
func (f *ctFleet) have(content string) (n int) {
	for _, node := range f.nodes {
		if b, err := os.ReadFile(f.file(node)); err == nil && string(b) == content {
			n++
		}
	}
	return n
}

// assigned counts the nodes to which an order of the config was given.
func (f *ctFleet) assigned() int {
	f.t.Helper()
	list, err := f.client.List(f.t.Context(), f.prefix.DesiredAll(fleetConfig))
	if err != nil {
		f.t.Fatal(err)
	}
	return len(list)
}

// answer waits for what a node says of a config.
func (f *ctFleet) answer(config, node, what string, ok func(*records.Actual) bool) records.Actual {
	f.t.Helper()
	var a records.Actual
	key := f.prefix.Actual(config, node)
	harness.Eventually(f.t, cmdLimit, node+" says "+what, func() bool {
		p, err := f.client.Get(f.t.Context(), key)
		a = records.Actual{}
		return err == nil && p != nil && records.Decode(key, p.Value, &a) == nil && ok(&a)
	})
	return a
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

const (
	fleetConfig = "app.conf"
	fleetWants  = "revision = 2\n"
	// fleetLimit bounds one rollout of a small fleet, a take-over that has to
	// wait for Consul included.
	fleetLimit = 90 * time.Second
)

// manyConns lets one address have more connections than Consul's default of 200,
// which whole fleets in one process pass: each blocking query has one.
var manyConns = harness.WithHCL("limits { http_max_conns_per_client = 3000 }")

// fleet is some agents under a prefix of their own, so that many fleets share a
// Consul, the rollout that they get, and the files that they write.
type fleet struct {
	t      testing.TB
	consul *harness.Consul
	client *consulkv.Client
	prefix keys.Prefix
	dir    string
	nodes  []string
	env    []string
}

// newFleet starts n agents in this process. id makes prefix and nodes unique;
// extra stands in the rollout's config block.
func newFleet(t testing.TB, c *harness.Consul, id string, n int, extra string) *fleet {
	t.Helper()
	f := &fleet{t: t, consul: c, prefix: keys.Prefix(id + "/"), dir: t.TempDir(), env: c.Env()}
	var err error
	if f.client, err = consulkv.New(consulkv.Config{Address: c.Addr}); err != nil {
		t.Fatal(err)
	}
	type member struct {
		Node string `json:"node"`
	}
	var list []member
	for i := range n {
		f.nodes = append(f.nodes, fmt.Sprintf("%s-n%d", id, i+1))
		list = append(list, member{f.nodes[i]})
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	f.write("fleet.json", string(b))
	f.write("app.conf", fleetWants)
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
    max_parallel = 1
  }
  stage "rest" {
    percent      = 100
    max_parallel = 1
  }
}
`, fleetConfig, extra))
	for _, node := range f.nodes {
		f.startAgent(node)
	}
	waitForAgents(t, c, f.nodes)
	return f
}

// waitForAgents waits until all agents have checked in: a node without a passing
// check is unreachable, and a rollout goes on without it.
func waitForAgents(t testing.TB, c *harness.Consul, nodes []string) {
	t.Helper()
	client := c.Client()
	harness.Eventually(t, fleetLimit, "all agents have checked in", func() bool {
		for _, node := range nodes {
			checks, _, err := client.Health().Checks(agent.ServiceName, &api.QueryOptions{Filter: fmt.Sprintf("ServiceID == %q", agent.ServiceID(node))})
			if err != nil || len(checks) != 1 || checks[0].Status != api.HealthPassing {
				return false
			}
		}
		return true
	})
}

func (f *fleet) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) startAgent(node string) {
	f.t.Helper()
	a, err := agent.New(agent.Config{
		Node: node, StateDir: filepath.Join(f.dir, node, "state"), Root: filepath.Join(f.dir, node, "root"),
		Consul: f.client, Prefix: f.prefix,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("agent %s: %v", node, err)
		}
	})
}

// file is where a node's file stands.
func (f *fleet) file(node string) string {
	return filepath.Join(f.dir, node, "root", "etc", "app", "app.conf")
}

// aimlock is a call of aimlock under the fleet's prefix.
func (f *fleet) aimlock(verb, sub string, args ...string) harness.Spec {
	return harness.Spec{
		Path: harness.Aimlock.Path(f.t), Args: append([]string{verb, sub, "-prefix", string(f.prefix)}, args...),
		Env: f.env, Dir: f.dir,
	}
}

// rollout is a call that drives the fleet's rollout.
func (f *fleet) rollout(args ...string) harness.Spec {
	return f.aimlock("rollout", "start", append(args, "rollout.hcl")...)
}

// finishes drives the rollout to its good end, by a second orchestrator.
func (f *fleet) finishes() harness.Result {
	f.t.Helper()
	r := harness.Run(f.t, fleetLimit, f.rollout())
	if r.Code != 0 {
		f.t.Errorf("the next orchestrator: exit %d; stdout:\n%s\nstderr:\n%s", r.Code, r.Stdout, r.Stderr)
	}
	return r
}

// counted is what `rollout list` and `rollout status` say in JSON.
type counted struct {
	ID     string              `json:"id"`
	State  orchestrator.Status `json:"state"`
	Counts map[string]int      `json:"counts"`
	Total  int                 `json:"total"`
}

// succeeded checks all that a finished rollout must have left: one rollout, each
// node in exactly one class, each file at the new revision, each node's answer
// to the very order that it was given last.
func (f *fleet) succeeded() {
	f.t.Helper()
	var all []counted
	f.json(&all, f.aimlock("rollout", "list", "-json"))
	if len(all) != 1 {
		f.t.Errorf("%d rollouts where there shall be one: %+v", len(all), all)
		return
	}
	var st counted
	f.json(&st, f.aimlock("rollout", "status", "-json", all[0].ID))
	sum := 0
	for _, n := range st.Counts {
		sum += n
	}
	n := len(f.nodes)
	if st.State != orchestrator.Succeeded || st.Total != n || sum != n || st.Counts["applied"] != n {
		f.t.Errorf("rollout %s is %s with %v of %d nodes, want all %d applied", st.ID, st.State, st.Counts, st.Total, n)
	}
	for _, node := range f.nodes {
		if b, err := os.ReadFile(f.file(node)); err != nil || string(b) != fleetWants {
			f.t.Errorf("%s has %q, %v", node, b, err)
		}
		var want records.Desired
		var have records.Actual
		f.record(f.prefix.Desired(fleetConfig, node), &want)
		f.record(f.prefix.Actual(fleetConfig, node), &have)
		if have.Result != records.ResultApplied || have.Order != want.Order || have.Revision != want.Revision || want.Rollout != st.ID {
			f.t.Errorf("%s shall have %s by order %s of %s, and says %s of %s by order %s", node, want.Revision, want.Order, want.Rollout, have.Result, have.Revision, have.Order)
		}
	}
}

func (f *fleet) json(v any, spec harness.Spec) {
	f.t.Helper()
	out := harness.Output(f.t, cmdLimit, spec)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		f.t.Fatalf("%s: %v in\n%s", strings.Join(spec.Args, " "), err, out)
	}
}

func (f *fleet) record(key string, v any) {
	f.t.Helper()
	p, err := f.client.Get(f.t.Context(), key)
	if err != nil || p == nil {
		f.t.Fatalf("read %s: %v, %v", key, p, err)
	}
	if err := records.Decode(key, p.Value, v); err != nil {
		f.t.Fatal(err)
	}
}

// watchOrders follows what all nodes shall have for as long as the test runs.
// It fails the test if any order is older than one that stood before it.
func (f *fleet) watchOrders() {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	seen := 0
	wg.Go(func() {
		last, q := map[string]orchestrator.Order{}, &api.QueryOptions{WaitTime: time.Minute}
		for ctx.Err() == nil {
			list, meta, err := f.client.API().KV().List(f.prefix.DesiredAll(fleetConfig), q.WithContext(ctx))
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				f.t.Errorf("follow the orders: %v", err)
				return
			}
			q.WaitIndex = meta.LastIndex
			for _, p := range list {
				var d records.Desired
				if err := records.Decode(p.Key, p.Value, &d); err != nil {
					f.t.Error(err)
					return
				}
				if d.Order.Less(last[p.Key]) {
					f.t.Errorf("%s went back from order %s to %s", p.Key, last[p.Key], d.Order)
				}
				last[p.Key] = d.Order
				seen = len(last)
			}
		}
	})
	f.t.Cleanup(func() {
		cancel()
		wg.Wait()
		if seen != len(f.nodes) && !f.t.Failed() {
			f.t.Errorf("orders of %d of %d nodes were seen", seen, len(f.nodes))
		}
	})
}

// reload is a reload command under the test's control: the n-th call of it makes
// the folder n below dir, and goes on once the file open-n or open is there.
func reload(dir string) string {
	script := `n=1; until mkdir "$0/$n" 2>/dev/null; do n=$((n+1)); done; ` +
		`until [ -e "$0/open-$n" ] || [ -e "$0/open" ]; do sleep 0.02; done`
	argv, err := json.Marshal([]string{"sh", "-c", strings.ReplaceAll(strings.ReplaceAll(script, "${", "$${"), "%{", "%%{"), dir})
	if err != nil {
		panic(err)
	}
	return `reload = ` + string(argv)
}

// exists reports whether a file or folder is there.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// touch makes an empty file.
func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// TestDatacenters: a parent rollout whose nodes are datacenters, each with a
// Consul of its own, as examples/datacenters has it. What is good reaches all,
// one datacenter after the other; what one datacenter refuses is taken back in
// every one.
func TestDatacenters(t *testing.T) {
	t.Parallel()
	home := harness.StartConsul(t, manyConns)
	dir, bin := t.TempDir(), filepath.Dir(harness.Aimlock.Path(t))
	put := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"east", "south", "west"}
	fleets := map[string]*fleet{}
	for _, name := range names {
		// No machine of the west takes revision 3.
		f := newFleet(t, harness.StartConsul(t, manyConns), name, 3, `validate = ["/bin/sh", "-c", "! grep -q 'revision = 3' $1 || ! grep -q west `+filepath.Join(dir, name, "name")+`", "sh", "$${staged}"]`)
		fleets[name] = f
		put(filepath.Join(dir, name, "name"), name, 0o600)
		// What a control machine has: the child's spec, and how it is started.
		spec, err := os.ReadFile(filepath.Join(f.dir, "rollout.hcl"))
		if err != nil {
			t.Fatal(err)
		}
		f.write("rollout.hcl", strings.Replace(string(spec), "  stage \"canary\"", "  failure {\n    then = \"rollback\"\n  }\n  stage \"canary\"", 1))
		root := filepath.Join(dir, name, "root")
		here := filepath.Join(root, "srv/rollouts")
		put(filepath.Join(here, "child.hcl"), readText(t, filepath.Join(f.dir, "rollout.hcl")), 0o600)
		put(filepath.Join(here, "fleet.json"), readText(t, filepath.Join(f.dir, "fleet.json")), 0o600)
		put(filepath.Join(dir, "here", name), fmt.Sprintf("#!/bin/sh\nexport CONSUL_HTTP_ADDR=%s PATH=%s:$PATH\nexec aimlock rollout start -prefix %s %s\n",
			f.consul.Addr, bin, f.prefix, filepath.Join(here, "child.hcl")), 0o700)
		harness.Start(t, harness.Spec{
			Path: harness.Aimlock.Path(t), Name: "agent of " + name, Env: home.Env(),
			Args: []string{"agent", "-node", name, "-state-dir", filepath.Join(dir, name, "state"), "-root", root},
		})
	}
	put(filepath.Join(dir, "datacenters.json"), `[{"node":"west"},{"node":"east"},{"node":"south"}]`, 0o600)
	put(filepath.Join(dir, "parent.hcl"), `rollout "datacenters" {
  node_deadline = "2h"
  config "datacenter.conf" {
    source      = "app.conf"
    destination = "/srv/rollouts/app.conf"
    reload      = ["/bin/sh", "-c", "exec \"$1/$AIMLOCK_NODE\"", "sh", "`+filepath.Join(dir, "here")+`"]
    timeout     = "1h"
  }
  fleet {
    file {
      path = "datacenters.json"
    }
  }
  stage "first" {
    nodes = 1
  }
  stage "rest" {
    percent      = 100
    max_parallel = 1
  }
  failure {
    then = "rollback"
  }
}
`, 0o600)
	waitForAgents(t, home, names)
	parent := harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"rollout", "start", "parent.hcl"}, Env: home.Env(), Dir: dir}
	all := func(want string) {
		t.Helper()
		for _, name := range names {
			for _, node := range fleets[name].nodes {
				if b, err := os.ReadFile(fleets[name].file(node)); err != nil || string(b) != want {
					t.Errorf("%s has %q, %v; want %q", node, b, err, want)
				}
			}
		}
	}

	put(filepath.Join(dir, "app.conf"), "revision = 2\n", 0o600)
	if r := harness.Run(t, fleetLimit, parent); r.Code != 0 {
		t.Fatalf("exit %d: %s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	all("revision = 2\n")

	put(filepath.Join(dir, "app.conf"), "revision = 3\n", 0o600)
	if r := harness.Run(t, fleetLimit, parent); r.Code != 6 {
		t.Fatalf("exit %d where the west refuses: %s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	all("revision = 2\n")
	// It did reach the others before the west said no.
	for _, name := range []string{"east", "south"} {
		var list []counted
		fleets[name].json(&list, fleets[name].aimlock("rollout", "list", "-json"))
		if len(list) != 3 {
			t.Errorf("%s has %d rollouts, want three: out, on, and back: %+v", name, len(list), list)
		}
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

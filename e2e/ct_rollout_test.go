package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/records"
)

// Twenty nodes, each served by a consul-template of its own, get rollouts in
// stages from one Consul.
func TestConsulTemplateFleet(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	f := newCTFleet(t, c, "ct", 20, "consul-template.hcl")
	one := "revision = 1\n"
	var first records.Desired

	t.Run("stages", func(t *testing.T) {
		gate := t.TempDir()
		t.Cleanup(func() { touch(t, filepath.Join(gate, "open")) })
		f.spec(one, reload(gate))
		p := harness.Start(t, f.rollout())
		harness.Eventually(t, fleetLimit, "the canary is at work", func() bool { return exists(filepath.Join(gate, "1")) })
		if n, m := f.assigned(), f.have(one); n != 1 || m != 1 {
			t.Errorf("in the first stage %d nodes have an order and %d the file, want 1 and 1", n, m)
		}
		touch(t, filepath.Join(gate, "open-1"))
		harness.Eventually(t, fleetLimit, "the second stage is at work", func() bool { return exists(filepath.Join(gate, "2")) })
		if n := f.assigned(); n > 6 {
			t.Errorf("%d nodes have an order, want the canary and at most 5", n)
		}
		touch(t, filepath.Join(gate, "open"))
		if code := p.Wait(fleetLimit); code != 0 {
			t.Fatalf("exit %d\n%s\n%s", code, p.Stdout(), p.Stderr())
		}
		if n := f.have(one); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file", n, len(f.nodes))
		}
		for _, node := range f.nodes {
			f.answer(fleetConfig, node, "applied", func(a *records.Actual) bool { return a.Result == records.ResultApplied })
		}
		f.record(f.prefix.Desired(fleetConfig, f.nodes[0]), &first)
	})

	// Whoever writes to configs/ by hand reaches no file, be it a new content or
	// that of the revision that all nodes have.
	t.Run("a direct change", func(t *testing.T) {
		node := f.nodes[0]
		key := f.prefix.ConfigChunk(fleetConfig, first.SHA256, 0)
		before := strings.Count(f.procs[node].Stdout(), "unchanged, revision "+first.Revision)
		for key, text := range map[string]string{key: "by hand\n", f.prefix.ConfigChunk(fleetConfig, strings.Repeat("ab", 32), 0): "another\n"} {
			if err := f.client.Put(t.Context(), key, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		// It is rendered, and the order that it comes with is answered already.
		harness.Eventually(t, cmdLimit, "it is rendered", func() bool {
			return strings.HasSuffix(readFile(t, f.path(node, "var", "staged")), "by hand\n")
		})
		harness.Eventually(t, cmdLimit, "it is given to aimlock", func() bool {
			return strings.Count(f.procs[node].Stdout(), "unchanged, revision "+first.Revision) > before
		})
		if n := f.have(one); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file that the rollout brought", n, len(f.nodes))
		}
	})

	// A content over the limit of a value, that looks like a template, has bytes
	// of all kinds and no end of a line.
	two := "{{ key \"x\" }}\r\n\x00\xff" + noise(700<<10) + " {{ end"
	t.Run("any content", func(t *testing.T) {
		f.spec(two, "")
		f.finishes()
		if n := f.have(two); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file", n, len(f.nodes))
		}
		var d records.Desired
		if f.record(f.prefix.Desired(fleetConfig, f.nodes[0]), &d); d.Chunks < 3 {
			t.Errorf("it has %d chunks", d.Chunks)
		}
	})

	t.Run("a stale pointer", func(t *testing.T) {
		node := f.nodes[1]
		if err := f.client.Put(t.Context(), f.prefix.Desired(fleetConfig, node), records.Encode(&first)); err != nil {
			t.Fatal(err)
		}
		a := f.answer(fleetConfig, node, "refused", func(a *records.Actual) bool { return a.Result == records.ResultRefused })
		if a.Refused == nil || *a.Refused != first.Order {
			t.Errorf("%s", records.Encode(a))
		}
		harness.Eventually(t, cmdLimit, "aimlock says so", func() bool {
			return strings.Contains(f.procs[node].Stderr(), "ERROR: app.conf: order "+first.Order.String())
		})
		if n := f.have(two); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file", n, len(f.nodes))
		}
	})

	// Both consul-template and the apply that it started die by SIGKILL in the
	// middle of an order. The unit's start ends it, and the rollout goes on.
	t.Run("killed", func(t *testing.T) {
		gate, three := t.TempDir(), "revision = 3\n"
		t.Cleanup(func() { touch(t, filepath.Join(gate, "open")) })
		f.spec(three, `reload = ["sh", "-c", "[ -e $0/open ] || { echo $PPID $AIMLOCK_NODE >$0/pid.new && mv $0/pid.new $0/pid; sleep 600; }", "`+gate+`"]`)
		p := harness.Start(t, f.rollout())
		var pid int
		var node string
		harness.Eventually(t, fleetLimit, "the canary is at work", func() bool {
			b, err := os.ReadFile(filepath.Join(gate, "pid"))
			n, serr := fmt.Sscan(string(b), &pid, &node)
			return err == nil && serr == nil && n == 2
		})
		f.procs[node].Kill()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, cmdLimit, "aimlock is gone", func() bool { return !exists("/proc/" + strconv.Itoa(pid)) })
		if b, err := os.ReadFile(f.file(node)); err != nil || string(b) != three {
			t.Errorf("the file is neither old nor new: %q, %v", b[:min(len(b), 40)], err)
		}
		touch(t, filepath.Join(gate, "open"))
		f.restart(node)
		if code := p.Wait(fleetLimit); code != 0 {
			t.Fatalf("exit %d\n%s\n%s", code, p.Stdout(), p.Stderr())
		}
		if n := f.have(three); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file", n, len(f.nodes))
		}
	})

	// Two consul-templates on one node: what they deliver is done once. The
	// second has a staged file of its own: consul-template runs no command for a
	// file that has the content already, so with one file between them only the
	// faster one is sure to give it to aimlock.
	t.Run("two of them", func(t *testing.T) {
		node, log := f.nodes[2], filepath.Join(t.TempDir(), "log")
		config := readFile(t, f.path(node, "etc", "consul-template.hcl"))
		own := strings.ReplaceAll(config, f.path(node, "var", "staged"), f.path(node, "var", "staged-2"))
		if own == config {
			t.Fatalf("the config names no staged file:\n%s", config)
		}
		f.write(node+"/etc/second.hcl", own)
		second := f.consulTemplate(node, "second.hcl")
		// A command beside the config that consul-template delivers.
		kept := filepath.Join(t.TempDir(), "kept")
		harness.Start(t, harness.Spec{
			Path: harness.Aimlock.Path(t), Env: f.nodeEnv[node], Name: "agent exec",
			Args: []string{
				"agent", "exec", "-follow", "-root", f.path(node, "root"), fleetConfig, "--",
				"sh", "-c", `cat "$1" >>"$0"; exec sleep 600`, kept, f.file(node),
			},
		})
		harness.Eventually(t, cmdLimit, "the command runs", func() bool { return exists(kept) && readFile(t, kept) == "revision = 3\n" })
		f.spec("revision = 4\n", `reload = ["sh", "-c", "echo $AIMLOCK_NODE >>$0", "`+log+`"]`)
		f.finishes()
		var d records.Desired
		f.record(f.prefix.Desired(fleetConfig, node), &d)
		said := func(p *harness.Process) bool { return strings.Contains(p.Stdout(), "order "+d.Order.String()+"\n") }
		harness.Eventually(t, cmdLimit, "both have given it to aimlock", func() bool { return said(second) && said(f.procs[node]) })
		harness.Eventually(t, cmdLimit, "the command was restarted", func() bool { return readFile(t, kept) == "revision = 3\nrevision = 4\n" })
		if n := strings.Count(readFile(t, log), node+"\n"); n != 1 {
			t.Errorf("reloaded %d times", n)
		}
		if n := f.have("revision = 4\n"); n != len(f.nodes) {
			t.Errorf("%d nodes of %d have the file", n, len(f.nodes))
		}
	})
}

// Several configs of one rollout, one of them with secrets, by the example for
// several.
func TestConsulTemplateFleetSeveral(t *testing.T) {
	t.Parallel()
	const password = "correct-horse-battery"
	f := newCTFleet(t, harness.StartConsul(t), "cg", 2, "consul-template-several.hcl")
	if err := f.client.Put(t.Context(), "app/password", []byte(password)); err != nil {
		t.Fatal(err)
	}
	spec := func(v int, validate string) {
		f.write("main.tpl", fmt.Sprintf("v%d ${node.name} ${secret.db} ${secret.env}\n", v))
		f.write("limits", fmt.Sprintf("v%d", v)+noise(300<<10))
		f.write("rollout.hcl", fmt.Sprintf(`rollout "several" {
  config "aim_lock_config.conf" {
    source      = "main.tpl"
    destination = "/etc/main.conf"
    template    = true
    secret "db" {
      consul_key = "app/password"
    }
    secret "env" {
      env = "CT_SECRET"
    }
  }
  config "aim_limits.conf" {
    source      = "limits"
    destination = "/etc/limits.conf"
    validate    = ["sh", "-c", %q]
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "all" {
    percent = 100
  }
  failure {
    max_failed = 2
  }
}
`, validate))
	}
	stands := func(node string, v int) {
		t.Helper()
		main, limits := readFile(t, f.path(node, "root", "etc", "main.conf")), readFile(t, f.path(node, "root", "etc", "limits.conf"))
		if main != fmt.Sprintf("v%d %s %s of %s\n", v, node, password, node) || limits != fmt.Sprintf("v%d", v)+noise(300<<10) {
			t.Errorf("%s is not at %d: %q, %q", node, v, main, limits[:min(2, len(limits))])
		}
	}
	spec(1, "true")
	f.finishes()
	for _, node := range f.nodes {
		stands(node, 1)
	}
	// One of the two is not valid on one of the nodes: that one keeps both.
	spec(2, "test $AIMLOCK_NODE != cg-n2")
	r := harness.Run(t, fleetLimit, f.rollout())
	if r.Code != 0 {
		t.Errorf("exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	stands("cg-n1", 2)
	stands("cg-n2", 1)
	for _, config := range []string{"aim_lock_config.conf", "aim_limits.conf"} {
		f.answer(config, "cg-n2", "failed", func(a *records.Actual) bool {
			return a.Result == records.ResultFailed && strings.HasPrefix(a.Error, "aim_limits.conf: validate")
		})
	}
	// The secrets are in the files and in the node's state, and nowhere else.
	// All keys with all contents: a Consul that is busy takes longer for them than one try may.
	ctx, cancel := context.WithTimeout(t.Context(), fleetLimit)
	defer cancel()
	list, _, err := f.client.API().KV().List(string(f.prefix), (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if strings.Contains(string(p.Value), password) {
			t.Errorf("the secret is in Consul: %s", p.Key)
		}
	}
	for _, node := range f.nodes {
		p := f.procs[node]
		staged := readFile(t, f.path(node, "var", "staged", "aim_lock_config.conf"))
		if strings.Contains(p.Stdout()+p.Stderr()+staged, password) {
			t.Errorf("%s: the secret is in an output or in the staged file", node)
		}
	}
}

// noise is n bytes of all kinds, the same at each run.
func noise(n int) string {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return string(b)
}

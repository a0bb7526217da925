package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// The main jobs, at trace, with secrets that can be told apart: none of them is in
// anything that came out, and no process has one that it was not given.
func TestSecretsStayIn(t *testing.T) {
	t.Parallel()
	const (
		value   = "canary-value-7d1f9a"
		content = "canary-content-c3b2e8"
		hook    = "canary-hook-51ee07"
		db      = "apps/db/password"
	)
	g := newGuarded(t)
	f := g.fleet
	// The agent reads one secret more.
	rules := g.rules["agent"] + "\nkey \"" + db + "\" {\n  policy = \"read\"\n}\n"
	g.tokens["agent"] = g.token("agent-with-secret", rules)
	if _, err := g.consul.Client().KV().Put(&api.KVPair{Key: db, Value: []byte(value)}, nil); err != nil {
		t.Fatal(err)
	}
	// Tokens come from files, so that no environment has them.
	secrets := map[string]string{"the value of a secret": value, "a content": content, "the secret of a hook": hook, "the management token": management}
	for role, token := range g.tokens {
		secrets["the token of "+role] = token
		f.write("token-"+role, token+"\n")
	}
	run := func(role, verb string, args ...string) harness.Spec {
		spec := g.as(role, verb, append([]string{"-log-level", "trace", "-token-file", "token-" + role}, args...)...)
		spec.Env = []string{"CONSUL_HTTP_ADDR=" + g.consul.Addr, "AIMLOCK_PREFIX=" + string(f.prefix), "HOOK_SECRET=" + hook, canaryMark}
		return spec
	}
	var posts atomic.Int64
	posted := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { posts.Add(1) }))
	t.Cleanup(posted.Close)
	f.write("policies.hcl", aclPolicy)
	f.write("app.conf", "text = "+content+"\npassword = ${secret.db}\n")
	f.write("rollout.hcl", fmt.Sprintf(`rollout "app" {
  config %q {
    source      = "app.conf"
    template    = true
    destination = "/etc/app/app.conf"
    mode        = "0600"
    validate    = ["sh", "-c", %q]
    reload      = ["sh", "-c", "exit 3"]
    secret "db" {
      consul_key = %q
    }
  }
  fleet {
    consul { service = %q }
  }
  stage "all" { percent = 100 }
}
`, fleetConfig, held(f.dir, "validated", `! grep -q aimlock:secret "$AIMLOCK_STAGED"`), db, agent.ServiceName))
	f.write("smith.hcl", fmt.Sprintf(`journal = "journal"
policies = ["policies.hcl"]
hook "post" {
  on         = ["break", "break_done"]
  url        = %q
  secret_env = "HOOK_SECRET"
}
hook "told" {
  on      = ["break", "break_done"]
  timeout = "1m"
  command = ["sh", "-c", %q]
}
`, posted.URL, held(f.dir, "heard", "cat >> told")))
	var out []harness.Result
	processes := newCensus(secrets)
	defer processes.end()
	// does runs a command that is there until the census has looked at all of those; hold
	// keeps one of its children, and so itself, waiting for that.
	does := func(spec harness.Spec, hold string, seen ...string) {
		t.Helper()
		p := harness.Start(t, spec)
		processes.saw(t, seen...)
		if hold != "" {
			f.write(hold, "")
		}
		code := p.Wait(fleetLimit)
		out = append(out, harness.Result{Code: code, Stdout: p.Stdout(), Stderr: p.Stderr()})
	}

	does(run("admin", "policy-apply", "policies.hcl"), "")
	node := harness.Start(t, run("agent", "agent", "-node", "n1", "-state-dir", "state", "-root", "root"))
	waitForAgents(t, g.consul, []string{"n1"})
	// The reload fails, so that the file is taken back, and errors are told.
	does(run("orchestrator", "rollout-plan", "rollout.hcl"), "")
	does(run("orchestrator", "rollout-start", "-policy", "policies.hcl", "rollout.hcl"), "validated", "aimlock agent ", "aimlock rollout start ", "validated")
	if last := out[len(out)-1]; !strings.Contains(last.Stdout+last.Stderr, "failed") {
		t.Fatalf("the rollout: exit %d\n%s%s", last.Code, last.Stdout, last.Stderr)
	}
	holder := harness.Start(t, run("exec", "lock-exec", "-policy", "policies.hcl", "stuck", "--", "sleep", "600"))
	g.held("stuck")
	processes.saw(t, "aimlock lock exec ", "sleep 600 ")
	for _, verb := range []string{"lock-list -policy policies.hcl", "lock-explain -json -policy policies.hcl stuck", "rollout-list -json", "policy-show -active"} {
		w := strings.Fields(verb)
		does(run("observer", w[0], w[1:]...), "")
	}
	does(run("observer", "lock-break", "-policy", "policies.hcl", "stuck"), "") // denied
	does(run("locksmith", "locksmith", "-once", "-config", "smith.hcl"), "heard", "aimlock locksmith ", "heard")
	holder.Wait(cmdLimit)
	node.Signal(syscall.SIGTERM)
	node.Wait(cmdLimit)
	for _, bad := range processes.end() {
		t.Error(bad)
	}

	look := func(where string, b []byte, allowed ...string) {
		for what, s := range secrets {
			if bytes.Contains(b, []byte(s)) && !contains(allowed, what) {
				t.Errorf("%s has %s", where, what)
			}
		}
	}
	for i, r := range out {
		// A plan shows what would be delivered: that is what it is for.
		var shown []string
		if i == 1 {
			shown = append(shown, "a content")
		}
		look(fmt.Sprintf("stdout of command %d", i), []byte(r.Stdout), shown...)
		look(fmt.Sprintf("stderr of command %d", i), []byte(r.Stderr))
	}
	for _, p := range []*harness.Process{node, holder} {
		look("the output of a daemon", []byte(p.Stdout()+p.Stderr()))
	}
	seen := 0
	err := filepath.WalkDir(f.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, _ := filepath.Rel(f.dir, path)
		top, _, _ := strings.Cut(rel, "/")
		if top != "journal" && top != "state" && top != "told" {
			return nil
		}
		b, err := os.ReadFile(path)
		seen++
		if !strings.Contains(rel, "/blobs/") { // copies of files, 0600 in 0700
			look(rel, b)
		}
		return err
	})
	if err != nil || seen < 3 {
		t.Errorf("%d files of journal and state were looked at, %v", seen, err)
	}
	list, _, err := g.consul.Client().KV().List(string(f.prefix), nil)
	if err != nil || len(list) < 10 {
		t.Fatalf("%d keys, %v", len(list), err)
	}
	contents := 0
	for _, p := range list {
		if bytes.Contains(p.Value, []byte(content)) {
			contents++
		}
		allowed := ""
		if strings.HasPrefix(p.Key, f.prefix.ConfigsRoot()) {
			allowed = "a content"
		}
		look(p.Key, p.Value, allowed)
	}
	// The secrets were used, and what was looked at is where they could be.
	var have records.Actual
	f.record(f.prefix.Actual(fleetConfig, "n1"), &have)
	if have.Result != records.ResultFailed || !strings.Contains(have.Error, "reload") {
		t.Errorf("n1 says %s: %s", have.Result, have.Error)
	}
	if posts.Load() == 0 || contents == 0 {
		t.Errorf("%d posts, %d contents", posts.Load(), contents)
	}
}

// canaryMark stands in the environment of all that the test starts, and of what that
// starts: commands on a node and hooks are given their parent's LANG, and little else.
const canaryMark = "LANG=canary-0b81dd"

// held is a command for sh that first waits for the file name in dir.
func held(dir, name, command string) string {
	return fmt.Sprintf("until [ -e '%s/%s' ]; do sleep 0.05; done; %s", dir, name, command)
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// census looks at the command lines and environments of all children of the test,
// for as long as it runs.
type census struct {
	secrets map[string]string
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once
	mu      sync.Mutex
	bad     map[string]bool
	lines   map[string]bool
}

func newCensus(secrets map[string]string) *census {
	c := &census{secrets: secrets, stop: make(chan struct{}), done: make(chan struct{}), bad: map[string]bool{}, lines: map[string]bool{}}
	go func() {
		defer close(c.done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			c.look()
			select {
			case <-tick.C:
			case <-c.stop:
				return
			}
		}
	}()
	return c
}

func (c *census) look() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 || bytes.Contains(line, []byte("consul\x00agent")) {
			continue // Consul itself is started with the management token
		}
		env, err := os.ReadFile(dir + "/environ")
		if err != nil || !bytes.Contains(env, []byte(canaryMark+"\x00")) {
			continue // no child of these jobs
		}
		name := strings.ReplaceAll(string(line), "\x00", " ")
		// It was given to aimlock; the command of lock exec has the environment of that.
		given := strings.Contains(name, "/aimlock ") || strings.HasPrefix(name, "sleep 600 ")
		c.mu.Lock()
		c.lines[name] = true
		for what, s := range c.secrets {
			if strings.Contains(name, s) {
				c.bad[fmt.Sprintf("a command line has %s: %s", what, name)] = true
			}
			if bytes.Contains(env, []byte(s)) && (!given || what != "the secret of a hook") {
				c.bad[fmt.Sprintf("the environment of %q has %s", name, what)] = true
			}
		}
		c.mu.Unlock()
	}
}

// saw waits until processes with these words in their command lines were looked at.
func (c *census) saw(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		harness.Eventually(t, fleetLimit, fmt.Sprintf("a process %q is looked at", w), func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			for line := range c.lines {
				if strings.Contains(line, w) {
					return true
				}
			}
			return false
		})
	}
}

func (c *census) end() []string {
	c.once.Do(func() { close(c.stop) })
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for b := range c.bad {
		out = append(out, b)
	}
	return out
}

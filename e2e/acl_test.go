package e2e

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

const management = "c0ffee00-7b3e-4b8e-9a5e-0d1a2b3c4d5e"

// guarded is a Consul that refuses all that no rule allows, and the roles.
type guarded struct {
	t      *testing.T
	consul *harness.Consul
	fleet  *fleet
	rules  map[string]string
	asks   map[string]*asks
	tokens map[string]string
}

// newGuarded has a token for each role, with the rules of examples/acl and
// nothing more. Each role asks Consul through a recorder.
func newGuarded(t *testing.T) *guarded {
	t.Helper()
	c := harness.StartConsul(t, harness.WithACL(management))
	kv, err := consulkv.New(consulkv.Config{Address: c.Addr, Token: management})
	if err != nil {
		t.Fatal(err)
	}
	g := &guarded{
		t: t, consul: c, rules: map[string]string{}, asks: map[string]*asks{}, tokens: map[string]string{},
		fleet: &fleet{t: t, consul: c, client: kv, prefix: "ops/aim/", dir: t.TempDir(), nodes: []string{"n1"}},
	}
	roles, err := acl.Roles()
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse("http://" + c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range roles {
		text, err := r.Rules(acl.Params{Prefix: g.fleet.prefix, Node: "n1", ConsulNode: c.Name, Configs: []string{fleetConfig}, Locks: []string{"job", "stuck", "dead", "asked", "night"}})
		if err != nil {
			t.Fatal(err)
		}
		g.rules[r.Name], g.tokens[r.Name] = text, g.token(r.Name, text)
		rec := &asks{}
		proxy := &httputil.ReverseProxy{
			Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(target); rec.note(p.Out) },
			FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		}
		srv := httptest.NewServer(proxy)
		t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
		rec.addr = strings.TrimPrefix(srv.URL, "http://")
		g.asks[r.Name] = rec
	}
	return g
}

// token makes a token that has these rules.
func (g *guarded) token(name, rules string) string {
	g.t.Helper()
	boss := g.consul.Client().ACL()
	policy, _, err := boss.PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	if err != nil {
		g.t.Fatalf("%v in\n%s", err, rules)
	}
	token, _, err := boss.TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	return token.SecretID
}

// as is a call of aimlock by a role; a dash parts a verb of two words.
func (g *guarded) as(role, verb string, args ...string) harness.Spec {
	spec := harness.Spec{
		Path: harness.Aimlock.Path(g.t), Dir: g.fleet.dir, Name: role + ": aimlock " + verb,
		Args: append(strings.Split(verb, "-"), args...),
		Env:  []string{"CONSUL_HTTP_ADDR=" + g.asks[role].addr, "CONSUL_HTTP_TOKEN=" + g.tokens[role], "AIMLOCK_PREFIX=" + string(g.fleet.prefix)},
	}
	return spec
}

// does runs a role's command, which must succeed and print what is wanted.
func (g *guarded) does(role, verb, want string, args ...string) string {
	g.t.Helper()
	r := harness.Run(g.t, fleetLimit, g.as(role, verb, args...))
	if r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, want) {
		g.t.Errorf("%s: aimlock %s %v: exit %d, want 0 and %q; stdout:\n%s\nstderr:\n%s", role, verb, args, r.Code, want, r.Stdout, r.Stderr)
	}
	if strings.Contains(r.Stdout+r.Stderr, "ermission denied") || strings.Contains(r.Stderr, "to a policy of the token") {
		g.t.Errorf("%s: aimlock %s %v works, but was denied something:\n%s\n%s", role, verb, args, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

func (g *guarded) eventually(what string, ok func(kv *api.KV) bool) {
	g.t.Helper()
	kv := g.consul.Client().KV()
	harness.Eventually(g.t, cmdLimit, what, func() bool { return ok(kv) })
}

func (g *guarded) held(name string) {
	g.t.Helper()
	g.eventually(name+" is held", func(kv *api.KV) bool {
		p, _, err := kv.Get(g.fleet.prefix.Lock(name), nil)
		return err == nil && p != nil && p.Session != ""
	})
}

const aclPolicy = `policy "stuck" {
  locks = ["stuck", "dead"]
  hot "held" {
    when   = session.exists
    proof  = true
    reason = "it is held"
  }
  break {
    approval = "auto"
    budget {
      max = 9
      per = "1h"
    }
    step "take" {}
  }
}

policy "asked" {
  locks = ["asked"]
  hot "held" {
    when   = session.exists
    proof  = true
    reason = "it is held"
  }
  break {
    approval = "manual"
    budget {
      max = 3
      per = "1h"
    }
    step "take" {}
  }
}

policy "default" {
  locks = ["**"]
  hot "gone" {
    when = !session.exists
  }
}
`

// Each role does its whole job with its rules, on a Consul that denies all else;
// each rule is needed for it; and no role can do what is another's.
func TestACL(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	f := g.fleet
	f.write("policies.hcl", aclPolicy)
	f.write("app.conf", fleetWants)
	spec := func(content string) string {
		return fmt.Sprintf(`rollout "app" {
  config %q {
    source      = %q
    destination = "/etc/app/app.conf"
  }
  fleet {
    consul { service = %q }
  }
  stage "all" {
    percent = 100
    bake    = "10m"
  }
}
`, fleetConfig, content, agent.ServiceName)
	}
	f.write("rollout.hcl", strings.Replace(spec("app.conf"), `    bake    = "10m"`, "", 1))
	f.write("baking.hcl", spec("app2.conf"))
	f.write("second.hcl", strings.Replace(strings.Replace(spec("app2.conf"), `"app"`, `"second"`, 1), "  stage", `  conflict = "queue"
  lock { wait = "10m" }
  stage`, 1))
	f.write("app2.conf", "revision = 3\n")

	g.does("admin", "policy-apply", "Applied", "policies.hcl")

	node := harness.Start(t, g.as("agent", "agent", "-node", "n1", "-state-dir", "state", "-root", "root", "-log-level", "trace"))
	waitForAgents(t, g.consul, []string{"n1"})
	g.does("orchestrator", "rollout-plan", "n1", "rollout.hcl")
	g.does("orchestrator", "rollout-start", "succeeded", "-policy", "policies.hcl", "rollout.hcl")
	if b, err := os.ReadFile(filepath.Join(f.dir, "root/etc/app/app.conf")); err != nil || string(b) != fleetWants {
		t.Errorf("n1 has %q, %v", b, err)
	}
	g.does("orchestrator", "rollout-tick", "", "-policy", "policies.hcl", "rollout.hcl")
	g.does("agent", "agent-status", fleetConfig, "-state-dir", "state")

	// Somebody works under a lock: all see it, and the agent says that he lives.
	job := harness.Start(t, g.as("exec", "lock-exec", "-policy", "policies.hcl", "job", "--", "sleep", "600"))
	g.held("job")
	g.eventually("the agent tells of the holder of job", func(kv *api.KV) bool {
		p, _, err := kv.Get(f.prefix.Observed("job", g.consul.Name), nil)
		return err == nil && p != nil
	})
	for _, role := range []string{"observer", "operator", "locksmith", "orchestrator"} {
		out := g.does(role, "lock-status", `"state": "HELD"`, "-json", "-policy", "policies.hcl", "job")
		for _, fact := range []string{`"session.exists"`, `"node.serf"`, `"check.status"`} {
			if _, rest, ok := strings.Cut(out, fact); !ok || !strings.Contains(rest[:strings.IndexByte(rest, '}')], `"known": true`) {
				t.Errorf("%s: %s is not known:\n%s", role, fact, out)
			}
		}
	}
	g.observe()
	g.operate(job)
	g.smith()

	// A user of lock exec and an orchestrator, too, break what is HOT: here the
	// holder was killed, and is proved dead.
	for _, role := range []string{"exec", "orchestrator"} {
		dead := harness.Start(t, g.as("exec", "lock-exec", "-policy", "policies.hcl", "dead", "--", "sleep", "600"))
		g.held("dead")
		dead.KillGroup()
		g.does(role, "lock-exec", "mine now", "-policy", "policies.hcl", "dead", "--", "echo", "mine now")
	}
	night := harness.Start(t, g.as("exec", "lock-exec", "-policy", "policies.hcl", "-progress-fd", "3", "night", "--", "sh", "-c", "echo 1/2 rows >&3; exec sleep 600"))
	g.held("night")
	g.eventually("it tells of its progress", func(kv *api.KV) bool {
		p, _, err := kv.Get(f.prefix.Progress("night"), nil)
		return err == nil && p != nil
	})
	t.Run("others", g.others)
	t.Run("lacking", g.lacking)
	g.does("admin", "recover", "", "-yes")
	if code := night.Wait(cmdLimit); code != 7 {
		t.Errorf("the voided holder ended with %d", code)
	}
	node.Signal(syscall.SIGTERM)
	if code := node.Wait(cmdLimit); code != 0 || strings.Contains(node.Stderr(), "ermission denied") {
		t.Errorf("the agent: exit %d\n%s", code, node.Stderr())
	}
	for role, rec := range g.asks {
		if os.Getenv("ACL_TRACE") != "" {
			t.Logf("%s:\n%s", role, rec)
		}
		for _, idle := range rec.idle(g.rules[role]) {
			t.Errorf("%s needs no %s", role, idle)
		}
	}
}

// observe is what an observer does.
func (g *guarded) observe() {
	for verb, want := range map[string]string{
		"lock-list": "job", "lock-explain job": "job", "rollout-list": "succeeded", "policy-show -active": "stuck",
	} {
		words := strings.Fields(verb)
		args := words[1:]
		if strings.HasPrefix(verb, "lock-") {
			args = append([]string{"-policy", "policies.hcl"}, args...)
		}
		g.does("observer", words[0], want, args...)
	}
	var all []counted
	g.fleet.json(&all, g.as("observer", "rollout-list", "-json"))
	if len(all) != 1 {
		g.t.Fatalf("%d rollouts", len(all))
	}
	g.does("observer", "rollout-status", "succeeded", all[0].ID)
	g.does("observer", "rollout-watch", "succeeded", all[0].ID)
	g.does("observer", "rollout-report", "succeeded", "-json", all[0].ID)
	w := harness.Start(g.t, g.as("observer", "lock-watch", "-policy", "policies.hcl", "job"))
	g.eventually("an observer watches", func(*api.KV) bool { return strings.Contains(w.Stdout(), "HELD") })
	w.Signal(syscall.SIGINT)
	w.Wait(cmdLimit)
}

// operate is what an operator does, the last of which ends the job.
func (g *guarded) operate(job *harness.Process) {
	rollout := harness.Start(g.t, g.as("orchestrator", "rollout-start", "-policy", "policies.hcl", "baking.hcl"))
	id := ""
	g.eventually("the rollout bakes", func(*api.KV) bool {
		var all []counted
		g.fleet.json(&all, g.as("observer", "rollout-list", "-json"))
		for _, r := range all {
			if r.State == "baking" {
				id = r.ID
			}
		}
		return id != ""
	})
	// Another one waits for its turn, until the operator ends it.
	second := harness.Start(g.t, g.as("orchestrator", "rollout-start", "-policy", "policies.hcl", "second.hcl"))
	waiting := ""
	g.eventually("another rollout waits", func(kv *api.KV) bool {
		list, _, err := kv.Keys(g.fleet.prefix.Queue(), "", nil)
		if err == nil && len(list) == 1 {
			waiting = strings.TrimPrefix(list[0], g.fleet.prefix.Queue())
		}
		return waiting != ""
	})
	g.does("operator", "rollout-abort", "aborted", waiting)
	second.Wait(cmdLimit)
	g.does("operator", "rollout-pause", "paused", "-reason", "looking", id)
	g.does("operator", "rollout-resume", "", id)
	g.does("operator", "rollout-abort", "aborted", id)
	if code := rollout.Wait(cmdLimit); code != 6 {
		g.t.Errorf("the aborted rollout ended with %d", code)
	}
	g.does("operator", "policy-suspend", "", "-reason", "x")
	g.does("operator", "policy-resume", "")
	g.does("operator", "lock-silence", "", "-for", "1h", "-reason", "y", "job")
	g.does("operator", "lock-silence", "", "-end", "job")
	g.does("operator", "lock-request", "", "-policy", "policies.hcl", "-reason", "urgent", "job")
	if job.Wait(cmdLimit) == 0 {
		g.t.Error("the job was asked to let go, and says that its command ended well")
	}
}

// smith is what a locksmith does: it breaks what is HOT, by one sweep and as a
// daemon, with a journal and a hook.
func (g *guarded) smith() {
	f := g.fleet
	f.write("smith.hcl", `journal = "journal"
policies = ["policies.hcl"]
hook "file" {
  on      = ["break", "break_done", "leader"]
  command = ["sh", "-c", "cat >> told"]
}
`)
	holder := harness.Start(g.t, g.as("exec", "lock-exec", "-policy", "policies.hcl", "stuck", "--", "sleep", "600"))
	g.held("stuck")
	g.does("locksmith", "locksmith", "broken", "-once", "-config", "smith.hcl")
	if code := holder.Wait(cmdLimit); code != 7 {
		g.t.Errorf("the broken holder ended with %d", code)
	}
	holder = harness.Start(g.t, g.as("exec", "lock-exec", "-policy", "policies.hcl", "asked", "--", "sleep", "600"))
	g.held("asked")
	g.does("operator", "lock-approve", "", "-policy", "policies.hcl", "asked")
	g.does("locksmith", "lock-break", "broken", "-policy", "policies.hcl", "asked")
	if code := holder.Wait(cmdLimit); code != 7 {
		g.t.Errorf("the broken holder ended with %d", code)
	}
	holder = harness.Start(g.t, g.as("orchestrator", "lock-exec", "-policy", "policies.hcl", "stuck", "--", "sleep", "600"))
	g.held("stuck")
	daemon := harness.Start(g.t, g.as("locksmith", "locksmith", "-config", "smith.hcl"))
	if code := holder.Wait(fleetLimit); code != 7 {
		g.t.Errorf("the broken holder ended with %d", code)
	}
	harness.Eventually(g.t, cmdLimit, "the hook was told", func() bool {
		b, _ := os.ReadFile(filepath.Join(f.dir, "told"))
		return strings.Contains(string(b), "stuck")
	})
	daemon.Signal(syscall.SIGTERM)
	if code := daemon.Wait(cmdLimit); code != 0 || strings.Contains(daemon.Stderr(), "ermission denied") {
		g.t.Errorf("the locksmith: exit %d\n%s", code, daemon.Stderr())
	}
}

// others: no role can write what is another's.
func (g *guarded) others(t *testing.T) {
	p := g.fleet.prefix
	all := map[string]string{
		"a lock": p.Lock("other"), "a fence": p.Fence("other"), "an approval": p.Approval("other"), "a break": p.Break("other", 0, 1, 1),
		"a content": p.ConfigChunk("other.conf", "aa", 0), "an order": p.Desired(fleetConfig, "n2"), "an answer": p.Actual(fleetConfig, "n2"),
		"its order": p.Desired(fleetConfig, "n1"), "a rollout": p.Rollout("r"), "the policies": p.PolicyActive(), "the switch": p.PolicySuspended(),
		"the epoch": p.Epoch(), "an observation": p.Observed("other", "elsewhere"), "a foreign key": "other/tool/.lock",
	}
	may := map[string]string{
		"observer":     "",
		"agent":        "",
		"exec":         "the switch",
		"operator":     "an approval, a rollout, the switch",
		"locksmith":    "a lock, a fence, an approval, a break, an observation, the switch",
		"orchestrator": "a lock, a fence, an approval, a break, a content, an order, its order, a rollout, an observation, the switch",
		"admin":        "a lock, a fence, an approval, a break, a content, an order, its order, an answer, a rollout, the policies, an observation, the switch, the epoch",
	}
	for role, list := range may {
		kv := g.consul.ClientWith(g.tokens[role]).KV()
		for what, key := range all {
			ok := false
			for _, m := range strings.Split(list, ", ") {
				ok = ok || m == what
			}
			// Without an effect where it is allowed: the index is of no key.
			_, _, err := kv.CAS(&api.KVPair{Key: key, Value: []byte("x"), ModifyIndex: 1}, nil)
			if denied := err != nil && strings.Contains(err.Error(), "Permission denied"); denied == ok || err != nil && !denied {
				t.Errorf("%s may write %s (%s): %t, want %t: %v", role, what, key, !denied, ok, err)
			}
		}
		if _, _, err := kv.Get("other/tool/.lock", nil); err == nil {
			t.Errorf("%s may read a foreign key", role)
		}
	}
	kv := g.consul.ClientWith(g.tokens["agent"]).KV()
	for _, key := range []string{p.Desired(fleetConfig, "n2"), p.Actual(fleetConfig, "n2"), p.ConfigChunk("other.conf", "aa", 0), p.Rollouts()} {
		if _, _, err := kv.Get(key, nil); err == nil {
			t.Errorf("an agent may read %s", key)
		}
	}
	for role, makes := range map[string]bool{"observer": false, "agent": false, "operator": false, "exec": true} {
		_, _, err := g.consul.ClientWith(g.tokens[role]).Session().Create(&api.SessionEntry{}, nil)
		if (err == nil) != makes {
			t.Errorf("%s makes a session: %v", role, err)
		}
	}
}

// lacking: a token without one of its rules ends in one error that names the
// rule, and never in a verdict.
func (g *guarded) lacking(t *testing.T) {
	p := string(g.fleet.prefix)
	for i, tc := range []struct{ role, without, verb, args, says string }{
		{"observer", `key_prefix "` + p + `"`, "rollout-list", "", `add key_prefix "` + p + `rollouts/" { policy = "read" }`},
		{"observer", `key_prefix "` + p + `"`, "lock-status", "night", `add key "` + p + `locks/night" { policy = "read" }`},
		{"observer", `key_prefix "` + p + `"`, "policy-show", "-active", `{ policy = "read" }`},
		{"observer", `session_prefix ""`, "lock-status", "-json -policy policies.hcl night", "session:read"},
		{"observer", `node_prefix ""`, "lock-status", "-json -policy policies.hcl night", "node:read"},
		{"exec", `key "` + p + `locks/job"`, "lock-exec", "-wait 1s job -- true", `add key "` + p + `locks/job" { policy = "`},
		{"exec", `key "` + p + `fence/job"`, "lock-exec", "-wait 1s job -- true", `add key "` + p + `fence/job" { policy = "`},
		{"exec", `key "` + p + `epoch"`, "lock-exec", "-wait 1s job -- true", `add key "` + p + `epoch" { policy = "read" }`},
		{"exec", `session_prefix ""`, "lock-exec", "-wait 1s job -- true", `add session "server" { policy = "write" }`},
		{"orchestrator", `key_prefix "` + p + `configs/"`, "rollout-start", "-policy policies.hcl rollout.hcl", `key_prefix "` + p + `configs/`},
		{"orchestrator", `key_prefix "` + p + `actual/"`, "rollout-tick", "-policy policies.hcl baking.hcl", `actual/`},
		{"orchestrator", `key_prefix "` + p + `rollouts/"`, "rollout-tick", "-policy policies.hcl rollout.hcl", `rollouts/`},
		{"orchestrator", `service_prefix ""`, "rollout-plan", "rollout.hcl", "service:read"},
		{"locksmith", `key_prefix "` + p + `locks/"`, "locksmith", "-once -policy policies.hcl", `locks/`},
		{"locksmith", `key_prefix "` + p + `policies/"`, "locksmith", "-once -policy policies.hcl", `policies/`},
		{"operator", `key_prefix "` + p + `requests/"`, "lock-request", "-policy policies.hcl night", `add key "` + p + `requests/night" { policy = "write" }`},
		{"admin", `key_prefix "` + p + `"`, "policy-apply", "policies.hcl", `policies/`},
		{"admin", `key_prefix "` + p + `"`, "recover", "-yes", `{ policy = "`},
	} {
		rules := without(g.rules[tc.role], tc.without)
		if rules == g.rules[tc.role] {
			t.Errorf("%s has no rule %s", tc.role, tc.without)
			continue
		}
		spec := g.as(tc.role, tc.verb, strings.Fields(tc.args)...)
		spec.Env = append(spec.Env, "CONSUL_HTTP_TOKEN="+g.token(fmt.Sprintf("lacking-%d", i), rules))
		r := harness.Run(t, cmdLimit, spec)
		out := r.Stdout + r.Stderr
		if !strings.Contains(out, tc.says) {
			t.Errorf("%s without %s: aimlock %s %s: exit %d does not say %q:\n%s", tc.role, tc.without, tc.verb, tc.args, r.Code, tc.says, out)
		}
		if strings.Contains(tc.says, "{ policy") && (r.Code == 0 || strings.Count(out, "Error:") > 1) {
			t.Errorf("%s without %s: aimlock %s %s: exit %d and not one error:\n%s", tc.role, tc.without, tc.verb, tc.args, r.Code, out)
		}
	}
	// The same without any token.
	for _, verb := range []string{"rollout-list", "lock-status night", "rollout-start rollout.hcl"} {
		words := strings.Fields(verb)
		spec := g.as("observer", words[0], words[1:]...)
		spec.Env = append(spec.Env, "CONSUL_HTTP_TOKEN=")
		if r := harness.Run(t, cmdLimit, spec); r.Code == 0 || !strings.Contains(r.Stderr, "no token was given: set CONSUL_HTTP_TOKEN") {
			t.Errorf("aimlock %s without a token: exit %d\n%s%s", verb, r.Code, r.Stdout, r.Stderr)
		}
	}
}

// without takes one block out of rules.
func without(rules, head string) string {
	before, rest, ok := strings.Cut(rules, head+" {")
	if !ok {
		return rules
	}
	_, after, _ := strings.Cut(rest, "}\n")
	return before + after
}

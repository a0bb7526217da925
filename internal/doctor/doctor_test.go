package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// examine looks at an embedded Consul from a machine whose clock is ahead by skew.
func examine(t *testing.T, skew time.Duration, mod ...func(*Config)) map[string]Finding {
	t.Helper()
	return examineVia(t, skew, func(*http.Request) string { return "" }, mod...)
}

// examineVia has those requests answered in Consul's place for which answer has JSON.
func examineVia(t *testing.T, skew time.Duration, answer func(*http.Request) string, mod ...func(*Config)) map[string]Finding {
	t.Helper()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	tr := &Transport{Now: func() time.Time { return time.Now().Add(skew) }}
	dated := func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(req *http.Request) (*http.Response, error) {
			if body := answer(req); body != "" {
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
			}
			resp, err := next.RoundTrip(req)
			if err == nil {
				// In process nobody stamps it, as a server does.
				resp.Header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
			}
			return resp, err
		})
	}
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		return tr.Wrap(dated(consulkvtest.InProcess(srv.Handler())(rt)))
	}})
	if err != nil {
		t.Fatal(err)
	}
	locks, err := locksmith.New(locksmith.Config{Consul: kv, Prefix: keys.DefaultPrefix, By: "tester", LeaseClock: func() float64 { return float64(time.Now().UnixNano()) / 1e9 }})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Consul: kv, Transport: tr, Keys: keys.DefaultPrefix, Locks: locks, Now: tr.Now,
		Rollouts: runner.New(runner.Config{Consul: kv, Prefix: keys.DefaultPrefix, Locks: runner.Locksmith(locks), By: "tester"}),
	}
	for _, m := range mod {
		m(&cfg)
	}
	out := map[string]Finding{}
	if err := Examine(t.Context(), cfg, func(f Finding) { out[f.Check] = f }); err != nil {
		t.Fatal(err)
	}
	return out
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestAllIsWell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		got := examine(t, 0, func(c *Config) { c.TryLock = true })
		for check, want := range map[string]string{
			"consul": OK, "clock": OK, "transactions": OK, "agents": Note, "locksmith": Note, "policies": Note, "locks": OK, "rollouts": OK, "orders": OK, "nomad": Note, "try": OK, "checks": OK,
		} {
			if got[check].Result != want {
				t.Errorf("%s: %+v", check, got[check])
			}
		}
	})
}

func TestClocksApart(t *testing.T) {
	t.Parallel()
	for text, skew := range map[string]time.Duration{"-1h0m": -time.Hour, " 1h0m": time.Hour + time.Second} {
		synctest.Test(t, func(t *testing.T) {
			got := examine(t, skew)["clock"]
			if got.Result != Warning || got.Mend == "" || !strings.Contains(got.Detail, text) {
				t.Errorf("%s apart: %+v", skew, got)
			}
		})
	}
}

// What is in trouble is named, with the way out.
func TestTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var held *locksmith.Hold
		got := examine(t, 0, func(c *Config) {
			var err error
			if held, err = c.Locks.Acquire(t.Context(), locksmith.Request{Names: []string{tryLock}, Operation: "another"}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Locks.Suspend(t.Context(), "a fire"); err != nil {
				t.Fatal(err)
			}
			if err := c.Consul.API().Agent().ServiceRegister(&api.AgentServiceRegistration{
				ID: "aimlock-agent-n9", Name: "aimlock-agent", Meta: map[string]string{"node": "n9"},
				Check: &api.AgentServiceCheck{TTL: "10s", Status: api.HealthCritical},
			}); err != nil {
				t.Fatal(err)
			}
			c.TryLock = true
		})
		if f := got["agents"]; f.Result != Warning || !strings.HasSuffix(f.Detail, ": n9") || !strings.Contains(f.Mend, "docs/how-to/machine-leaves.md takes one out") {
			t.Errorf("%+v", f)
		}
		if f := got["try"]; f.Result != Note || !strings.Contains(f.Detail, "HELD") {
			t.Errorf("%+v", f)
		}
		if f := got["locks"]; !strings.Contains(f.Detail, "1 lock held") {
			t.Errorf("%+v", f)
		}
		if err := held.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// guarded is a Consul with ACLs, which allow what allow says. Of the questions that
// it is asked, those about keys name them.
func guarded(allow func(answer) bool) func(*Config) {
	return func(cfg *Config) {
		next := cfg.Transport.Next
		cfg.Transport.Next = roundTrip(func(req *http.Request) (*http.Response, error) {
			var body any
			switch req.URL.Path {
			default:
				return next.RoundTrip(req)
			case "/v1/acl/token/self":
				body = api.ACLToken{AccessorID: "a"}
			case consulkv.AuthorizePath:
				var questions []answer
				if err := json.NewDecoder(req.Body).Decode(&questions); err != nil {
					return nil, err
				}
				for i := range questions {
					questions[i].Allow = allow(questions[i])
				}
				body = questions
			}
			text, err := json.Marshal(body)
			if err != nil {
				return nil, err
			}
			w := httptest.NewRecorder()
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(text)
			return w.Result(), nil
		})
	}
}

// A token that may not write policies/active breaks nothing while none are applied.
func TestNoPoliciesForThisToken(t *testing.T) {
	t.Parallel()
	for says, may := range map[string]bool{"this token breaks nothing": false, "anybody may break": true} {
		synctest.Test(t, func(t *testing.T) {
			f := examine(t, 0, guarded(func(a answer) bool { return may || a.Segment != keys.DefaultPrefix+"policies/active" }))["policies"]
			if f.Result != Note || !strings.Contains(f.Detail, says) || !strings.Contains(f.Mend, "aimlock policy apply") {
				t.Errorf("may write it: %v: %+v", may, f)
			}
		})
	}
}

// Who may have given the token its role is told how to ask about it: it is not to be
// given again.
func TestHowToAskIsTold(t *testing.T) {
	t.Parallel()
	nothing := guarded(func(answer) bool { return false })
	const ask = "`aimlock doctor -role agent -node NAME -config-name NAME`"
	synctest.Test(t, func(t *testing.T) {
		if f := examine(t, 0, nothing)["rights"]; f.Result != Warning || !strings.Contains(f.Mend, ask) {
			t.Errorf("no role is named: %+v", f)
		}
		if f := examine(t, 0, nothing, func(c *Config) { c.Roles = []string{"agent"} })["rights"]; f.Result != Failed || !strings.Contains(f.Mend, "-node NAME -config-name NAME") {
			t.Errorf("no node is named: %+v", f)
		}
	})
}

// Every rule of every role is a question that Consul is asked, except what it
// denies.
func TestRulesAreQuestions(t *testing.T) {
	t.Parallel()
	roles, err := acl.Roles()
	if err != nil || len(roles) == 0 {
		t.Fatal(err)
	}
	for _, r := range roles {
		text, err := r.Rules(acl.Params{Prefix: keys.DefaultPrefix, Node: "n 1", Configs: []string{"a.conf", "b.conf"}, Locks: []string{"nightly"}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseRules(text)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		if want := strings.Count(text, "policy = ") - strings.Count(text, `policy = "deny"`); len(got) < want || want == 0 {
			t.Errorf("%s: %d questions of %d rules", r.Name, len(got), want)
		}
		for _, q := range got {
			if q.Resource == "" || strings.Contains(q.Resource, "prefix") || q.Access != "read" && q.Access != "write" && q.Access != "list" || !strings.Contains(q.rule, q.Access) {
				t.Errorf("%s: %+v", r.Name, q)
			}
		}
	}
	for _, bad := range []string{`key "a" {`, `key "a" {}`, `key { policy = "read" }`, `key "a" { policy = 7 }`, `operator = x`} {
		if got, err := parseRules(bad); err == nil {
			t.Errorf("%s is read as %+v", bad, got)
		}
	}
}

// Agents of another version and plugins that do not start are told.
func TestVersionsAndPlugins(t *testing.T) {
	t.Parallel()
	got := examine(t, 0, func(cfg *Config) {
		cfg.Version = "2.0.0"
		for node, version := range map[string]string{"a": "1.9.0", "b": "2.0.0", "c": "1.9.0\x1b[2J", "template": ""} {
			err := cfg.Consul.API().Agent().ServiceRegister(&api.AgentServiceRegistration{
				ID: "aimlock-agent-" + node, Name: "aimlock-agent", Meta: map[string]string{"node": node, "version": version},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		cfg.Plugins = func(context.Context) []Plugin {
			return []Plugin{{Name: "oncall", Err: errors.New("checksum: it is another file")}}
		}
	})
	if f := got["versions"]; f.Result != Note || !strings.Contains(f.Detail, `1 of "1.9.0"`) || strings.Contains(f.Detail, "\x1b") || strings.Contains(f.Detail, `of "2.0.0"`) || strings.Contains(f.Detail, `of ""`) {
		t.Errorf("versions: %+v", f)
	}
	if f := got["plugins"]; f.Result != Failed || !strings.Contains(f.Detail, "oncall: checksum") || !strings.Contains(f.Mend, "plugin verify oncall") {
		t.Errorf("plugins: %+v", f)
	}
}

// Nodes on which the newest rollout of a name failed, though it succeeded as a whole, are
// told.
func TestNodesLeftOut(t *testing.T) {
	t.Parallel()
	head := func(token uint64, name string, state orchestrator.Status, failed, unreachable int) *orchestrator.Header {
		now := time.Now()
		h := &orchestrator.Header{}
		h.Version, h.ID, h.Name, h.State, h.Token, h.CreatedAt, h.FinishedAt = 1, fmt.Sprintf("%s-%d", name, token), name, state, token, now, &now
		h.Counts[orchestrator.ClassFailed], h.Counts[orchestrator.ClassUnreachable], h.Total = failed, unreachable, 3
		h.Counts[orchestrator.ClassApplied] = 3 - failed - unreachable
		return h
	}
	ok, bad := orchestrator.Succeeded, orchestrator.Failed
	for name, tc := range map[string]struct {
		heads []*orchestrator.Header
		want  string
	}{
		"all have it":            {[]*orchestrator.Header{head(5, "app", ok, 0, 0)}, ""},
		"one failed":             {[]*orchestrator.Header{head(5, "app", ok, 1, 0), head(6, "web", ok, 0, 0)}, "app-5 failed on 1 of 3 nodes"},
		"it was served since":    {[]*orchestrator.Header{head(5, "app", ok, 1, 0), head(6, "app", ok, 0, 0)}, ""},
		"it is served on return": {[]*orchestrator.Header{head(5, "app", ok, 0, 1)}, ""},
		"the rollout failed":     {[]*orchestrator.Header{head(5, "app", bad, 3, 0)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := examine(t, 0, func(c *Config) {
				for _, h := range tc.heads {
					text, err := json.Marshal(h)
					if err != nil {
						t.Fatal(err)
					}
					if err := c.Consul.Put(t.Context(), c.Keys.Rollout(h.ID), text); err != nil {
						t.Fatal(err)
					}
				}
			})["rollouts"]
			if tc.want == "" && f.Result != OK || tc.want != "" && (f.Result != Note || !strings.Contains(f.Detail, tc.want) || !strings.Contains(f.Mend, "rollout start")) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// A rollout that is at work and that nobody drives is told, with what goes on with it;
// who holds its lock for something else does not drive it.
func TestUndrivenRollout(t *testing.T) {
	t.Parallel()
	for holder, want := range map[string]string{"": Warning, "another": Warning, "app-5": OK} {
		t.Run("held by "+holder, func(t *testing.T) {
			t.Parallel()
			f := examine(t, 0, func(c *Config) {
				c.Start = "aimlock rollout start -prefix x/ SPEC"
				h := &orchestrator.Header{Configs: []orchestrator.HeaderConfig{{Name: "app.conf"}}}
				h.Version, h.ID, h.Name, h.State, h.Token, h.CreatedAt = 1, "app-5", "app", orchestrator.Running, 5, time.Now()
				text, err := json.Marshal(h)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Consul.Put(t.Context(), c.Keys.Rollout(h.ID), text); err != nil {
					t.Fatal(err)
				}
				if holder == "" {
					return
				}
				hold, err := c.Locks.Acquire(t.Context(), locksmith.Request{Names: []string{"app.conf"}, Operation: "rollout app", RolloutID: holder})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = hold.Release(context.Background()) })
			})["rollouts"]
			if f.Result != want || want == Warning && (f.Detail != "app-5: "+runner.Undriven("aimlock rollout start -prefix x/ SPEC") || !strings.Contains(f.Mend, "`aimlock rollout start -prefix x/ SPEC`")) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// Files that somebody else changed are told, whatever rollout they are of.
func TestDrift(t *testing.T) {
	t.Parallel()
	got := examine(t, 0, func(c *Config) {
		c.Start = "aimlock rollout start SPEC"
		for i := range 7 {
			node, drift := fmt.Sprintf("n%d", i), ""
			if i > 0 {
				drift = `,"drift":{"since":"2026-03-01T12:00:00Z","what":"its content was changed\u001b[2J"}`
			}
			order := `"version":1,"epoch":0,"token":5,"seq":1,"rollout":"app-5"`
			for key, value := range map[string]string{c.Keys.Desired("app.conf", node): order, c.Keys.Actual("app.conf", node): order + `,"result":"applied"` + drift} {
				if err := c.Consul.Put(t.Context(), key, []byte("{"+value+"}")); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	f := got["drift"]
	if f.Result != Warning || !strings.HasPrefix(f.Detail, "app.conf of n1 changed by somebody else since 2026-03-01T12:00:00Z: its content was changed") || strings.Contains(f.Detail, "\x1b") ||
		strings.Contains(f.Detail, "n0") || strings.Contains(f.Detail, "n6") || !strings.HasSuffix(f.Detail, "; and 1 more") || !strings.Contains(f.Mend, "drift = \"restore\"") {
		t.Errorf("%+v", f)
	}
	if got["orders"].Result != OK {
		t.Errorf("%+v", got["orders"])
	}
}

// A node that has accepted what Consul does not know any more tells of a restore.
func TestRestoredConsul(t *testing.T) {
	t.Parallel()
	order := func(token int) string {
		return fmt.Sprintf(`"version":1,"epoch":0,"token":%d,"seq":1,"rollout":"app-%d"`, token, token)
	}
	for name, tc := range map[string]struct {
		desired, actual, epoch, want string
	}{
		"an older one stands":                  {desired: order(300), actual: order(485), want: "n1 has accepted order 0.485.1 of app.conf, and Consul has 0.300.1 for it"},
		"none stands":                          {actual: order(485), want: "n1 has accepted order 0.485.1 of app.conf, and Consul has none for it"},
		"it refused what stands":               {desired: order(600) + `,"after":{"epoch":0,"token":300,"seq":1}`, actual: order(485) + `,"result":"refused","refused":{"epoch":0,"token":600,"seq":1}`, want: "n1 has accepted order 0.485.1"},
		"it has what stands":                   {desired: order(485), actual: order(485)},
		"it has yet to answer":                 {desired: order(600), actual: order(485)},
		"the epoch was raised since (recover)": {desired: order(300), actual: order(485), epoch: "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := examine(t, 0, func(c *Config) {
				for key, value := range map[string]string{c.Keys.Desired("app.conf", "n1"): tc.desired, c.Keys.Actual("app.conf", "n1"): tc.actual} {
					if value == "" {
						continue
					}
					if err := c.Consul.Put(t.Context(), key, []byte("{"+value+"}")); err != nil {
						t.Fatal(err)
					}
				}
				if tc.epoch != "" {
					if err := c.Consul.Put(t.Context(), c.Keys.Epoch(), []byte(tc.epoch)); err != nil {
						t.Fatal(err)
					}
				}
			})
			f := got["orders"]
			if tc.want == "" && f.Result != OK || tc.want != "" && (f.Result != Failed || !strings.Contains(f.Detail, tc.want) || !strings.Contains(f.Mend, "`aimlock recover`")) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// Consul takes nothing of an agent whose name it keeps for another node.
func TestNameReserved(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]bool{"old": true, "NEW": false, "": false} {
		t.Run(id, func(t *testing.T) {
			t.Parallel()
			found := examineVia(t, 0, func(req *http.Request) string {
				switch req.URL.Path {
				case "/v1/agent/self":
					return `{"Config":{"Version":"1.14.11","NodeName":"web-1","NodeID":"new"}}`
				case "/v1/catalog/node/web-1":
					return fmt.Sprintf(`{"Node":{"ID":%q,"Node":"web-1"}}`, id)
				}
				return ""
			})
			f := found["node"]
			if want != (f.Result == Failed) || want && (!strings.Contains(f.Detail, "reserves that name for node old") || !strings.Contains(f.Mend, `'{"Node":"web-1"}'`)) {
				t.Errorf("%+v", f)
			}
		})
	}
}

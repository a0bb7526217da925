package builtin_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/nomadapi/nomadtest"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/builtin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

// serveSeveral serves several built-ins as one plugin, at most one of each kind:
// fewer processes, the same code.
func serveSeveral(names []string) {
	all := plugin.Plugin{Name: "several", Version: "1", Doc: "Several built-ins: " + strings.Join(names, ", ") + "."}
	for _, name := range names {
		p, _ := builtin.Lookup(name)
		switch {
		case p.Evidence != nil:
			all.Evidence = p.Evidence
		case p.Breaker != nil:
			all.Breaker = p.Breaker
		case p.Gate != nil:
			all.Gate = p.Gate
		case p.Target != nil:
			all.Target = p.Target
		case p.Fleet != nil:
			all.Fleet = p.Fleet
		}
	}
	plugin.Serve(all)
}

// conform runs the suite over built-ins in one process of their own.
func conform(t *testing.T, names string, cases ...plugintest.Case) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plugintest.Run(t, &plugintest.Subject{Command: []string{self}, Env: []string{serveEnv + "=" + names, "GORACE=atexit_sleep_ms=0"}, Cases: cases, Limit: 20 * time.Second})
}

// TestConformance: the built-ins pass the suite that authors run.
func TestConformance(t *testing.T) {
	t.Parallel()
	client, addr := consul(t)
	atConsul := func(rest string) string {
		return strings.Replace(`{"consul_address": "`+addr+`", `+rest+`}`, ", }", "}", 1)
	}
	for _, node := range []string{"n1", "n2"} {
		_, err := client.Catalog().Register(&api.CatalogRegistration{
			Node: node, Address: "127.0.0.1", Service: &api.AgentService{ID: "s", Service: "s"},
			Check: &api.AgentCheck{Node: node, CheckID: "c", ServiceID: "s", Status: "passing"},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	inventory := filepath.Join(dir, "fleet.json")
	if err := os.WriteFile(inventory, []byte(`[{"node":"n1"},{"node":"n2"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/v1/query" {
			fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[%d,"0.5"]}]}}`, time.Now().Unix())
		}
	}))
	t.Cleanup(web.Close)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	nodes := []string{"n1", "n2"}
	var n atomic.Int64

	t.Run("http, consul, file_locks, destroy_session, file_target", func(t *testing.T) {
		t.Parallel()
		conform(t, "http+consul+file_locks+destroy_session+file_target",
			plugintest.Case{Name: "http", Kind: plugin.KindGate, Config: fmt.Sprintf(`{"url": %q}`, web.URL), Refused: []string{`{"url": "here"}`}, Verdict: plugin.Pass},
			plugintest.Case{Name: "http, down", Kind: plugin.KindGate, Config: fmt.Sprintf(`{"url": %q}`, gone.URL), Verdict: plugin.Undecided},
			plugintest.Case{Name: "consul", Kind: plugin.KindFleet, Config: atConsul(`"service": "s"`), Nodes: nodes},
			plugintest.Case{Name: "file_locks", Kind: plugin.KindEvidence, Config: fmt.Sprintf(`{"path": %q}`, inventory), Facts: map[string]any{"locked": false}},
			plugintest.Case{
				Name: "destroy_session", Kind: plugin.KindBreaker, Config: atConsul(""), Outcome: plugin.NotApplicable,
				Lock: plugin.Lock{Key: "aimlock/locks/app.conf", Session: "6f0c9b64-3c1e-4d3c-8a52-0c6ad7a1a000"},
			},
			plugintest.Case{
				Name: "file_target", Kind: plugin.KindTarget, Config: fmt.Sprintf(`{"state_dir": %q, "root": %q}`, filepath.Join(dir, "state"), filepath.Join(dir, "root")),
				Refused: []string{`{"state_dir": "relative", "root": "/"}`},
				Place: func(testing.TB) plugin.Place {
					return plugin.Place{Node: fmt.Sprintf("n%d", n.Add(1)), Config: "app.conf", Destination: "/etc/app.conf"}
				},
			})
	})
	t.Run("exec, file, cluster, signal", func(t *testing.T) {
		t.Parallel()
		conform(t, "exec+file+cluster+signal",
			plugintest.Case{Name: "exec", Kind: plugin.KindGate, Config: `{"command": ["true"]}`, Verdict: plugin.Pass},
			plugintest.Case{Name: "exec, fails", Kind: plugin.KindGate, Config: `{"command": ["sh", "-c", "exit 1"]}`, Verdict: plugin.Fail},
			plugintest.Case{Name: "file", Kind: plugin.KindFleet, Config: fmt.Sprintf(`{"path": %q}`, inventory), Nodes: nodes},
			plugintest.Case{Name: "cluster", Kind: plugin.KindEvidence, Config: atConsul(""), Facts: map[string]any{"leader_changed_ago": plugintest.Unknown}},
			plugintest.Case{Name: "signal", Kind: plugin.KindBreaker, Config: `{"signal": "TERM"}`, Refused: []string{`{"signal": "STOP"}`}, Outcome: plugin.NotApplicable})
	})
	t.Run("prometheus, process, nomad_stop", func(t *testing.T) {
		t.Parallel()
		conform(t, "prometheus+process+nomad_stop",
			plugintest.Case{Name: "prometheus", Kind: plugin.KindGate, Config: fmt.Sprintf(`{"address": %q, "query": "up", "threshold": "value < 1"}`, web.URL), Refused: []string{`{"address": "here", "query": "up", "threshold": "value < 1"}`}, Verdict: plugin.Pass},
			plugintest.Case{Name: "process", Kind: plugin.KindEvidence, Lock: plugin.Lock{Holder: plugin.Holder{Host: "elsewhere", PID: 7}}, Facts: map[string]any{"local": false, "alive": plugintest.Unknown}},
			plugintest.Case{Name: "nomad_stop, no allocation", Kind: plugin.KindBreaker, Config: nomadAt(gone.URL, ""), Outcome: plugin.NotApplicable},
			stops(t, "stop", "global"), stops(t, "region-stop", "west"))
	})
	t.Run("consul_checks, nomad_alloc", func(t *testing.T) {
		t.Parallel()
		conform(t, "consul_checks+nomad_alloc",
			plugintest.Case{Name: "consul_checks", Kind: plugin.KindGate, Config: atConsul(`"service": "s", "min_passing_percent": 100`), Verdict: plugin.Pass},
			plugintest.Case{Name: "nomad_alloc, no allocation", Kind: plugin.KindEvidence, Config: nomadAt(gone.URL, ""), Facts: map[string]any{"alloc_id": nil, "gone": nil}},
			alloc(t, "alloc-running", "global", "running", "run", "ready", "stays"), alloc(t, "alloc-lost", "global", "lost", "stop", "down", "stays"),
			alloc(t, "region-alloc", "west", "running", "run", "ready", "victim"),
			plugintest.Case{
				Name: "nomad_alloc, collected", Kind: plugin.KindEvidence, Config: nomadAt(nomadtest.Serve(t, "alloc-gone").Addr, ""),
				Lock:  plugin.Lock{Holder: plugin.Holder{AllocID: nomadtest.AllocOf(t, "alloc-gone"), AllocRegion: "global"}},
				Facts: map[string]any{"gone": true, "client_status": nil},
			})
	})
	t.Run("nomad_deployment, nomad", func(t *testing.T) {
		t.Parallel()
		gate := func(recording, rest string, want plugin.Verdict) plugintest.Case {
			return plugintest.Case{Name: "nomad_deployment, " + recording, Kind: plugin.KindGate, Config: nomadAt(nomadtest.Serve(t, recording).Addr, rest), Verdict: want}
		}
		clients := func(recording, rest string) plugintest.Case {
			return plugintest.Case{Name: "nomad, " + recording, Kind: plugin.KindFleet, Config: nomadAt(nomadtest.Serve(t, recording).Addr, rest), Nodes: []string{"client"}}
		}
		conform(t, "nomad_deployment+nomad",
			plugintest.Case{Name: "nomad_deployment, down", Kind: plugin.KindGate, Config: nomadAt(gone.URL, `"job": "web"`), Verdict: plugin.Undecided},
			gate("deployment-successful", `"job": "web"`, plugin.Pass), gate("deployment-failed", `"job": "bad"`, plugin.Fail), gate("deployment-running", `"job": "slow"`, plugin.Pending),
			gate("deployment-no-job", `"job": "nope"`, plugin.Undecided), gate("region-deployment", `"job": "web", "region": "west"`, plugin.Pass),
			clients("fleet-down", ""), clients("region-fleet", `"region": "west", "meta": {"rack": "r1"}`))
	})
}

// nomadAt is the configuration of a built-in that asks the Nomad at addr.
func nomadAt(addr, rest string) string {
	return strings.Replace(fmt.Sprintf(`{"nomad_address": %q, %s}`, addr, rest), ", }", "}", 1)
}

// alloc is a case of nomad_alloc, of what a real Nomad answered.
func alloc(t *testing.T, recording, region, client, desired, node, job string) plugintest.Case {
	t.Helper()
	id := nomadtest.AllocOf(t, recording)
	return plugintest.Case{
		Name: "nomad_alloc, " + recording, Kind: plugin.KindEvidence, Config: nomadAt(nomadtest.Serve(t, recording).Addr, ""),
		Lock:  plugin.Lock{Holder: plugin.Holder{AllocID: id, AllocRegion: region}},
		Facts: map[string]any{"alloc_id": id, "gone": false, "client_status": client, "desired_status": desired, "node_status": node, "job": job},
	}
}

// stops is a case of nomad_stop, of what a real Nomad answered.
func stops(t *testing.T, recording, region string) plugintest.Case {
	t.Helper()
	nomad := nomadtest.Serve(t, recording)
	return plugintest.Case{
		Name: "nomad_stop, " + recording, Kind: plugin.KindBreaker, Config: nomadAt(nomad.Addr, ""), Outcome: plugin.Done,
		Lock:    plugin.Lock{Holder: plugin.Holder{AllocID: nomadtest.AllocOf(t, recording), AllocRegion: region}},
		Effects: func() string { return fmt.Sprintf("it was asked to stop it %d times", nomad.Asked("PUT ")) },
	}
}

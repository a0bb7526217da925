package locksmith

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// TestWaiterOfABusyCluster: who waits for a lock reads its evidence again when
// something of its hold changed, and not at every write and every check of a busy
// cluster.
func TestWaiterOfABusyCluster(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("app"))
		count, kv := w.counted()
		p := w.acquiring(w.client(func(c *Config) { c.Consul = kv }), one("app"))
		p.waits(5 * time.Second)
		read := func() int64 {
			count.mu.Lock()
			defer count.mu.Unlock()
			return count.txns
		}
		agent := w.kv.API().Agent()
		if err := agent.ServiceRegister(&api.AgentServiceRegistration{Name: "web", Check: &api.AgentServiceCheck{CheckID: "web", TTL: "1m"}}); err != nil {
			t.Fatal(err)
		}
		before := read()
		for i := range 20 {
			w.put(fmt.Sprintf("other/%d", i), i)
			if err := agent.UpdateTTL("web", fmt.Sprint(i), api.HealthPassing); err != nil {
				t.Fatal(err)
			}
			p.waits(time.Second)
		}
		if n := read() - before; n != 0 {
			t.Errorf("%d transactions in 20 seconds of what is none of its business", n)
		}
		for what, do := range map[string]func() error{
			"progress":  func() error { return h.Progress(t.Context(), 1, 2, "steps", "") },
			"the check": func() error { return agent.UpdateTTL(h.sess.service, "it stutters", api.HealthWarning) },
			"serfHealth": func() error {
				_, err := w.kv.API().Catalog().Register(&api.CatalogRegistration{Node: "node-1", Address: "127.0.0.1", Check: &api.AgentCheck{
					Node: "node-1", CheckID: "serfHealth", Status: api.HealthWarning}}, nil)
				return err
			},
		} {
			before := read()
			if err := do(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if read() == before {
				t.Errorf("%s changed, and it did not look", what)
			}
		}
	})
}

// TestWhatCouldNotBeReadIsReadAgain: a part of the evidence that could not be read when
// it was asked for is not unknown until something changes.
func TestWhatCouldNotBeReadIsReadAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(), one("app"))
		refused := w.faults.Add(devconsul.Fault{Status: http.StatusForbidden, Body: "Permission denied", Match: func(r *http.Request) bool {
			return path("/v1/health/node/")(r) && r.URL.Query().Has("consistent")
		}})
		p := w.acquiring(w.client(withPolicy(t, `
policy "p" {
  locks = ["**"]
  hot "alive" { when = node.serf == "alive" }
  break {}
}`)), one("app"))
		p.waits(rereadEvery / 2)
		refused()
		p.waits(rereadEvery)
		if told := p.kinds(); !slices.Contains(told, "waiting HOT") {
			t.Errorf("it was told %v", told)
		}
	})
}

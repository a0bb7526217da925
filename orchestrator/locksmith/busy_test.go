package locksmith

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
)

// TestWaiterOfABusyCluster: who waits for a lock reads its evidence again when
// something of its hold changed, and not at every write and every check of a busy
// cluster.
func TestWaiterOfABusyCluster(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("app"))
		count := &tally{}
		kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
			count.next = consulkvtest.InProcess(w.srv.Handler())(rt)
			return count
		}})
		if err != nil {
			t.Fatal(err)
		}
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
		for i := range 30 {
			w.put(fmt.Sprintf("other/%d", i), i)
			if err := agent.UpdateTTL("web", fmt.Sprint(i), api.HealthPassing); err != nil {
				t.Fatal(err)
			}
			p.waits(time.Second)
		}
		if n := read() - before; n != 0 {
			t.Errorf("%d transactions in half a minute of what is none of its business", n)
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

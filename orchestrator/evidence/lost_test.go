package evidence_test

import (
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// Only what Consul itself may have ended counts as lost.
func TestWhichSessionsAreLost(t *testing.T) {
	t.Parallel()
	ttl := func(d string) *api.SessionEntry { return &api.SessionEntry{TTL: d, NodeChecks: []string{"serfHealth"}} }
	holder := func(w *world) *api.SessionEntry {
		id := "aimlock-holder-x"
		err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "aimlock-holder",
			Check: &api.AgentServiceCheck{CheckID: id, TTL: "10s", Status: "passing"}})
		if err != nil {
			w.t.Fatal(err)
		}
		return &api.SessionEntry{TTL: "15s", NodeChecks: []string{"serfHealth"}, ServiceChecks: []api.ServiceCheck{{ID: id}}}
	}
	keep := func(w *watched, id string, d time.Duration) {
		for range d / (5 * time.Second) {
			time.Sleep(5 * time.Second)
			if _, _, err := w.kv.API().Session().Renew(id, nil); err != nil {
				w.t.Fatal(err)
			}
			_ = w.kv.API().Agent().UpdateTTL("aimlock-holder-x", "", "passing")
		}
	}
	for name, tc := range map[string]struct {
		do   func(w *watched)
		lost int
	}{
		"a short one, destroyed": {func(w *watched) {
			id := w.make(ttl("15s"))
			time.Sleep(5 * time.Second)
			w.destroy(id)
		}, 0},
		"its TTL ran out": {func(w *watched) {
			w.make(ttl("15s"))
			time.Sleep(45 * time.Second)
		}, 1},
		"destroyed when it was older than its TTL: nobody can tell": {func(w *watched) {
			id := w.make(ttl("15s"))
			keep(w, id, 20*time.Second)
			w.destroy(id)
		}, 1},
		"without a TTL, destroyed": {func(w *watched) {
			id := w.endless()
			time.Sleep(20 * time.Second)
			w.destroy(id)
		}, 0},
		"a short one, when its check failed": {func(w *watched) {
			w.checked("c", 1)
			time.Sleep(5 * time.Second)
			w.fails("c")
		}, 1},
		"when its check failed and came back at once": {func(w *watched) {
			w.checked("c", 1)
			time.Sleep(5 * time.Second)
			w.fails("c")
			if err := w.kv.API().Agent().UpdateTTL("c", "", "passing"); err != nil {
				w.t.Fatal(err)
			}
		}, 1},
		"a clean end of aimlock's, old": {func(w *watched) {
			id := w.make(holder(w.world))
			keep(w, id, 30*time.Second)
			w.destroy(id)
			if err := w.kv.API().Agent().ServiceDeregister("aimlock-holder-x"); err != nil {
				w.t.Fatal(err)
			}
		}, 0},
		"a holder of aimlock's that died": {func(w *watched) {
			w.make(holder(w.world))
			time.Sleep(20 * time.Second)
		}, 1},
		"many short ones": {func(w *watched) {
			for range 40 {
				id := w.make(ttl("15s"))
				time.Sleep(time.Second)
				w.destroy(id)
			}
		}, 0},
		"the health cannot be read": {func(w *watched) {
			id := w.make(ttl("15s"))
			time.Sleep(5 * time.Second)
			w.faults.Add(devFault("/v1/health/node/", 403))
			w.destroy(id)
		}, 1},
		"the health is hidden": {func(w *watched) {
			id := w.make(ttl("15s"))
			time.Sleep(5 * time.Second)
			w.faults.Add(devFault("/v1/health/node/", 200))
			w.destroy(id)
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onCluster(t, nil, func(_ *testing.T, w *watched) {
				time.Sleep(2 * time.Minute)
				tc.do(w)
				time.Sleep(8 * time.Second)
				want{"cluster.sessions_lost": tc.lost}.check(t, w.now())
			})
		})
	}
}

// Sessions that go in a flood all count, whatever excuse each may have.
func TestAFloodIsALoss(t *testing.T) {
	t.Parallel()
	onCluster(t, nil, func(t *testing.T, w *watched) {
		time.Sleep(2 * time.Minute)
		var ids []string
		for range 100 {
			ids = append(ids, w.endless())
		}
		time.Sleep(6 * time.Second)
		// After two reads in a row there is a pause, in which all of them go.
		w.endless()
		time.Sleep(100 * time.Millisecond)
		w.endless()
		time.Sleep(100 * time.Millisecond)
		w.destroy(ids...)
		time.Sleep(8 * time.Second)
		got, _ := w.now().Lookup("cluster.sessions_lost")
		if n, _ := got.Value.AsBigFloat().Int64(); n != 100 {
			t.Errorf("%d are lost", n)
		}
	})
}

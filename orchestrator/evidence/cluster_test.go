package evidence_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// watched is a cluster under watch, on virtual time.
type watched struct {
	*world
	cluster *evidence.Cluster
}

// onCluster runs f in a bubble with a watch of a cluster that has one session.
func onCluster(t *testing.T, before func(*world), f func(*testing.T, *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.endless()
		if before != nil {
			before(w)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cl, done := evidence.WatchCluster(ctx, w.kv)
		synctest.Wait()
		f(t, &watched{w, cl})
		cancel()
		<-done
	})
}

// endless makes a session that no TTL ends.
func (w *world) endless() string {
	w.t.Helper()
	id, _, err := w.kv.API().Session().Create(nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *watched) destroy(ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
			w.t.Fatal(err)
		}
	}
}

// checked makes sessions that are bound to a check of a service.
func (w *world) checked(id string, n int) {
	w.t.Helper()
	err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: id,
		Check: &api.AgentServiceCheck{CheckID: id, TTL: "1h", Status: "passing"}})
	if err != nil {
		w.t.Fatal(err)
	}
	for range n {
		w.make(&api.SessionEntry{NodeChecks: []string{"serfHealth"}, ServiceChecks: []api.ServiceCheck{{ID: id}}})
	}
}

func (w *world) make(e *api.SessionEntry) string {
	w.t.Helper()
	id, _, err := w.kv.API().Session().Create(e, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// fails makes a check critical, which ends the sessions that are bound to it.
func (w *world) fails(id string) {
	w.t.Helper()
	if err := w.kv.API().Agent().UpdateTTL(id, "", "critical"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) now() policies.Facts {
	s := &evidence.Snapshot{Name: "a", Key: prefix.Lock("a"), ReadAt: time.Now()}
	return w.reader.Facts(s, nil, w.cluster, time.Now())
}

func (w *watched) frozen() policies.Tri {
	w.t.Helper()
	set, err := policies.Builtin("default")
	if err != nil {
		w.t.Fatal(err)
	}
	t, _ := set.For(policies.LockID{Name: "a", Own: true}).Break.Frozen(w.now())
	return t
}

func TestClusterKnowsAfterAMinute(t *testing.T) {
	t.Parallel()
	onCluster(t, nil, func(t *testing.T, w *watched) {
		want{"cluster.leader": "127.0.0.1:8300"}.check(t, w.now())
		time.Sleep(30 * time.Second)
		f := w.now()
		atLeast(t, f, "cluster.leader_changed_ago", 30)
		lost, _ := f.Lookup("cluster.sessions_lost")
		if lost.Value.IsKnown() || lost.Why == "" {
			t.Errorf("sessions_lost after half a minute: %#v", lost.Value)
		}
		if w.frozen() != policies.Unknown {
			t.Error("after half a minute nobody can know whether it is frozen")
		}
		time.Sleep(31 * time.Second)
		want{"cluster.sessions_lost": 0}.check(t, w.now())
		if got := w.frozen(); got != policies.False {
			t.Errorf("after a minute: frozen is %v", got)
		}
	})
}

func TestClusterCountsLostSessions(t *testing.T) {
	t.Parallel()
	onCluster(t, func(w *world) {
		w.checked("c", 11)
		w.checked("d", 1)
	}, func(t *testing.T, w *watched) {
		time.Sleep(10 * time.Second)
		w.fails("c")
		time.Sleep(5 * time.Second)
		// More than ten is enough to know, though the minute is not over.
		lost, _ := w.now().Lookup("cluster.sessions_lost")
		if v := lost.Value.GreaterThan(cty.NumberIntVal(10)); !v.IsKnown() || v.False() {
			t.Errorf("sessions_lost is %#v", lost.Value)
		}
		if w.frozen() != policies.True {
			t.Error("11 lost sessions do not freeze")
		}
		time.Sleep(50 * time.Second)
		want{"cluster.sessions_lost": 11}.check(t, w.now())
		time.Sleep(10 * time.Second)
		want{"cluster.sessions_lost": 0}.check(t, w.now())
	})
}

// Where the watch of the sessions had a gap, what ended in it was not counted:
// another minute has to pass.
func TestClusterAfterAGap(t *testing.T) {
	t.Parallel()
	onCluster(t, nil, func(t *testing.T, w *watched) {
		time.Sleep(2 * time.Minute)
		want{"cluster.sessions_lost": 0}.check(t, w.now())
		remove := w.faults.Add(devconsul.Fault{Match: path("/v1/session/list"), Status: 500, Body: "boom"})
		w.destroy(w.endless()) // wakes the query that blocks
		time.Sleep(10 * time.Second)
		want{"cluster.sessions_lost": "?boom", "cluster.leader": "127.0.0.1:8300"}.check(t, w.now())
		remove()
		time.Sleep(10 * time.Second)
		lost, _ := w.now().Lookup("cluster.sessions_lost")
		if lost.Value.IsKnown() {
			t.Errorf("known right after the gap: %#v", lost.Value)
		}
		time.Sleep(time.Minute)
		want{"cluster.sessions_lost": 0}.check(t, w.now())
	})
}

// A token that may not read sessions is shown none: that is unknown.
func TestClusterWithoutSessions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault devconsul.Fault
		why   string
	}{
		"none":   {devconsul.Fault{Match: path("/v1/session/list"), Status: 200, Body: "[]"}, "session:read"},
		"denied": {devconsul.Fault{Match: path("/v1/session/list"), Status: 403, Body: "Permission denied"}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onCluster(t, func(w *world) { w.faults.Add(tc.fault) }, func(t *testing.T, w *watched) {
				time.Sleep(2 * time.Minute)
				want{"cluster.sessions_lost": "?" + tc.why}.check(t, w.now())
				if w.frozen() != policies.Unknown {
					t.Error("it is taken for known")
				}
			})
		})
	}
}

func TestClusterLeaderChanges(t *testing.T) {
	t.Parallel()
	onCluster(t, nil, func(t *testing.T, w *watched) {
		time.Sleep(2 * time.Minute)
		atLeast(t, w.now(), "cluster.leader_changed_ago", 120)

		remove := w.faults.Add(devconsul.Fault{Match: path("/v1/status/leader"), Status: 200, Body: `"10.0.0.2:8300"`})
		time.Sleep(10 * time.Second)
		f := w.now()
		want{"cluster.leader": "10.0.0.2:8300"}.check(t, f)
		ago, _ := f.Lookup("cluster.leader_changed_ago")
		if v := ago.Value.LessThan(cty.NumberIntVal(11)); !v.IsKnown() || v.False() {
			t.Errorf("changed %#v ago", ago.Value)
		}
		remove()

		// For as long as there is no leader, the change is now.
		remove = w.faults.Add(devconsul.Fault{Match: path("/v1/status/leader"), Status: 200, Body: `""`})
		time.Sleep(5 * time.Minute)
		f = w.now()
		want{"cluster.leader": "?names no leader"}.check(t, f)
		ago, _ = f.Lookup("cluster.leader_changed_ago")
		if v := ago.Value.LessThan(cty.NumberIntVal(10)); !v.IsKnown() || v.False() {
			t.Errorf("changed %#v ago", ago.Value)
		}
		remove()
		time.Sleep(50 * time.Second)
		if w.frozen() != policies.True {
			t.Error("a new leader of less than a minute does not freeze")
		}
		time.Sleep(20 * time.Second)
		if got := w.frozen(); got != policies.False {
			t.Errorf("frozen is %v a minute later", got)
		}
	})
}

func TestClusterThatCannotBeReached(t *testing.T) {
	t.Parallel()
	onCluster(t, func(w *world) { w.faults.Add(devconsul.Fault{Match: path("/v1/status/"), Drop: true}) }, func(t *testing.T, w *watched) {
		time.Sleep(time.Minute)
		want{"cluster.leader": "?did not answer", "cluster.leader_changed_ago": "?did not answer"}.check(t, w.now())
	})
}

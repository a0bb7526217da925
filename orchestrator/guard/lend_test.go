package guard

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

const frozenByLosses = `policy "p" {
	locks = ["job-*"]
	hot "always" { when = session.exists }
	break {
		approval = "auto"
		freeze { when = cluster.leader_changed_ago < 60 || cluster.sessions_lost > 10 }
	}
}`

func byPolicy(t *testing.T, src string) func(*locksmith.Config) {
	t.Helper()
	set, diags := policies.Parse("test.hcl", []byte(src))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return func(c *locksmith.Config) { c.Policies = set }
}

// A command that starts now knows of the cluster what the leading locksmith saw,
// and nothing once none leads: then what rests on it is not done.
func TestTheClusterAsTheLeaderSawIt(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		// breaks says why a lock was not broken, or by what the command had to
		// watch the cluster itself; empty: it was broken at once.
		breaks := func(name string) (why string) {
			_, err := w.client(byPolicy(t, frozenByLosses)).Break(t.Context(), locksmith.BreakRequest{Name: name, Notify: func(n locksmith.Notice) {
				if n.Kind == locksmith.NoticeWaiting {
					why = n.Text
				}
			}})
			if no, ok := errors.AsType[*locksmith.NotPermittedError](err); ok {
				return no.Why
			}
			if err != nil {
				t.Fatal(err)
			}
			return why
		}
		for _, n := range []string{"job-0", "job-1", "job-2", "job-3", "job-4"} {
			w.hold(w.client(asElsewhere), n)
		}
		if why := breaks("job-0"); !strings.Contains(why, "no locksmith leads") {
			t.Errorf("without a locksmith: %q", why)
		}
		s := w.start(`policy "q" { locks = ["other"] }`)
		s.leads(time.Minute)
		time.Sleep(5 * time.Minute)
		if why := breaks("job-1"); why != "" {
			t.Errorf("after five quiet minutes: %q", why)
		}
		// That break cost a session, which is no news after a minute.
		time.Sleep(3 * time.Minute)
		key := evidence.ClusterKey(w.keys)
		p, _, err := w.kv.API().KV().Get(key, &api.QueryOptions{RequireConsistent: true})
		if err != nil || p == nil {
			t.Fatalf("%s: %v, %v", key, p, err)
		}
		quiet := p.ModifyIndex
		time.Sleep(30 * time.Second)
		if p, _, _ = w.kv.API().KV().Get(key, nil); p.ModifyIndex != quiet {
			t.Error("it was written although nothing happened")
		}

		for i := range 12 {
			id := fmt.Sprintf("c%d", i)
			if err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: id,
				Check: &api.AgentServiceCheck{CheckID: id, TTL: "1h", Status: "passing"}}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.kv.API().Session().Create(&api.SessionEntry{NodeChecks: []string{"serfHealth"}, ServiceChecks: []api.ServiceCheck{{ID: id}}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		for i := range 12 {
			if err := w.kv.API().Agent().UpdateTTL(fmt.Sprintf("c%d", i), "", "critical"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if why := breaks("job-2"); !strings.Contains(why, "frozen") || strings.Contains(why, "not known") {
			t.Errorf("after twelve sessions were lost: %q", why)
		}
		time.Sleep(2 * time.Minute)
		if why := breaks("job-2"); why != "" {
			t.Errorf("two minutes later: %q", why)
		}

		// A record of another term, or of nobody's, is worth nothing.
		var o records.Observed
		p, _, _ = w.kv.API().KV().Get(key, nil)
		if err := records.Decode(key, p.Value, &o); err != nil {
			t.Fatal(err)
		}
		s.stop()
		if why := breaks("job-3"); !strings.Contains(why, "no locksmith leads") {
			t.Errorf("when it has gone: %q", why)
		}
		w.hold(w.client(asElsewhere), LeaderLock)
		if _, err := w.kv.Txn(t.Context(), consulkv.Set(key, records.Encode(&o))); err != nil {
			t.Fatal(err)
		}
		if why := breaks("job-4"); !strings.Contains(why, "has not said yet") {
			t.Errorf("by the record of an earlier term: %q", why)
		}
	})
}

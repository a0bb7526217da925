package evidence_test

import (
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/records"
)

// elsewhere makes a record that of another host whose holder has a service.
func elsewhere(h *records.Holder) {
	h.Host, h.BootID, h.PIDNS, h.Check = "elsewhere", "another-boot", "pid:[7]", "aimlock-holder-x"
	h.PID, h.StartTicks = 4711, 99
}

func yes() *bool { b := true; return &b }
func no() *bool  { b := false; return &b }

// said is what the agent of that host says of the hold of session.
func said(session string, alive *bool, mod ...func(*records.Observed)) *records.Observed {
	o := &records.Observed{
		Version: records.Version, Kind: records.ObservedHost, Observer: "node-1", Lock: "a", Session: session, Nonce: "nonce",
		Host: "elsewhere", BootID: "another-boot", PIDNS: "pid:[7]", Agent: "aimlock-agent-node-1", Alive: alive, Gone: alive != nil && !*alive,
		Processes: []records.Process{{PID: 4711, StartTicks: 99}},
	}
	for _, m := range mod {
		m(o)
	}
	return o
}

// agentService registers the service of an aimlock agent with its check.
func (w *world) agentService(status string) {
	w.t.Helper()
	err := w.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "aimlock-agent-node-1", Name: "aimlock-agent",
		Check: &api.AgentServiceCheck{CheckID: "aimlock-agent-node-1", TTL: "1h", Status: status}})
	if err != nil {
		w.t.Fatal(err)
	}
}

var observedKey = prefix.Observed("a", "node-1")

// What the agent of another host says counts if it is about this very hold.
// Dead is final; alive is as good as the agent's own check.
func TestHolderOfAnotherHost(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		said  func(session string) any
		agent string // status of its check; "": it has none
		want  string
		dead  bool
	}{
		"nothing was said":             {nil, "passing", "?no aimlock agent there has said", false},
		"dead":                         {func(s string) any { return said(s, no()) }, "passing", "false", true},
		"dead, the agent is gone":      {func(s string) any { return said(s, no()) }, "", "false", true},
		"dead, children are left":      {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Gone = false }) }, "passing", "false", false},
		"alive":                        {func(s string) any { return said(s, yes()) }, "passing", "true", false},
		"alive, the agent is silent":   {func(s string) any { return said(s, yes()) }, "critical", "?its check is critical", false},
		"alive, the agent is gone":     {func(s string) any { return said(s, yes()) }, "", "?its service is not to be seen", false},
		"alive, by an agent elsewhere": {func(s string) any { return said(s, yes(), func(o *records.Observed) { o.Agent = "aimlock-agent-y" }) }, "passing", "?not to be seen", false},
		"cannot tell": {func(s string) any {
			return said(s, nil, func(o *records.Observed) { o.Why = "hidepid\x1b[2J" })
		}, "passing", "?cannot tell: hidepid?[2J", false},
		"an earlier hold":        {func(string) any { return said("earlier", no()) }, "passing", "?another hold", false},
		"another nonce":          {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Nonce = "x" }) }, "passing", "?another hold", false},
		"another lock":           {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Lock = "b" }) }, "passing", "?another hold", false},
		"another host":           {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Host = "h" }) }, "passing", "?written on host h", false},
		"another boot":           {func(s string) any { return said(s, no(), func(o *records.Observed) { o.BootID = "later" }) }, "passing", "?another boot", false},
		"not all were looked at": {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Processes = nil }) }, "passing", "?has not looked at pid 4711", false},
		"another process":        {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Processes[0].StartTicks++ }) }, "passing", "?has not looked at pid", false},
		"it contradicts itself":  {func(s string) any { return said(s, yes(), func(o *records.Observed) { o.Gone = true }) }, "passing", "?contradicts", false},
		"a memory's record": {func(s string) any {
			return said(s, no(), func(o *records.Observed) { o.Kind = records.ObservedMemory })
		}, "passing", "?not a record of a host's agent", false},
		"a newer version": {func(s string) any { return said(s, no(), func(o *records.Observed) { o.Version = 99 }) }, "passing", "?newer aimlock", false},
		"garbage":         {func(string) any { return []byte("\x1b{") }, "passing", "?not a record", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id := w.holdOwn(elsewhere)
			if tc.said != nil {
				w.put(observedKey, tc.said(id))
			}
			if tc.agent != "" {
				w.agentService(tc.agent)
			}
			s := w.read("a")
			switch tc.want {
			case "true", "false":
				want{"holder.alive": tc.want == "true", "holder.local": false}.check(t, w.facts(s))
				if f, _ := w.facts(s).Lookup("holder.alive"); !strings.Contains(f.Source, "agent of host elsewhere") {
					t.Errorf("its source is %q", f.Source)
				}
			default:
				want{"holder.alive": tc.want}.check(t, w.facts(s))
			}
			if dead, why := w.reader.Dead(s); dead != tc.dead {
				t.Errorf("proved dead: %v (%s)", dead, why)
			}
			if idx, ok := s.Deps[observedKey]; !ok || (idx != 0) != (tc.said != nil) {
				t.Errorf("the verdict does not rest on %s: index %d, %v", observedKey, idx, ok)
			}
			// A sweep says the same.
			sweep, err := w.reader.NewSweep([]string{string(prefix) + "locks/"}).Read(t.Context())
			if err != nil || len(sweep) != 1 {
				t.Fatalf("%d snapshots, %v", len(sweep), err)
			}
			one, _ := w.facts(s).Lookup("holder.alive")
			all, _ := w.facts(sweep[0]).Lookup("holder.alive")
			if !one.Value.RawEquals(all.Value) || one.Why != all.Why {
				t.Errorf("a sweep says %#v (%s), not %#v (%s)", all.Value, all.Why, one.Value, one.Why)
			}
		})
	}
}

// Serf is asked too: a node that failed keeps the checks that it had.
func TestAliveOnAFailedNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.holdOwn(elsewhere)
	w.agentService("passing")
	w.put(observedKey, said(id, yes()))
	s := w.read("a")
	for _, c := range s.Checks {
		if c.CheckID == "serfHealth" {
			c.Status = api.HealthCritical
		}
	}
	want{"holder.alive": "?node is not alive"}.check(t, w.facts(s))
	s.Checks, s.ChecksWhy = nil, "refused"
	want{"holder.alive": "?not known: refused"}.check(t, w.facts(s))
}

// A process that the progress names after the agent looked was not looked at.
func TestAliveOfALaterProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.holdOwn(elsewhere)
	w.put(observedKey, said(id, no()))
	w.put(prefix.Progress("a"), &records.Progress{Version: 1, Lock: "a", Session: id, Processes: []records.Process{{PID: 5, StartTicks: 1}}})
	s := w.read("a")
	want{"holder.alive": "?has not looked at pid 5"}.check(t, w.facts(s))
	if dead, _ := w.reader.Dead(s); dead {
		t.Error("proved dead")
	}
}

// Without a service no agent finds the holder, and that is said.
func TestNobodyToAsk(t *testing.T) {
	t.Parallel()
	for why, mod := range map[string]func(*records.Holder){
		"has no service":            func(h *records.Holder) { elsewhere(h); h.Check = "" },
		"did not record its Consul": func(h *records.Holder) { elsewhere(h); h.Node = "" },
	} {
		w := newWorld(t)
		w.holdOwn(mod)
		s := w.read("a")
		want{"holder.alive": "?" + why}.check(t, w.facts(s))
		if s.SeenKey != "" {
			t.Errorf("%s: it rests on %s", why, s.SeenKey)
		}
	}
}

// What was said of a hold that ended without a word proves that nothing is owed.
func TestDeadAfterTheHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.holdOwn(elsewhere)
	w.put(observedKey, said(id, no()))
	if _, err := w.kv.API().Session().Destroy(id, nil); err != nil {
		t.Fatal(err)
	}
	s := w.read("a")
	if dead, why := w.reader.Dead(s); s.Held() || !dead {
		t.Errorf("held %v, dead %v: %s", s.Held(), dead, why)
	}
}

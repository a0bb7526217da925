package conformance

import (
	"time"

	"github.com/hashicorp/consul/api"
)

var agentTests = []test{
	{"self, members, leader", func(e *env) {
		self, err := e.c.Agent().Self()
		e.must(err)
		name, _ := self["Config"]["NodeName"].(string)
		same(e, "node name", name, e.self())
		same(e, "datacenter is given", self["Config"]["Datacenter"] != "", true)
		members, err := e.c.Agent().Members(false)
		e.must(err)
		found := false
		for _, m := range members {
			if m.Name == name {
				found = true
				same(e, "status", m.Status, 1)
			}
		}
		same(e, "own member", found, true)
		leader, err := e.c.Status().Leader()
		e.must(err)
		peers, err := e.c.Status().Peers()
		e.must(err)
		if leader == "" || len(peers) == 0 {
			e.Errorf("leader %q of %d peers", leader, len(peers))
		}
	}},
	{"a service and its check", func(e *env) {
		check := e.service("s", time.Minute, func(r *api.AgentServiceRegistration) {
			r.Tags, r.Meta, r.Address = []string{"one", "two"}, map[string]string{"k": "v"}, "192.0.2.7"
			r.Check.DeregisterCriticalServiceAfter = "10m"
		})
		id := e.serviceID("s")
		services, err := e.c.Agent().Services()
		e.must(err)
		svc := services[id]
		if svc == nil {
			e.Fatalf("service %s is not among the agent's", id)
		}
		same(e, "tags", len(svc.Tags), 2)
		same(e, "meta", svc.Meta["k"], "v")
		same(e, "address", svc.Address, "192.0.2.7")
		one, _, err := e.c.Agent().Service(id, e.q())
		e.must(err)
		same(e, "port", one.Port, 80)

		checks, err := e.c.Agent().Checks()
		e.must(err)
		c := checks[check]
		if c == nil {
			e.Fatalf("check %s is not among the agent's", check)
		}
		same(e, "status before a report", c.Status, api.HealthCritical)
		same(e, "service", c.ServiceID, id)
		same(e, "type", c.Type, "ttl")
		for _, status := range []string{api.HealthPassing, api.HealthWarning, api.HealthCritical, api.HealthPassing} {
			e.report(check, status, "now "+status)
			h, _, err := e.c.Health().Checks(id, e.q())
			e.must(err)
			same(e, "status in the catalog", h[0].Status, status)
			same(e, "output in the catalog", h[0].Output, "now "+status)
		}
		e.must(e.c.Agent().ServiceDeregister(id))
		services, err = e.c.Agent().Services()
		e.must(err)
		same(e, "service left", services[id] != nil, false)
		checks, err = e.c.Agent().Checks()
		e.must(err)
		same(e, "check left", checks[check] != nil, false)
	}},
	{"pass, warn and fail by name", func(e *env) {
		check := e.service("s", time.Minute)
		for _, r := range []struct {
			path, status string
		}{{"pass", api.HealthPassing}, {"warn", api.HealthWarning}, {"fail", api.HealthCritical}} {
			same(e, r.path, e.raw("PUT", "/v1/agent/check/"+r.path+"/"+check+"?note=hello", "").code, 200)
			checks, err := e.c.Agent().Checks()
			e.must(err)
			same(e, "status", checks[check].Status, r.status)
			same(e, "output", checks[check].Output, "hello")
		}
	}},
	{"new output of an unchanged status reaches the catalog late", func(e *env) {
		check := e.service("s", time.Minute)
		e.report(check, api.HealthPassing, "first")
		_, meta, err := e.c.Health().Checks(e.serviceID("s"), e.q())
		e.must(err)
		e.report(check, api.HealthPassing, "second")
		checks, err := e.c.Agent().Checks()
		e.must(err)
		same(e, "output at the agent", checks[check].Output, "second")
		q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Second}
		// Other tests move the index of all checks: only the answer counts.
		h, _, err := e.c.Health().Checks(e.serviceID("s"), q.WithContext(e.ctx))
		e.must(err)
		same(e, "output in the catalog", h[0].Output, "first")
		e.report(check, api.HealthWarning, "third")
		h, _, err = e.c.Health().Checks(e.serviceID("s"), e.q())
		e.must(err)
		same(e, "output in the catalog with a new status", h[0].Output, "third")
	}},
	{"a missed TTL", func(e *env) {
		const ttl = time.Second
		check := e.service("s", ttl)
		missed := func(output string) {
			e.Helper()
			e.until("check is critical", ttl+e.tgt.Slack, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
				h, meta, err := e.c.Health().Checks(e.serviceID("s"), q)
				return len(h) == 1 && h[0].Status == api.HealthCritical && h[0].Output == output, meta, err
			})
		}
		e.report(check, api.HealthPassing, "fine")
		missed("TTL expired (last output before timeout follows): fine")
		e.report(check, api.HealthPassing, "") // it can come back
		missed("TTL expired")
	}},
	{"registering again keeps the status", func(e *env) {
		check := e.service("s", time.Minute)
		e.report(check, api.HealthPassing, "fine")
		e.service("s", time.Minute, func(r *api.AgentServiceRegistration) { r.Port = 81 })
		h, _, err := e.c.Health().Service(e.serviceID("s"), "", true, e.q())
		e.must(err)
		same(e, "passing instances", len(h), 1)
		same(e, "port", h[0].Service.Port, 81)
	}},
	{"several checks, and one that starts as passing", func(e *env) {
		e.service("s", time.Minute, func(r *api.AgentServiceRegistration) {
			r.Check = nil
			r.Checks = api.AgentServiceChecks{
				{TTL: "1m", Status: api.HealthPassing},
				{TTL: "1m", CheckID: e.name + "-named", Name: "named", Status: api.HealthPassing},
			}
		})
		h, _, err := e.c.Health().Service(e.serviceID("s"), "", true, e.q())
		e.must(err)
		if len(h) != 1 {
			e.Fatalf("%d passing instances", len(h))
		}
		ids := map[string]bool{}
		for _, c := range h[0].Checks {
			ids[c.CheckID] = true
		}
		for _, id := range []string{"serfHealth", "service:" + e.serviceID("s") + ":1", e.name + "-named"} {
			same(e, "check "+id, ids[id], true)
		}
	}},
	{"refusals", func(e *env) {
		a := e.c.Agent()
		err := a.UpdateTTL("no-such-check", "", api.HealthPassing)
		e.mustFail(err, `Unknown check ID "no-such-check"`)
		same(e, "status", statusOf(err), 404)
		e.mustFail(a.CheckDeregister("no-such-check"), `Unknown check ID "no-such-check"`)
		e.mustFail(a.ServiceDeregister("no-such-service"), `Unknown service ID "no-such-service"`)
		e.mustFail(a.ServiceRegister(&api.AgentServiceRegistration{}), "Missing service name")
		e.mustFail(a.ServiceRegister(&api.AgentServiceRegistration{Name: e.name, Check: &api.AgentServiceCheck{TTL: "1m", Status: "odd"}}), "Status for checks")
		e.mustFail(a.CheckRegister(&api.AgentCheckRegistration{}), "Missing check name")
		e.mustFail(a.CheckRegister(&api.AgentCheckRegistration{Name: e.name}), "TTL must be > 0")
		e.mustFail(a.CheckRegister(&api.AgentCheckRegistration{Name: e.name, ServiceID: "no-such-service",
			AgentServiceCheck: api.AgentServiceCheck{TTL: "1m"}}), `"no-such-service" does not exist`)
		check := e.service("s", time.Minute)
		same(e, "an odd status", e.raw("PUT", "/v1/agent/check/update/"+check, `{"Status":"odd"}`).code, 400)
		same(e, "an odd field", e.raw("PUT", "/v1/agent/service/register", `{"Name":"x","Odd":1}`).code, 400)
	}},
}

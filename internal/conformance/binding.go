package conformance

import (
	"fmt"
	"time"

	"github.com/hashicorp/consul/api"
)

// service registers one on the target's agent, with a TTL check, and returns the
// ID of that.
func (e *env) service(name string, ttl time.Duration, set ...func(*api.AgentServiceRegistration)) string {
	e.Helper()
	id := e.name + "-" + name
	reg := &api.AgentServiceRegistration{ID: id, Name: id, Port: 80, Check: &api.AgentServiceCheck{TTL: ttl.String()}}
	for _, f := range set {
		f(reg)
	}
	e.must(e.c.Agent().ServiceRegister(reg))
	e.Cleanup(func() { e.c.Agent().ServiceDeregister(id) })
	return "service:" + id
}

func (e *env) serviceID(name string) string { return e.name + "-" + name }

func (e *env) report(check, status, output string) {
	e.Helper()
	e.must(e.c.Agent().UpdateTTL(check, output, status))
}

func boundTo(checks ...string) func(*api.SessionEntry) {
	return func(se *api.SessionEntry) {
		se.NodeChecks = []string{"serfHealth"}
		for _, c := range checks {
			se.ServiceChecks = append(se.ServiceChecks, api.ServiceCheck{ID: c})
		}
	}
}

// hold makes a session bound to a passing check, which holds a key.
func (e *env) hold(check string) (session, key string) {
	e.Helper()
	e.report(check, api.HealthPassing, "ok")
	session = e.session(boundTo(check))
	return session, e.mustAcquire(e.key("lock"), session, "record").Key
}

var bindingTests = []test{
	{"a check must exist and pass when the session is made", func(e *env) {
		missing := "service:" + e.name
		_, err := e.trySession(boundTo(missing))
		e.mustFail(err, fmt.Sprintf("Missing check '%s' registration", missing))
		check := e.service("s", time.Minute) // critical until it is passed
		_, err = e.trySession(boundTo(check))
		e.mustFail(err, fmt.Sprintf("Check '%s' is in critical state", check))
		e.report(check, api.HealthWarning, "")
		e.session(boundTo(check))
		e.report(check, api.HealthPassing, "")
		e.session(boundTo(check))
	}},
	{"a failed check ends the session", func(e *env) {
		check := e.service("s", time.Minute)
		session, key := e.hold(check)
		e.report(check, api.HealthWarning, "a warning does not")
		same(e, "exists", e.sessionExists(session), true)
		e.report(check, api.HealthCritical, "failed")
		e.untilFree(key, e.tgt.Slack)
		same(e, "exists", e.sessionExists(session), false)
	}},
	{"a check that misses its TTL ends the session", func(e *env) {
		const ttl = 2 * time.Second
		check := e.service("s", ttl)
		start := time.Now()
		session, key := e.hold(check)
		e.untilFree(key, ttl+e.tgt.Slack)
		if took := time.Since(start); took < ttl {
			e.Errorf("the session ended after %v, before the check's TTL of %v", took, ttl)
		}
		same(e, "exists", e.sessionExists(session), false)
		checks, _, err := e.c.Health().Checks(e.serviceID("s"), e.q())
		e.must(err)
		same(e, "status", checks[0].Status, api.HealthCritical)
		same(e, "output", checks[0].Output, "TTL expired (last output before timeout follows): ok")
	}},
	{"passes keep the session", func(e *env) {
		const ttl = 1 * time.Second
		check := e.service("s", ttl)
		session, key := e.hold(check)
		p := e.get(key)
		for end := time.Now().Add(3 * ttl); time.Now().Before(end); {
			q := &api.QueryOptions{WaitIndex: p.ModifyIndex, WaitTime: ttl / 5}
			now, _, err := e.kv.Get(key, q.WithContext(e.ctx))
			e.must(err)
			if now.Session != session {
				e.Fatal("the session ended under passes")
			}
			e.report(check, api.HealthPassing, "ok")
		}
	}},
	{"lock-delay applies after a failed check", func(e *env) {
		check := e.service("s", time.Minute)
		e.report(check, api.HealthPassing, "ok")
		s := e.session(boundTo(check), lockDelay(time.Minute))
		p := e.mustAcquire(e.key("lock"), s, "record")
		e.report(check, api.HealthCritical, "failed")
		e.untilFree(p.Key, e.tgt.Slack)
		same(e, "acquire under lock-delay", e.acquire(p.Key, e.session(), "x"), false)
	}},
	{"a break before the check fails beats the lock-delay", func(e *env) {
		check := e.service("s", time.Minute)
		e.report(check, api.HealthPassing, "ok")
		old, fresh := e.session(boundTo(check), lockDelay(time.Minute)), e.session()
		p := e.mustAcquire(e.key("lock"), old, "record")
		e.txn(op(api.KVUnlock, p.Key, by(old)), op(api.KVLock, p.Key, by(fresh), value("new")))
		e.report(check, api.HealthCritical, "failed")
		e.untilEnded(old, e.tgt.Slack)
		same(e, "session", e.get(p.Key).Session, fresh)
		e.txn(op(api.KVUnlock, p.Key, by(fresh)))
		e.mustAcquire(p.Key, fresh, "no lock-delay was left")
	}},
	{"a deregistered service ends the session", func(e *env) {
		session, key := e.hold(e.service("s", time.Minute))
		e.must(e.c.Agent().ServiceDeregister(e.serviceID("s")))
		e.untilFree(key, e.tgt.Slack)
		same(e, "exists", e.sessionExists(session), false)
	}},
	{"a deregistered check ends the session", func(e *env) {
		check := e.name + "-check"
		e.must(e.c.Agent().CheckRegister(&api.AgentCheckRegistration{ID: check, Name: check,
			AgentServiceCheck: api.AgentServiceCheck{TTL: "1m"}}))
		e.Cleanup(func() { e.c.Agent().CheckDeregister(check) })
		session, key := e.hold(check)
		e.must(e.c.Agent().CheckDeregister(check))
		e.untilFree(key, e.tgt.Slack)
		same(e, "exists", e.sessionExists(session), false)
	}},
	{"a node check in the catalog ends the session", func(e *env) {
		node := e.externalNode(api.HealthPassing)
		s := e.session(func(se *api.SessionEntry) { se.Node, se.NodeChecks = node, []string{"alive"} })
		p := e.mustAcquire(e.key("lock"), s, "record")
		e.registerExternal(node, api.HealthCritical)
		e.untilFree(p.Key, e.tgt.Slack)
		same(e, "exists", e.sessionExists(s), false)
		_, err := e.trySession(func(se *api.SessionEntry) { se.Node, se.NodeChecks = node, []string{"alive"} })
		e.mustFail(err, "Check 'alive' is in critical state")
	}},
	{"a deregistered node ends its sessions", func(e *env) {
		node := e.externalNode(api.HealthPassing)
		s := e.session(func(se *api.SessionEntry) { se.Node = node })
		p := e.mustAcquire(e.key("lock"), s, "record")
		_, err := e.c.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, e.w())
		e.must(err)
		e.untilFree(p.Key, e.tgt.Slack)
		same(e, "exists", e.sessionExists(s), false)
	}},
}

// externalNode puts a node into the catalog that no agent keeps, with a check
// named alive.
func (e *env) externalNode(status string) string {
	e.Helper()
	node := e.name + "-node"
	e.registerExternal(node, status)
	e.Cleanup(func() { e.c.Catalog().Deregister(&api.CatalogDeregistration{Node: node}, nil) })
	return node
}

func (e *env) registerExternal(node, status string) {
	e.Helper()
	_, err := e.c.Catalog().Register(&api.CatalogRegistration{
		Node: node, Address: "192.0.2.1", NodeMeta: map[string]string{"zone": "a"},
		Checks: api.HealthChecks{{Node: node, CheckID: "alive", Name: "alive", Status: status}},
	}, e.w())
	e.must(err)
}

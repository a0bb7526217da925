package conformance

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
)

func ttl(d time.Duration) func(*api.SessionEntry) {
	return func(se *api.SessionEntry) { se.TTL = d.String() }
}

// self is the name of the target's own node.
func (e *env) self() string {
	e.Helper()
	name, err := e.c.Agent().NodeName()
	e.must(err)
	return name
}

var sessionTests = []test{
	{"defaults", func(e *env) {
		id, _, err := e.c.Session().Create(nil, e.w())
		e.must(err)
		defer e.destroy(id)
		se, _, err := e.c.Session().Info(id, e.q())
		e.must(err)
		same(e, "node", se.Node, e.self())
		same(e, "lock-delay", se.LockDelay, 15*time.Second)
		same(e, "behavior", se.Behavior, api.SessionBehaviorRelease)
		same(e, "TTL", se.TTL, "")
		same(e, "checks", strings.Join(se.NodeChecks, ","), "serfHealth")
	}},
	{"without checks", func(e *env) {
		id := e.session(lockDelay(1500 * time.Millisecond))
		se, _, err := e.c.Session().Info(id, e.q())
		e.must(err)
		same(e, "checks", len(se.Checks)+len(se.NodeChecks)+len(se.ServiceChecks), 0)
		same(e, "name", se.Name, e.name)
		same(e, "lock-delay", se.LockDelay, 1500*time.Millisecond)
	}},
	{"lock-delay as it may be written", func(e *env) {
		for text, want := range map[string]time.Duration{
			`"5s"`: 5 * time.Second, `7`: 7 * time.Second, `3000000`: 3 * time.Millisecond, `0`: 0, `null`: 15 * time.Second,
		} {
			a := e.raw("PUT", "/v1/session/create", `{"LockDelay":`+text+`}`)
			var out struct{ ID string }
			if err := json.Unmarshal([]byte(a.body), &out); err != nil {
				e.Fatalf("LockDelay %s: %d %s", text, a.code, a.body)
			}
			se, _, err := e.c.Session().Info(out.ID, e.q())
			e.must(err)
			same(e, "lock-delay of "+text, se.LockDelay, want)
			e.destroy(out.ID)
		}
	}},
	{"checks as they may be written", func(e *env) {
		for body, want := range map[string]string{
			`{}`:                        "serfHealth",
			`{"NodeChecks":[]}`:         "",
			`{"Checks":[]}`:             "",
			`{"Checks":null}`:           "",
			`{"Checks":["serfHealth"]}`: "serfHealth",
			`{"Checks":["serfHealth"],"NodeChecks":[]}`:     "",
			`{"Checks":["no-such-one"]}`:                    "Missing check 'no-such-one'",
			`{"ServiceChecks":[{"ID":"no-such-one"}]}`:      "Missing check 'no-such-one'",
			`{"Checks":["no-such-one"],"NodeChecks":[]}`:    "",
			`{"NodeChecks":["serfHealth"],"Odd":"ignored"}`: "serfHealth",
		} {
			a := e.raw("PUT", "/v1/session/create", body)
			if a.code != http.StatusOK {
				if want == "" || !strings.Contains(a.body, want) {
					e.Errorf("%s: %d %s, want %q", body, a.code, a.body, want)
				}
				continue
			}
			var out struct{ ID string }
			e.must(json.Unmarshal([]byte(a.body), &out))
			se, _, err := e.c.Session().Info(out.ID, e.q())
			e.must(err)
			same(e, "checks of "+body, strings.Join(append(se.Checks, se.NodeChecks...), ","), want)
			e.destroy(out.ID)
		}
	}},
	{"list, by node, destroy", func(e *env) {
		id := e.session()
		in := func(list []*api.SessionEntry, _ *api.QueryMeta, err error) bool {
			e.Helper()
			e.must(err)
			for _, se := range list {
				if se.ID == id {
					return true
				}
			}
			return false
		}
		same(e, "listed", in(e.c.Session().List(e.q())), true)
		same(e, "listed by node", in(e.c.Session().Node(e.self(), e.q())), true)
		same(e, "listed by another node", in(e.c.Session().Node("no-such-node", e.q())), false)
		e.destroy(id)
		e.destroy(id) // once more is no error
		same(e, "listed", in(e.c.Session().List(e.q())), false)
		same(e, "exists", e.sessionExists(id), false)
		same(e, "exists at all", e.sessionExists(fakeSession), false)
	}},
	{"renew", func(e *env) {
		id := e.session(ttl(e.tgt.MinTTL))
		se, _, err := e.c.Session().Renew(id, e.w())
		e.must(err)
		same(e, "id", se.ID, id)
		same(e, "TTL", se.TTL, e.tgt.MinTTL.String())
		e.destroy(id)
		if se, _, err = e.c.Session().Renew(id, e.w()); err != nil || se != nil {
			e.Errorf("renewal of an ended session: %v, %v, want nothing and no error", se, err)
		}
		same(e, "status", e.raw("PUT", "/v1/session/renew/"+id, "").code, 404)
	}},
	{"refusals", func(e *env) {
		for want, set := range map[string]func(*api.SessionEntry){
			"Invalid Session TTL":         ttl(e.tgt.MinTTL - time.Millisecond),
			"must be between":             ttl(24*time.Hour + time.Second),
			"Session TTL 'x' invalid":     func(se *api.SessionEntry) { se.TTL = "x" },
			"Invalid Behavior setting":    func(se *api.SessionEntry) { se.Behavior = "x" },
			"Missing node registration":   func(se *api.SessionEntry) { se.Node = "no-such-node" },
			"Missing check 'no-such-one'": func(se *api.SessionEntry) { se.NodeChecks = []string{"no-such-one"} },
		} {
			_, err := e.trySession(set)
			e.mustFail(err, want)
			same(e, "status of "+want, statusOf(err), 500)
		}
		e.session(ttl(24 * time.Hour))
		e.session(func(se *api.SessionEntry) { se.TTL = "0s" })
	}},
	{"a TTL ends it after the TTL, at the latest after its multiple", func(e *env) {
		ttlIs := e.tgt.MinTTL
		id := e.session(ttl(ttlIs))
		start := time.Now()
		p := e.mustAcquire(e.key("a"), id, "one")
		e.untilFree(p.Key, time.Duration(float64(ttlIs)*e.tgt.TTLFactor)+e.tgt.Slack)
		if took := time.Since(start); took < ttlIs {
			e.Errorf("ended after %v, before its TTL of %v", took, ttlIs)
		}
		same(e, "exists", e.sessionExists(id), false)
		same(e, "value", string(e.get(p.Key).Value), "one")
	}},
	{"renewals keep it", func(e *env) {
		id := e.session(ttl(e.tgt.MinTTL))
		p := e.mustAcquire(e.key("a"), id, "one")
		// Longer than the session could live unrenewed.
		end := time.Now().Add(time.Duration(float64(e.tgt.MinTTL)*e.tgt.TTLFactor) + e.tgt.MinTTL/2)
		for time.Now().Before(end) {
			q := &api.QueryOptions{WaitIndex: p.ModifyIndex, WaitTime: e.tgt.MinTTL / 2}
			now, _, err := e.kv.Get(p.Key, q.WithContext(e.ctx))
			e.must(err)
			if now.Session != id {
				e.Fatal("the session ended under renewals")
			}
			se, _, err := e.c.Session().Renew(id, e.w())
			e.must(err)
			if se == nil {
				e.Fatal("the session ended under renewals")
			}
		}
	}},
}

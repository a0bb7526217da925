package conformance

import (
	"time"

	"github.com/hashicorp/consul/api"
)

// external registers an instance of the test's service on a node of its own.
func (e *env) external(node, zone, status string) {
	e.Helper()
	name := e.name + "-" + node
	_, err := e.c.Catalog().Register(&api.CatalogRegistration{
		Node: name, Address: "192.0.2.1", NodeMeta: map[string]string{"zone": zone},
		Service: &api.AgentService{ID: "web", Service: e.name, Port: 80, Tags: []string{"t-" + node}, Meta: map[string]string{"the-zone": zone}},
		Checks:  api.HealthChecks{{Node: name, CheckID: "web", Name: "web", ServiceID: "web", Status: status}},
	}, e.w())
	e.must(err)
	e.Cleanup(func() { e.c.Catalog().Deregister(&api.CatalogDeregistration{Node: name}, nil) })
}

var catalogTests = []test{
	{"filtered checks", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		e.external("b", "west", api.HealthCritical)
		state := func(filter string) api.HealthChecks {
			e.Helper()
			q := e.q()
			q.Filter = filter
			checks, _, err := e.c.Health().State(api.HealthAny, q)
			e.must(err)
			return checks
		}
		nodes := func(checks api.HealthChecks) string {
			names := ""
			for _, c := range checks {
				names += c.Node[len(e.name):]
			}
			return names
		}
		same(e, "by service", nodes(state(`ServiceName == "`+e.name+`"`)), "-a-b")
		same(e, "by service and status", nodes(state(`ServiceName == "`+e.name+`" and Status == critical`)), "-b")
		same(e, "by id, quoted with Go's escapes", nodes(state(`CheckID == "\x77eb" and ServiceName == "`+e.name+`"`)), "-a-b")
		for _, c := range state(`CheckID == "serfHealth" or ServiceName == "` + e.name + `"`) {
			same(e, "one of the two", c.CheckID == "serfHealth" || c.ServiceName == e.name, true)
		}
		q := e.q()
		q.Filter = "CheckID =="
		_, _, err := e.c.Health().State(api.HealthAny, q)
		e.mustFail(err, "Failed to create boolean expression evaluator")
	}},
	{"filtered nodes and instances", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		e.external("b", "west", api.HealthCritical)
		list := func(filter string) string {
			e.Helper()
			q := e.q()
			q.Filter = filter + ` and Node matches "^` + e.name + `-"`
			nodes, _, err := e.c.Catalog().Nodes(q)
			e.must(err)
			names := ""
			for _, n := range nodes {
				names += n.Node[len(e.name):]
			}
			return names
		}
		same(e, "nodes by metadata", list(`Meta.zone == "west"`), "-b")
		same(e, "nodes that lack a key", list(`Meta.rack == "1"`), "")
		same(e, "nodes that lack a key, and it is another", list(`Meta.rack != "1"`), "-a-b")
		instances := func(filter string) string {
			e.Helper()
			q := e.q()
			q.Filter = filter
			l, _, err := e.c.Catalog().Service(e.name, "", q)
			e.must(err)
			names := ""
			for _, s := range l {
				names += s.Node[len(e.name):]
			}
			return names
		}
		same(e, "instances by tag", instances(`"t-a" in ServiceTags`), "-a")
		same(e, "instances by the metadata of their node", instances(`NodeMeta.zone == "west" or NodeMeta.zone == "east"`), "-a-b")
		healthy := func(filter string) string {
			e.Helper()
			q := e.q()
			q.Filter = filter
			l, _, err := e.c.Health().Service(e.name, "", false, q)
			e.must(err)
			names := ""
			for _, s := range l {
				names += s.Node.Node[len(e.name):]
			}
			return names
		}
		same(e, "health by tag", healthy(`"t-a" in Service.Tags`), "-a")
		same(e, "health by the metadata of the node", healthy(`Node.Meta.zone == "west"`), "-b")
		same(e, "health by metadata that is not there", healthy(`Service.Meta.zone == "west"`), "")
		services := func(filter string) int {
			e.Helper()
			q := e.q()
			q.Filter = filter
			n, _, err := e.c.Catalog().Node(e.name+"-a", q)
			e.must(err)
			return len(n.Services)
		}
		same(e, "the services of a node by name", services(`Service == "`+e.name+`"`), 1)
		same(e, "the services of a node by another name", services(`Service == "none"`), 0)
		same(e, "the services of a node by metadata", services(`Meta["the-zone"] == "east"`), 1)
		same(e, "the services of a node by metadata that is not there", services(`Meta["the-zone"] == ""`), 0)
		q := e.q()
		q.Filter = "Nope =="
		_, _, err := e.c.Catalog().Node(e.name+"-a", q)
		e.mustFail(err, "Failed to create boolean expression evaluator")
		_, _, err = e.c.Catalog().Nodes(q)
		e.mustFail(err, "Failed to create boolean expression evaluator")
		_, _, err = e.c.Catalog().Service(e.name, "", q)
		e.mustFail(err, "Failed to create boolean expression evaluator")
		_, _, err = e.c.Health().Service(e.name, "", false, q)
		e.mustFail(err, "Failed to create boolean expression evaluator")
	}},
	{"no tokens", func(e *env) {
		_, _, err := e.c.ACL().TokenReadSelf(e.q())
		e.mustFail(err, "ACL support disabled")
	}},
	{"own node", func(e *env) {
		nodes, _, err := e.c.Catalog().Nodes(e.q())
		e.must(err)
		found := false
		for _, n := range nodes {
			found = found || n.Node == e.self() && n.Address != ""
		}
		same(e, "among the nodes", found, true)
		checks, _, err := e.c.Health().Node(e.self(), e.q())
		e.must(err)
		status := ""
		for _, c := range checks {
			if c.CheckID == "serfHealth" {
				status = c.Status
			}
		}
		same(e, "serfHealth", status, api.HealthPassing)
		dcs, err := e.c.Catalog().Datacenters()
		e.must(err)
		same(e, "datacenters", len(dcs), 1)
	}},
	{"services of other nodes", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		e.external("b", "west", api.HealthCritical)
		services, _, err := e.c.Catalog().Services(e.q())
		e.must(err)
		same(e, "tags of both", len(services[e.name]), 2)

		count := func(what string, n int, err error, want int) {
			e.Helper()
			e.must(err)
			same(e, what, n, want)
		}
		inst, _, err := e.c.Catalog().Service(e.name, "", e.q())
		count("instances", len(inst), err, 2)
		inst, _, err = e.c.Catalog().Service(e.name, "t-a", e.q())
		count("instances with a tag", len(inst), err, 1)
		same(e, "node", inst[0].Node, e.name+"-a")
		same(e, "node meta", inst[0].NodeMeta["zone"], "east")
		same(e, "port", inst[0].ServicePort, 80)
		meta := (&api.QueryOptions{NodeMeta: map[string]string{"zone": "west"}}).WithContext(e.ctx)
		inst, _, err = e.c.Catalog().Service(e.name, "", meta)
		count("instances in a zone", len(inst), err, 1)
		same(e, "node", inst[0].Node, e.name+"-b")
		inst, _, err = e.c.Catalog().Service("no-such-service", "", e.q())
		count("instances of nothing", len(inst), err, 0)

		h, _, err := e.c.Health().Service(e.name, "", false, e.q())
		count("health", len(h), err, 2)
		h, _, err = e.c.Health().Service(e.name, "", true, e.q())
		count("passing", len(h), err, 1)
		same(e, "node", h[0].Node.Node, e.name+"-a")
		same(e, "check", h[0].Checks[0].CheckID, "web")
		checks, _, err := e.c.Health().Checks(e.name, e.q())
		count("checks", len(checks), err, 2)
		critical, _, err := e.c.Health().State(api.HealthCritical, e.q())
		e.must(err)
		n := 0
		for _, c := range critical {
			if c.ServiceName == e.name {
				n++
				same(e, "critical node", c.Node, e.name+"-b")
			}
		}
		same(e, "critical", n, 1)
	}},
	{"one node", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		n, _, err := e.c.Catalog().Node(e.name+"-a", e.q())
		e.must(err)
		if n == nil {
			e.Fatal("no such node")
		}
		same(e, "zone", n.Node.Meta["zone"], "east")
		same(e, "service", n.Services["web"].Service, e.name)
		n, _, err = e.c.Catalog().Node("no-such-node", e.q())
		e.must(err)
		same(e, "a node that does not exist", n == nil, true)
		checks, _, err := e.c.Health().Node("no-such-node", e.q())
		e.must(err)
		same(e, "its checks", len(checks), 0)
	}},
	{"deregister step by step", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		node := e.name + "-a"
		dereg := func(d api.CatalogDeregistration) {
			e.Helper()
			d.Node = node
			_, err := e.c.Catalog().Deregister(&d, e.w())
			e.must(err)
		}
		dereg(api.CatalogDeregistration{CheckID: "web"})
		checks, _, err := e.c.Health().Node(node, e.q())
		e.must(err)
		same(e, "checks", len(checks), 0)
		dereg(api.CatalogDeregistration{ServiceID: "web"})
		inst, _, err := e.c.Catalog().Service(e.name, "", e.q())
		e.must(err)
		same(e, "instances", len(inst), 0)
		dereg(api.CatalogDeregistration{})
		n, _, err := e.c.Catalog().Node(node, e.q())
		e.must(err)
		same(e, "gone", n == nil, true)
	}},
	{"registering the same changes nothing", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		_, meta, err := e.c.Health().Service(e.name, "", false, e.q())
		e.must(err)
		e.external("a", "east", api.HealthPassing)
		_, again, err := e.c.Health().Service(e.name, "", false, e.q())
		e.must(err)
		same(e, "index", again.LastIndex, meta.LastIndex)
		e.external("a", "west", api.HealthPassing)
		_, again, err = e.c.Health().Service(e.name, "", false, e.q())
		e.must(err)
		if again.LastIndex <= meta.LastIndex {
			e.Errorf("a node's new metadata left the index of its service at %d", again.LastIndex)
		}
	}},
	{"refusals", func(e *env) {
		_, err := e.c.Catalog().Register(&api.CatalogRegistration{Node: e.name}, e.w())
		e.mustFail(err, "Must provide address")
		_, err = e.c.Catalog().Register(&api.CatalogRegistration{Address: "192.0.2.1"}, e.w())
		e.mustFail(err, "Must provide node")
		_, err = e.c.Catalog().Deregister(&api.CatalogDeregistration{}, e.w())
		e.mustFail(err, "Must provide node")
		_, err = e.c.Catalog().Register(&api.CatalogRegistration{Node: e.name, Address: "192.0.2.1",
			Checks: api.HealthChecks{{Node: e.name, CheckID: "c", Name: "c", ServiceID: "no-such-service"}}}, e.w())
		e.mustFail(err, "Unknown service ID 'no-such-service' for check ID 'c'")
		_, err = e.c.Catalog().Register(&api.CatalogRegistration{Node: e.name, Address: "192.0.2.1",
			Checks: api.HealthChecks{{Node: "other", CheckID: "c", Name: "c"}}}, e.w())
		e.mustFail(err, "Node 'other' for check 'c' doesn't match register request node '"+e.name+"'")
	}},
	{"a new check changes the health of its service", func(e *env) {
		e.external("a", "east", api.HealthPassing)
		from := e.healthIndex()
		start := time.Now()
		e.external("a", "east", api.HealthCritical)
		e.until("health changed", e.tgt.Slack, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
			q.WaitIndex = max(q.WaitIndex, from)
			h, meta, err := e.c.Health().Service(e.name, "", false, q)
			return len(h) == 1 && h[0].Checks.AggregatedStatus() == api.HealthCritical, meta, err
		})
		if took := time.Since(start); took > e.tgt.Slack {
			e.Errorf("took %v", took)
		}
	}},
}

func (e *env) healthIndex() uint64 {
	e.Helper()
	_, meta, err := e.c.Health().Service(e.name, "", false, e.q())
	e.must(err)
	return meta.LastIndex
}

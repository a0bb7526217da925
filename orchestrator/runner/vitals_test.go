package runner

import (
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"
)

func TestVitals(t *testing.T) {
	v := newVitals([]string{"n1", "n2", "n3"})
	expect := func(what string, ok bool, up, down string) {
		t.Helper()
		ev, got := v.judge()
		if got != ok || fmt.Sprint(ev.Up) != up || fmt.Sprint(ev.Down) != down {
			t.Errorf("%s: up %v, down %v, known %v; want up %s, down %s, known %v", what, ev.Up, ev.Down, got, up, down, ok)
		}
	}
	agent := func(node, on string) *api.CatalogService {
		return &api.CatalogService{Node: on, ServiceID: AgentService + "-" + node, ServiceMeta: map[string]string{"node": node}}
	}
	expect("nothing is known", false, "[]", "[]")
	v.setCritical(nil)
	expect("half is known", false, "[]", "[]")
	v.setAgents(nil)
	expect("no agent at all: a token without rights sees the same", true, "[0 1 2]", "[]")
	v.setAgents([]*api.CatalogService{agent("n1", "c1"), agent("n2", "c1")})
	expect("n3 is absent", true, "[]", "[2]")
	v.setCritical(api.HealthChecks{
		{ServiceName: AgentService, ServiceID: AgentService + "-n2"},
		{ServiceName: "web", ServiceID: "web", Node: "c1", CheckID: "service:web"},
	})
	expect("n2 is critical; another service's check is no matter", true, "[]", "[1]")
	v.setCritical(nil)
	expect("n2 passes again", true, "[1]", "[]")
	v.setCritical(api.HealthChecks{{CheckID: "serfHealth", Node: "c1"}})
	expect("their machine is gone, whatever their own check last said", true, "[]", "[0 1]")
	v.setAgents([]*api.CatalogService{{Node: "c2", ServiceID: "hand-made", ServiceMeta: map[string]string{"node": "n3"}}, agent("n1", "c1"), agent("n2", "c1")})
	expect("n3 is found by its metadata", true, "[2]", "[]")
	expect("nothing new", true, "[]", "[]")
}

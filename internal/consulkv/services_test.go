package consulkv_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
)

const catalogAnswer = `[
 {"ID":"x","Node":"m1","Address":"10.0.0.1","NodeMeta":{"zone":"a"},"ServiceKind":"","ServiceID":"aimlock-agent-n1","ServiceName":"aimlock-agent",
  "ServiceTags":[],"ServiceWeights":{"Passing":1},"ServiceMeta":{"node":"n1","quoted\"\u0061":"zone \\ é","version":"1"},"ServicePort":0,"CreateIndex":12},
 {"Node":"m2","ServiceID":"aimlock-agent-n2","ServiceMeta":null},
 {"Node":"m2","ServiceID":"aimlock-agent-n3","ServiceMeta":{}}
]`

// TestServices: the reader that streams reads what consul/api would, of the
// fields that it reads.
func TestServices(t *testing.T) {
	c := serve(t, answer(nil, http.StatusOK, "application/json", catalogAnswer, "X-Consul-Index", "77"), once)
	got, meta, err := c.Services(t.Context(), "aimlock-agent", &api.QueryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if meta.LastIndex != 77 {
		t.Errorf("index %d", meta.LastIndex)
	}
	want := []*api.CatalogService{
		{Node: "m1", ServiceID: "aimlock-agent-n1", ServiceName: "aimlock-agent", ServiceMeta: map[string]string{"node": "n1", `quoted"a`: `zone \ é`, "version": "1"}},
		{Node: "m2", ServiceID: "aimlock-agent-n2", ServiceName: "aimlock-agent"},
		{Node: "m2", ServiceID: "aimlock-agent-n3", ServiceName: "aimlock-agent", ServiceMeta: map[string]string{}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestServicesOfNonsense(t *testing.T) {
	for _, body := range []string{`{}`, `[{"Node":7}]`, `[{"ServiceMeta":[]}]`, `[{"ServiceMeta":{"a":1}}]`, `[{"Node":"m1"`, `[`, `<html>`} {
		c := serve(t, answer(nil, http.StatusOK, "application/json", body), once)
		got, _, err := c.Services(t.Context(), "s", &api.QueryOptions{})
		if err == nil || strings.Contains(err.Error(), "m1") {
			t.Errorf("%s: %v, %v", body, got, err)
		}
	}
	c := serve(t, answer(nil, http.StatusOK, "application/json", `null`), once)
	if got, _, err := c.Services(t.Context(), "s", &api.QueryOptions{}); err != nil || got == nil || len(got) != 0 {
		t.Errorf("null: %v, %v", got, err)
	}
}

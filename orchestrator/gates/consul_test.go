package gates_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

func consulGate(percent int) gates.Question {
	return gates.Question{Gate: orchestrator.Gate{Kind: orchestrator.GateConsulChecks, Service: "s", MinPassingPercent: percent}}
}

// fleet registers instances of service s, one on each node, with the status of
// its check.
func fleet(t *testing.T, c *consulkv.Client, status map[string]string) {
	t.Helper()
	for node, st := range status {
		_, err := c.API().Catalog().Register(&api.CatalogRegistration{
			Node: "c-" + node, Address: "127.0.0.1",
			Service: &api.AgentService{ID: "s-" + node, Service: "s", Meta: map[string]string{"node": node}},
			Check:   &api.AgentCheck{Node: "c-" + node, CheckID: "check-" + node, ServiceID: "s-" + node, Status: st},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestConsulChecks(t *testing.T) {
	t.Parallel()
	srv, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	c, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	put := func(q gates.Question) gates.Answer { return askContext(t, t.Context(), gates.Config{Consul: c}, q) }
	want(t, put(consulGate(50)), "unknown", `Consul shows no instance of service "s"`)

	fleet(t, c, map[string]string{"n1": "passing", "n2": "critical", "n3": "passing", "n4": "warning"})
	want(t, put(consulGate(50)), "pass", "2 of 4 instances of s pass, and 50 percent must")
	want(t, put(consulGate(51)), "fail", "2 of 4")

	q := consulGate(100)
	q.Gate.Filter = `Service.Meta.node == "n3"`
	want(t, put(q), "pass", "1 of 1 instances of s that the filter leaves pass")
	q.Gate.Filter = `Service.Meta.node == "n9"`
	want(t, put(q), "unknown", "that the filter leaves")

	for _, cmp := range []struct {
		updated, rest []string
		percent       int
		answer, why   string
	}{
		{[]string{"n1"}, []string{"n2", "n3", "n4"}, 100, "pass", "1 of 1 instances of s pass on the nodes that have the revision, and 1 of 3 on those that do not have it yet"},
		{[]string{"n2"}, []string{"n1", "n3"}, 100, "fail", "0 of 1"},
		{[]string{"n2"}, []string{"n4"}, 100, "unknown", "no better where the revision is not"},
		{[]string{"n1", "n2"}, []string{"n3", "n4"}, 100, "unknown", "no better"},
		{[]string{"n1", "n2"}, []string{"n3", "n4"}, 50, "pass", "50 percent must"},
		{[]string{"n1", "n2", "n3", "n4"}, nil, 100, "fail", "no other node is left to compare with"},
		{[]string{"n1", "n3"}, nil, 100, "pass", "no other node is left"},
		{[]string{"n8", "n9"}, []string{"n1"}, 100, "unknown", "none of the 2 nodes"},
		{nil, []string{"n1"}, 100, "unknown", "none of the 0 nodes"},
	} {
		q := consulGate(cmp.percent)
		q.Gate.Compare, q.Updated, q.Rest = true, cmp.updated, cmp.rest
		want(t, put(q), cmp.answer, cmp.why)
	}
}

func TestConsulGone(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	c, err := consulkv.New(consulkv.Config{Address: gone.URL, RetryFor: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	want(t, askContext(t, t.Context(), gates.Config{Consul: c}, consulGate(50)), "error", "refused")
}

func TestNomadDeployment(t *testing.T) {
	t.Parallel()
	var job, deployment string
	var asked *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := job
		if r.URL.Path == "/v1/job/web/deployment" {
			asked, body = r, deployment
		}
		if body == "" {
			http.Error(w, "job not found", http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	defer s.Close()
	client, err := nomadapi.New(nomadapi.Config{Address: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	cfg := gates.Config{Nomad: func() (*nomadapi.Client, error) { return client, nil }}
	q := gates.Question{Gate: orchestrator.Gate{Kind: orchestrator.GateKindNomadDeploy, NomadDeployment: &orchestrator.GateNomadDeployment{
		Job: "web", Namespace: "prod", Region: "eu",
	}}}
	want(t, askContext(t, t.Context(), cfg, q), "error", "job not found")
	job = `{"ID":"web","Version":7}`
	for _, c := range []struct {
		version     int
		status      string
		answer, why string
	}{
		{7, "successful", "pass", `deployment 0123abcd of job "web" of namespace "prod" in region "eu", version 7, is successful: as told`},
		{7, "failed", "fail", "is failed"},
		{7, "cancelled", "fail", "is cancelled"},
		{7, "running", "pending", "is running"},
		{7, "paused", "pending", "is paused"},
		{7, "blocked", "pending", "is blocked"},
		{7, "a new word", "unknown", "is a new word"},
		{6, "successful", "pending", "its last deployment is of version 6"},
		{6, "failed", "pending", "its last deployment is of version 6"},
		{8, "successful", "pass", ""},
	} {
		deployment = fmt.Sprintf(`{"ID":"0123abcd-0000","JobID":"web","JobVersion":%d,"Status":%q,"StatusDescription":"as told"}`, c.version, c.status)
		want(t, askContext(t, t.Context(), cfg, q), c.answer, c.why)
	}
	if v := asked.URL.Query(); v.Get("namespace") != "prod" || v.Get("region") != "eu" {
		t.Errorf("asked %s", asked.URL)
	}
	deployment = "null"
	want(t, askContext(t, t.Context(), cfg, q), "unknown", "has no deployment")
	deployment = "<html>"
	want(t, askContext(t, t.Context(), cfg, q), "error", "")
	want(t, askContext(t, t.Context(), gates.Config{}, q), "unknown", "set NOMAD_ADDR")
	cfg.Nomad = func() (*nomadapi.Client, error) { return nil, errors.New("no certificate") }
	want(t, askContext(t, t.Context(), cfg, q), "error", "no certificate")
}

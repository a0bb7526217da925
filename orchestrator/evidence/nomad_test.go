package evidence_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

const (
	anAlloc = "5d2c1a52-0000-4000-8000-000000000001"
	aNode   = "5d2c1a52-0000-4000-8000-00000000000a"
)

// fakeNomad answers in the form of Nomad's API.
type fakeNomad struct {
	alloc *nomad.Allocation
	node  *nomad.Node
	// token answers acl/token/self; nil: ACLs are disabled.
	token *nomad.ACLToken
	// rules are the policies of the token, as Nomad shows them; nil: there are none.
	rules   map[string]any
	fail    map[string]int // by path, the status to answer with
	stopped []string
	// region is the one that every request must be about.
	region string
}

func (n *fakeNomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(code int, body any) {
		text, isText := body.(string)
		w.Header().Set("X-Nomad-Index", "12")
		w.WriteHeader(code)
		if isText {
			_, _ = w.Write([]byte(text))
			return
		}
		_ = json.NewEncoder(w).Encode(body)
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if r.URL.Query().Get("region") != n.region {
		say(500, "No path to region")
		return
	}
	for p, code := range n.fail {
		if strings.HasPrefix(path, p) {
			say(code, "Permission denied \x1b[31m")
			return
		}
	}
	switch {
	case strings.HasSuffix(path, "/stop") && r.Method == http.MethodPut:
		n.stopped = append(n.stopped, path)
		say(200, &nomad.AllocStopResponse{EvalID: "e"})
	case strings.HasPrefix(path, "allocation/") && n.alloc != nil:
		say(200, n.alloc)
	case strings.HasPrefix(path, "allocation/"):
		say(404, "alloc not found")
	case strings.HasPrefix(path, "node/") && n.node != nil:
		say(200, n.node)
	case path == "acl/token/self" && n.token == nil:
		say(400, "ACL support disabled")
	case path == "acl/token/self" && n.token.Type == "":
		say(404, "ACL token not found")
	case path == "acl/token/self":
		say(200, n.token)
	case path == "acl/policies":
		list := []nomad.ACLPolicyListStub{}
		for name := range n.rules {
			list = append(list, nomad.ACLPolicyListStub{Name: name})
		}
		say(200, list)
	case strings.HasPrefix(path, "acl/policy/") && n.rules != nil:
		say(200, map[string]any{"RulesJSON": n.rules[strings.TrimPrefix(path, "acl/policy/")]})
	default:
		say(404, "not found")
	}
}

// grants are the rules of a policy as Nomad shows them: capabilities in one
// namespace.
func grants(rule ...string) map[string]any {
	out := map[string]any{"Namespaces": nil}
	if len(rule) > 0 {
		out["Namespaces"] = []any{map[string]any{"Name": rule[0], "Policy": "", "Capabilities": rule[1:]}}
	}
	return out
}

func (n *fakeNomad) start(t *testing.T) evidence.Nomad {
	t.Helper()
	srv := httptest.NewServer(n)
	t.Cleanup(srv.Close)
	c, err := nomad.NewClient(&nomad.Config{Address: srv.URL, SecretID: "5ec2e7"})
	if err != nil {
		t.Fatal(err)
	}
	return evidence.NewNomad(nomadapi.Wrap(c))
}

func TestFactsOfNomad(t *testing.T) {
	t.Parallel()
	alloc := func(client, desired string) *nomad.Allocation {
		return &nomad.Allocation{ID: anAlloc, NodeID: aNode, JobID: "rollout", ClientStatus: client, DesiredStatus: desired}
	}
	ready := &nomad.Node{ID: aNode, Status: "ready"}
	for name, tc := range map[string]struct {
		nomad *fakeNomad
		want  want
	}{
		"collected, of a region that nobody recorded": {&fakeNomad{}, want{"nomad.gone": "?another region", "nomad.client_status": "?another region"}},
		"runs": {&fakeNomad{alloc: alloc("running", "run"), node: ready},
			want{"nomad.client_status": "running", "nomad.desired_status": "run", "nomad.node_status": "ready", "nomad.job": "rollout", "nomad.gone": false}},
		"failed": {&fakeNomad{alloc: alloc("failed", "run"), node: ready}, want{"nomad.client_status": "failed", "nomad.gone": false}},
		"lost": {&fakeNomad{alloc: alloc("lost", "stop"), node: &nomad.Node{ID: aNode, Status: "down"}},
			want{"nomad.client_status": "lost", "nomad.desired_status": "stop", "nomad.node_status": "down"}},
		"the node cannot be read": {&fakeNomad{alloc: alloc("running", "run"), fail: map[string]int{"node/": 403}},
			want{"nomad.client_status": "running", "nomad.node_status": "?HTTP 403: Permission denied ?[31m"}},
		"collected, no ACLs": {&fakeNomad{}, want{"nomad.gone": true, "nomad.client_status": "null", "nomad.node_status": "null"}},
		"collected, no ACLs, as newer ones say it": {&fakeNomad{token: &nomad.ACLToken{AccessorID: "acls-disabled", Type: "client"}},
			want{"nomad.gone": true}},
		"collected, to a management token": {&fakeNomad{token: &nomad.ACLToken{Type: "management"}}, want{"nomad.gone": true}},
		"not shown to a client's token": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{}},
			want{"nomad.gone": "?collected, or the token may not", "nomad.client_status": "?collected, or"}},
		"collected, to a token that reads all jobs": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{"node": grants(), "jobs": grants("*", "read-job")}},
			want{"nomad.gone": true}},
		"collected, to the identity of a task that reads all jobs": {&fakeNomad{token: &nomad.ACLToken{}, rules: map[string]any{"jobs": grants("*", "list-jobs", "read-job")}},
			want{"nomad.gone": true}},
		"not shown to one that reads the jobs of one namespace": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{"jobs": grants("prod", "read-job")}},
			want{"nomad.gone": "?collected, or the token may not"}},
		"not shown to one that reads all jobs but those of a namespace": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{"jobs": grants("*", "read-job"), "but": grants("secret", "deny")}},
			want{"nomad.gone": "?collected, or the token may not"}},
		"not shown to one with a closer rule that says less": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{"jobs": grants("*", "read-job"), "but": grants("team-*", "list-jobs")}},
			want{"nomad.gone": "?collected, or the token may not"}},
		"not shown, and its rules are not": {&fakeNomad{token: &nomad.ACLToken{Type: "client"}, rules: map[string]any{"jobs": nil}},
			want{"nomad.gone": "?collected, or the token may not"}},
		"not shown, and no word on the token": {&fakeNomad{fail: map[string]int{"acl/": 403}}, want{"nomad.gone": "?not known"}},
		"denied":                              {&fakeNomad{fail: map[string]int{"allocation/": 403}}, want{"nomad.gone": "?HTTP 403", "nomad.job": "?NOMAD_TOKEN"}},
		"fails":                               {&fakeNomad{fail: map[string]int{"allocation/": 500}}, want{"nomad.client_status": "?HTTP 500"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.reader.Nomad = tc.nomad.start(t)
			region := "europe"
			if strings.Contains(name, "nobody recorded") {
				region = ""
			}
			tc.nomad.region = region
			w.holdOwn(func(h *records.Holder) { h.AllocID, h.AllocRegion = anAlloc, region })
			f := w.facts(w.read("a"))
			tc.want.check(t, f)
			want{"nomad.alloc_id": anAlloc}.check(t, f)
			for _, fact := range f["nomad"] {
				if strings.Contains(fact.Why, "5ec2e7") {
					t.Errorf("the token is shown: %s", fact.Why)
				}
			}
		})
	}
}

func TestNomadThatIsNotAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.holdOwn(func(h *records.Holder) { h.AllocID = anAlloc })
	want{"nomad.alloc_id": anAlloc, "nomad.client_status": "?NOMAD_ADDR", "nomad.gone": "?NOMAD_ADDR"}.check(t, w.facts(w.read("a")))

	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	c, err := nomad.NewClient(&nomad.Config{Address: gone.URL})
	if err != nil {
		t.Fatal(err)
	}
	w.reader.Nomad = evidence.NewNomad(nomadapi.Wrap(c))
	start := time.Now()
	want{"nomad.client_status": "?" + gone.URL}.check(t, w.facts(w.read("a")))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
}

// An id out of a record is never made part of a path unless it is one.
func TestNomadTakesOnlyIDs(t *testing.T) {
	t.Parallel()
	fake := &fakeNomad{alloc: &nomad.Allocation{ID: "x"}}
	n := fake.start(t)
	for _, id := range []string{"", "x", "../system/gc", anAlloc + "/stop", strings.ToUpper(anAlloc), "\x1b[2J"} {
		if _, _, err := n.Alloc(t.Context(), evidence.AllocRef{ID: id}, evidence.Since{}); err == nil || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("read %q: %v", id, err)
		}
		if err := n.Stop(t.Context(), evidence.AllocRef{ID: id}); err == nil {
			t.Errorf("stop %q passes", id)
		}
	}
	if len(fake.stopped) > 0 {
		t.Fatalf("stopped %v", fake.stopped)
	}
	if err := n.Stop(t.Context(), evidence.AllocRef{ID: anAlloc}); err != nil || len(fake.stopped) != 1 {
		t.Fatalf("stop: %v, %v", fake.stopped, err)
	}
}

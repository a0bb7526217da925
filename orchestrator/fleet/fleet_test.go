package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/nomadapi/nomadtest"
	"github.com/aim-control/aimlock/orchestrator"
)

// transport stands between a client and its Consul.
type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// startConsul has a service web on three machines: a twice, b under the name
// n-b, and c.
func startConsul(t *testing.T, wrap func(http.RoundTripper) http.RoundTripper) *consulkv.Client {
	t.Helper()
	srv, err := devconsul.Start(devconsul.Config{NodeName: "server"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	c, err := consulkv.New(consulkv.Config{Address: srv.Addr(), Wrap: wrap})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	add := func(node, zone, id string, meta map[string]string) {
		_, err := plain.API().Catalog().Register(&api.CatalogRegistration{
			Node: node, Address: "192.0.2.1", NodeMeta: map[string]string{"zone": zone},
			Service: &api.AgentService{ID: id, Service: "web", Meta: meta, Tags: []string{"z-" + zone}},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	add("a", "east", "web-1", map[string]string{"port": "1"})
	add("a", "east", "web-2", map[string]string{"port": "2"})
	add("b", "west", "web", map[string]string{"node": "n-b"})
	add("c", "west", "web", nil)
	return c
}

func list(t *testing.T, c *consulkv.Client, sources ...orchestrator.Source) *Survey {
	t.Helper()
	s, err := (&Fleet{Sources: sources}).Survey(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func service(filter string) orchestrator.Source {
	return orchestrator.Source{Consul: &orchestrator.ConsulSource{Service: "web", Filter: filter}}
}

func file(nodes ...orchestrator.Node) orchestrator.Source {
	return orchestrator.Source{File: &orchestrator.FileSource{Path: "f.json", Nodes: nodes}}
}

func TestConsul(t *testing.T) {
	t.Parallel()
	c := startConsul(t, nil)
	for name, tc := range map[string]struct {
		src  orchestrator.Source
		want string
	}{
		"a service":            {service(""), "[{a map[port:1 zone:east]} {c map[zone:west]} {n-b map[node:n-b zone:west]}]"},
		"a service, by tag":    {service(`"z-west" in ServiceTags`), "[{c map[zone:west]} {n-b map[node:n-b zone:west]}]"},
		"all nodes":            {orchestrator.Source{Consul: &orchestrator.ConsulSource{Nodes: true, Filter: `Node != "server"`}}, "[{a map[zone:east]} {b map[zone:west]} {c map[zone:west]}]"},
		"nodes, by metadata":   {orchestrator.Source{Consul: &orchestrator.ConsulSource{Nodes: true, Filter: `Meta.zone == "east"`}}, "[{a map[zone:east]}]"},
		"a file, in its order": {file(orchestrator.Node{Name: "z"}, orchestrator.Node{Name: "y"}), "[{y map[]} {z map[]}]"},
	} {
		s := list(t, c, tc.src)
		if got := fmt.Sprint(s.Nodes); got != tc.want || len(s.Warnings) > 0 || s.Sources[0].Nodes != len(s.Nodes) {
			t.Errorf("%s: got %s, %v, %v\nwant %s", name, got, s.Sources, s.Warnings, tc.want)
		}
	}
}

func TestJoined(t *testing.T) {
	t.Parallel()
	c := startConsul(t, nil)
	s := list(t, c, service(""), file(orchestrator.Node{Name: "c", Meta: map[string]string{"zone": "north\x1b[2J", "rack": "1"}}, orchestrator.Node{Name: "d"}), service(`ServiceName == "other"`))
	if got := fmt.Sprint(s.Nodes); got != "[{a map[port:1 zone:east]} {c map[rack:1 zone:west]} {d map[]} {n-b map[node:n-b zone:west]}]" {
		t.Errorf("nodes %s", got)
	}
	if fmt.Sprint(s.Sources) != `[{Consul service "web" 3} {f.json 2} {Consul service "web" where ServiceName == "other" 0}]` || s.Shared != 1 {
		t.Errorf("sources %v, shared %d", s.Sources, s.Shared)
	}
	want := []string{
		`Consul service "web" where ServiceName == "other" names no node`,
		`node c: meta "zone" is "west" by Consul service "web" and "north\x1b[2J" by f.json: the first counts, because it stands first in the spec`,
	}
	if strings.Join(s.Warnings, "\n") != strings.Join(want, "\n") {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(s.Warnings, "\n"), strings.Join(want, "\n"))
	}
	var many []orchestrator.Node
	for i := range 40 {
		many = append(many, orchestrator.Node{Name: fmt.Sprintf("m%02d", i), Meta: map[string]string{"k": "1"}})
	}
	other := make([]orchestrator.Node, len(many))
	for i := range many {
		other[i] = orchestrator.Node{Name: many[i].Name, Meta: map[string]string{"k": "2"}}
	}
	two := file(other...)
	two.File.Path = "g.json"
	if s := list(t, c, file(many...), two); len(s.Warnings) != maxConflicts+1 || !strings.HasPrefix(s.Warnings[maxConflicts], "35 more") {
		t.Errorf("of many conflicts: %q", s.Warnings)
	}
}

// What a token may not read is not shown: an empty answer is no empty fleet, and
// half an answer is told.
func TestConsulRights(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	acl, filtered, empty := true, false, false
	c := startConsul(t, func(next http.RoundTripper) http.RoundTripper {
		return transport(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if strings.HasPrefix(r.URL.Path, "/v1/acl/") && acl {
				w := httptest.NewRecorder()
				_, _ = w.WriteString(`{"AccessorID": "x"}`)
				return w.Result(), nil
			}
			if empty && strings.HasPrefix(r.URL.Path, "/v1/catalog/") {
				r = r.Clone(r.Context())
				r.URL.RawQuery = "filter=" + "Node+%3D%3D+%22none%22"
			}
			res, err := next.RoundTrip(r)
			if err == nil && filtered {
				res.Header.Set("X-Consul-Results-Filtered-By-ACLs", "true")
			}
			return res, err
		})
	})
	set := func(a, f, e bool) {
		mu.Lock()
		defer mu.Unlock()
		acl, filtered, empty = a, f, e
	}
	survey := func(sources ...orchestrator.Source) (*Survey, error) {
		return (&Fleet{Sources: sources}).Survey(t.Context(), c)
	}
	set(true, false, true)
	if s, err := survey(service(""), file(orchestrator.Node{Name: "n"})); err == nil || !strings.Contains(err.Error(), "node:read") {
		t.Errorf("with ACLs, an empty answer is %+v, %v", s, err)
	}
	set(false, false, true)
	if s, err := survey(service(""), file(orchestrator.Node{Name: "n"})); err != nil || len(s.Nodes) != 1 {
		t.Errorf("without ACLs, an empty answer beside another source is %+v, %v", s, err)
	}
	if s, err := survey(service("")); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("without ACLs, an empty answer alone is %+v, %v", s, err)
	}
	set(true, true, false)
	if s, err := survey(service("")); err != nil || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "ACLs hid") {
		t.Errorf("half an answer is %+v, %v", s, err)
	}
}

func TestConsulErrors(t *testing.T) {
	t.Parallel()
	c := startConsul(t, nil)
	_, err := (&Fleet{Sources: []orchestrator.Source{service(`Nope ==`)}}).Survey(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "does not take the filter") {
		t.Errorf("a filter that is none: %v", err)
	}
	_, err = c.API().Catalog().Register(&api.CatalogRegistration{Node: "d", Address: "192.0.2.1",
		Service: &api.AgentService{ID: "bad", Service: "bad", Meta: map[string]string{"node": "../x"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	bad := service("")
	bad.Consul.Service = "bad"
	if _, err = (&Fleet{Sources: []orchestrator.Source{bad}}).Survey(t.Context(), c); err == nil || !strings.Contains(err.Error(), "../x") {
		t.Errorf("a node's name that is no name: %v", err)
	}
}

// fakeNomad answers for clients; those of the filter pass.
type fakeNomad struct {
	mu      sync.Mutex
	nodes   []*nomad.Node
	status  int
	filters []string
	reads   int
}

func (n *fakeNomad) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status != 0 {
		w.WriteHeader(n.status)
		_, _ = w.Write([]byte("Permission denied"))
		return
	}
	id, one := strings.CutPrefix(r.URL.Path, "/v1/node/")
	if !one {
		n.filters = append(n.filters, r.URL.Query().Get("filter"))
	}
	stubs := []*nomad.NodeListStub{}
	for _, node := range n.nodes {
		if one && node.ID == id {
			n.reads++
			_ = json.NewEncoder(w).Encode(node)
			return
		}
		stubs = append(stubs, &nomad.NodeListStub{ID: node.ID, Name: node.Name, NodeClass: node.NodeClass, NodePool: node.NodePool,
			Datacenter: node.Datacenter, Status: node.Status, CreateIndex: node.CreateIndex})
	}
	if one {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("node not found"))
		return
	}
	_ = json.NewEncoder(w).Encode(stubs)
}

func (n *fakeNomad) fleet(t *testing.T, src orchestrator.NomadSource, meta bool) *Fleet {
	t.Helper()
	srv := httptest.NewServer(n)
	t.Cleanup(srv.Close)
	return &Fleet{Sources: []orchestrator.Source{{Nomad: &src}}, Meta: meta, Nomad: func() (*nomadapi.Client, error) {
		return nomadapi.New(nomadapi.Config{Address: srv.URL})
	}}
}

func client(id, name, status string, index uint64) *nomad.Node {
	return &nomad.Node{ID: id, Name: name, Status: status, CreateIndex: index, Datacenter: "dc1", NodePool: "default", Meta: map[string]string{"rack": "r-" + id}}
}

func TestNomad(t *testing.T) {
	t.Parallel()
	n := &fakeNomad{nodes: []*nomad.Node{client("4", "d", "ready", 9), client("1", "a", "ready", 1), client("2", "b", "down", 2), client("3", "c", "initializing", 3)}}
	f := n.fleet(t, orchestrator.NomadSource{NodePool: "default", Datacenter: "dc1", Meta: map[string]string{"a \"b": "c"}, Filter: `Status != "x" or Drain`}, false)
	s, err := f.Survey(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.Nodes); !strings.HasPrefix(got, `[{a map[a "b:c datacenter:dc1 node_pool:default]} {b `) || len(s.Nodes) != 4 || len(s.Warnings) > 0 {
		t.Errorf("nodes %s, warnings %v", got, s.Warnings)
	}
	if want := `NodePool == "default" and Datacenter == "dc1" and Meta["a \"b"] == "c" and (Status != "x" or Drain)`; n.filters[0] != want || n.reads != 0 {
		t.Errorf("filter %s, want %s; %d reads", n.filters[0], want, n.reads)
	}
	f.Meta = true
	if s, err = f.Survey(t.Context(), nil); err != nil || s.Nodes[1].Meta["rack"] != "r-2" || n.reads != 4 {
		t.Errorf("with metadata: %+v, %v, %d reads", s, err, n.reads)
	}
}

// A client that came back anew is the one that counts, and two that are up are
// told.
func TestNomadTwins(t *testing.T) {
	t.Parallel()
	n := &fakeNomad{nodes: []*nomad.Node{
		client("old", "a", "down", 1), client("new", "a", "ready", 7),
		client("one", "b", "ready", 2), client("two", "b", "ready", 3), client("gone", "b", "down", 4),
		client("x", "c", "down", 5), client("y", "c", "down", 6),
	}}
	s, err := n.fleet(t, orchestrator.NomadSource{}, true).Survey(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	racks := ""
	for _, node := range s.Nodes {
		racks += node.Name + ":" + node.Meta["rack"] + " "
	}
	if racks != "a:r-new b:r-one c:r-x " {
		t.Errorf("nodes %s", racks)
	}
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "called b (one, two)") {
		t.Errorf("warnings %q", s.Warnings)
	}
}

func TestNomadErrors(t *testing.T) {
	t.Parallel()
	ask := func(n *fakeNomad, src orchestrator.NomadSource) error {
		_, err := n.fleet(t, src, false).Survey(t.Context(), nil)
		if err == nil {
			return errors.New("none")
		}
		return err
	}
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"denied":                   {ask(&fakeNomad{status: 403}, orchestrator.NomadSource{}), "HTTP 403"},
		"empty":                    {ask(&fakeNomad{}, orchestrator.NomadSource{NodeClass: "x"}), "it is empty: Nomad clients of node_class \"x\" names no node. To mend it: mend what the block nomad asks for; `nomad node status"},
		"one that does not filter": {ask(&fakeNomad{nodes: []*nomad.Node{client("1", "a", "ready", 1)}}, orchestrator.NomadSource{NodeClass: "x"}), "too old"},
		"a name that is none":      {ask(&fakeNomad{nodes: []*nomad.Node{client("1", "a/b", "ready", 1)}}, orchestrator.NomadSource{}), "a/b"},
		"no client for Nomad": {func() error {
			_, err := (&Fleet{Sources: []orchestrator.Source{{Nomad: &orchestrator.NomadSource{}}}, Nomad: func() (*nomadapi.Client, error) {
				return nil, errors.New("no address")
			}}).Survey(t.Context(), nil)
			return err
		}(), "no address"},
	} {
		if !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: got %v", name, tc.err)
		}
	}
}

// A warning is given once, however often the fleet is asked for.
func TestWarnings(t *testing.T) {
	t.Parallel()
	n := &fakeNomad{nodes: []*nomad.Node{client("one", "b", "ready", 2), client("two", "b", "ready", 3)}}
	f := n.fleet(t, orchestrator.NomadSource{}, false)
	var told []string
	f.Warn = func(s string) { told = append(told, s) }
	for range 3 {
		if _, err := f.Nodes(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(told) != 1 {
		t.Errorf("told %q", told)
	}
}

// What a real Nomad answered.
func TestRecordedClients(t *testing.T) {
	t.Parallel()
	survey := func(recording string, src orchestrator.NomadSource) (*Survey, error) {
		c := nomadtest.Replay(t, recording)
		f := &Fleet{Meta: true, Sources: []orchestrator.Source{{Nomad: &src}}, Nomad: func() (*nomadapi.Client, error) { return c, nil }}
		return f.Survey(t.Context(), nil)
	}
	src := orchestrator.NomadSource{
		Region: "global", NodePool: "default", NodeClass: "small", Datacenter: "dc1", Meta: map[string]string{"rack": "r1"}, Filter: `SchedulingEligibility == "eligible"`,
	}
	s, err := survey("fleet", src)
	if err != nil || len(s.Nodes) != 1 || s.Nodes[0].Name != "client" || s.Nodes[0].Meta["rack"] != "r1" || s.Nodes[0].Meta["node_class"] != "small" {
		t.Errorf("clients %+v, %v", s, err)
	}
	src.Meta = map[string]string{"rack": "r2"}
	if s, err := survey("fleet-empty", src); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("of another rack: %+v, %v", s, err)
	}
	src.Filter = `Nope == "x"`
	if s, err := survey("fleet-bad-filter", src); err == nil || !strings.Contains(err.Error(), "Nope") {
		t.Errorf("by no field: %+v, %v", s, err)
	}
	if s, err := survey("fleet-down", orchestrator.NomadSource{}); err != nil || len(s.Nodes) != 1 {
		t.Errorf("of a client that is down: %+v, %v", s, err)
	}
	// Of the other of two regions, of the one that is asked, and when the other is gone.
	meta := map[string]string{"rack": "r1"}
	if s, err := survey("region-fleet", orchestrator.NomadSource{Region: "west", Meta: meta}); err != nil || len(s.Nodes) != 1 || s.Nodes[0].Meta["rack"] != "r1" {
		t.Errorf("of another region: %+v, %v", s, err)
	}
	if s, err := survey("region-fleet-here", orchestrator.NomadSource{Meta: meta}); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("of a region without clients: %+v, %v", s, err)
	}
	if s, err := survey("region-fleet-down", orchestrator.NomadSource{Region: "west", Meta: meta}); err == nil || !strings.Contains(err.Error(), "whether its servers can be reached") {
		t.Errorf("of a region that is gone: %+v, %v", s, err)
	}
}

package devconsul

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// catalogCheckJSON is a check as the catalog takes it.
type catalogCheckJSON struct {
	Node        string
	CheckID     string
	ID          string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	PeerName    string
	Namespace   string
	Partition   string
	Definition  json.RawMessage
	CreateIndex uint64
	ModifyIndex uint64
}

func (s *Server) catalogRegister(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		Datacenter      string
		ID              string
		Node            string
		Address         string
		TaggedAddresses map[string]string
		NodeMeta        map[string]string
		Service         *serviceJSON
		Check           *catalogCheckJSON
		Checks          []catalogCheckJSON
		SkipNodeUpdate  bool
		Namespace       string
		Partition       string
		PeerName        string
	}
	if err := decode(r.Body, &req); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	switch {
	case req.Datacenter != "" && req.Datacenter != s.cfg.Datacenter:
		return nil, errors.New("No path to datacenter")
	case req.PeerName != "":
		return nil, errors.New("cannot register requests with PeerName in them")
	case req.Node == "":
		return nil, errors.New("Must provide node")
	case req.Address == "" && !req.SkipNodeUpdate:
		return nil, errors.New("Must provide address if SkipNodeUpdate is not set")
	}
	reg := state.Registration{SkipNodeUpdate: req.SkipNodeUpdate, Node: &state.Node{
		ID: req.ID, Node: req.Node, Address: req.Address, Datacenter: s.cfg.Datacenter,
		TaggedAddresses: req.TaggedAddresses, Meta: req.NodeMeta,
	}}
	if req.Service != nil {
		if req.Service.Service == "" && req.Service.ID != "" {
			return nil, errors.New("Must provide service name (Service.Service) when service ID is provided")
		}
		var err error
		if reg.Service, err = req.Service.service(); err != nil {
			return nil, err
		}
		if reg.Service.Meta == nil {
			reg.Service.Meta = map[string]string{}
		}
	}
	if req.Check != nil {
		req.Checks = append(req.Checks, *req.Check)
	}
	for _, c := range req.Checks {
		check := &state.Check{
			Node: c.Node, CheckID: c.CheckID, Name: c.Name, Status: c.Status, Notes: c.Notes, Output: c.Output,
			ServiceID: c.ServiceID, ServiceName: c.ServiceName, ServiceTags: c.ServiceTags, Type: c.Type,
			Interval: c.Interval, Timeout: c.Timeout, ExposedPort: c.ExposedPort, Definition: c.Definition,
		}
		if check.Node == "" {
			check.Node = req.Node
		}
		if check.CheckID == "" {
			check.CheckID = c.Name
		}
		if !present(check.Definition) {
			check.Definition = nil
		}
		reg.Checks = append(reg.Checks, check)
	}
	if err := s.store.Register(reg); err != nil {
		return nil, err
	}
	return true, nil
}

func (s *Server) catalogDeregister(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req struct {
		Datacenter, Node, Address, ServiceID, CheckID, Namespace, Partition, PeerName string
	}
	if err := decode(r.Body, &req); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	switch {
	case req.Datacenter != "" && req.Datacenter != s.cfg.Datacenter:
		return nil, errors.New("No path to datacenter")
	case req.Node == "":
		return nil, errors.New("Must provide node")
	}
	if err := s.store.Deregister(req.Node, req.ServiceID, req.CheckID); err != nil {
		return nil, err
	}
	return true, nil
}

func (s *Server) catalogDatacenters(http.ResponseWriter, *http.Request) (any, error) {
	return []string{s.cfg.Datacenter}, nil
}

// metaFilter is what ?node-meta=key:value asks for, in several if given often.
func metaFilter(r *http.Request) map[string]string {
	var filter map[string]string
	for _, pair := range r.URL.Query()["node-meta"] {
		if filter == nil {
			filter = map[string]string{}
		}
		key, value, _ := strings.Cut(pair, ":")
		filter[key] = value
	}
	return filter
}

func satisfies(meta, filter map[string]string) bool {
	for key, value := range filter {
		if got, ok := meta[key]; !ok || got != value {
			return false
		}
	}
	return true
}

// hasTags tells whether a service has all tags, whatever their case.
func hasTags(svc *state.Service, tags []string) bool {
	for _, tag := range tags {
		if !slices.ContainsFunc(svc.Tags, func(t string) bool { return strings.EqualFold(t, tag) }) {
			return false
		}
	}
	return true
}

func (s *Server) catalogNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	filter := metaFilter(r)
	expr, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	var out []*state.Node
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, nodes, err := s.store.Nodes(ws)
		if err != nil {
			return 0, err
		}
		out, err = filtered(expr, slices.DeleteFunc(nodes, func(n *state.Node) bool { return !satisfies(n.Meta, filter) }))
		return idx, err
	})
	return orEmpty(out), err
}

func (s *Server) catalogServices(w http.ResponseWriter, r *http.Request) (any, error) {
	filter := metaFilter(r)
	var out map[string][]string
	err := s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, services, err := s.store.Services(ws)
		if err != nil {
			return 0, err
		}
		meta := map[string]map[string]string{}
		if filter != nil {
			if meta, err = s.store.NodeMeta(); err != nil {
				return 0, err
			}
		}
		out = map[string][]string{}
		for _, svc := range services {
			if !satisfies(meta[svc.Node], filter) {
				continue
			}
			tags := append(out[svc.Service], svc.Tags...)
			slices.Sort(tags)
			out[svc.Service] = orEmpty(slices.Compact(tags))
		}
		return idx, nil
	})
	return out, err
}

// proxyJSON is how Consul shows a service without Connect.
type proxyJSON struct {
	Mode                string
	MeshGateway, Expose struct{}
}

type serviceNodeJSON struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]state.ServiceAddress `json:",omitempty"`
	ServiceWeights           state.Weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             proxyJSON
	ServiceConnect           struct{}
	CreateIndex              uint64
	ModifyIndex              uint64
}

func (s *Server) catalogService(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := tail(r, "/v1/catalog/service/", "Missing service name")
	if err != nil {
		return nil, err
	}
	filter, tags := metaFilter(r), r.URL.Query()["tag"]
	expr, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	var found []state.Instance
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, all, err := s.store.ServiceNodes(ws, name)
		found = slices.DeleteFunc(all, func(i state.Instance) bool {
			return !satisfies(i.Node.Meta, filter) || !hasTags(i.Service, tags)
		})
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	out := make([]serviceNodeJSON, len(found))
	for i, f := range found {
		n, svc := f.Node, f.Service
		out[i] = serviceNodeJSON{
			ID: n.ID, Node: n.Node, Address: n.Address, Datacenter: n.Datacenter, TaggedAddresses: n.TaggedAddresses,
			NodeMeta: n.Meta, ServiceID: svc.ID, ServiceName: svc.Service, ServiceTags: orEmpty(svc.Tags),
			ServiceAddress: svc.Address, ServiceTaggedAddresses: svc.TaggedAddresses, ServiceWeights: svc.Weights,
			ServiceMeta: svc.Meta, ServicePort: svc.Port, ServiceSocketPath: svc.SocketPath,
			ServiceEnableTagOverride: svc.EnableTagOverride, CreateIndex: svc.CreateIndex, ModifyIndex: svc.ModifyIndex,
		}
	}
	out, err = filtered(expr, out)
	return orEmpty(out), err
}

// nodeServiceJSON is how the catalog shows a service of a given node.
type nodeServiceJSON struct {
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]state.ServiceAddress `json:",omitempty"`
	Meta              map[string]string
	Port              int    `json:",omitempty"`
	SocketPath        string `json:",omitempty"`
	Weights           state.Weights
	EnableTagOverride bool
	Proxy             proxyJSON
	Connect           struct{}
	PeerName          string
	CreateIndex       uint64
	ModifyIndex       uint64
}

func showService(svc *state.Service) nodeServiceJSON {
	return nodeServiceJSON{
		ID: svc.ID, Service: svc.Service, Tags: orEmpty(svc.Tags), Address: svc.Address, TaggedAddresses: svc.TaggedAddresses,
		Meta: svc.Meta, Port: svc.Port, SocketPath: svc.SocketPath, Weights: svc.Weights,
		EnableTagOverride: svc.EnableTagOverride, CreateIndex: svc.CreateIndex, ModifyIndex: svc.ModifyIndex,
	}
}

type nodeServicesJSON struct {
	Node     *state.Node
	Services map[string]nodeServiceJSON
}

func (s *Server) catalogNode(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := tail(r, "/v1/catalog/node/", "Missing node name")
	if err != nil {
		return nil, err
	}
	expr, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	var out *nodeServicesJSON
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, node, services, err := s.store.NodeServices(ws, name)
		out = nil
		if err != nil || node == nil {
			return idx, err
		}
		out = &nodeServicesJSON{Node: node, Services: map[string]nodeServiceJSON{}}
		shown := make([]nodeServiceJSON, len(services))
		for i, svc := range services {
			shown[i] = showService(svc)
		}
		shown, err = filtered(expr, shown)
		for _, svc := range shown {
			out.Services[svc.ID] = svc
		}
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil // a node that does not exist is sent as null
}

// showCheck is the check as it is sent, with empty values instead of nulls.
func showCheck(c *state.Check) *state.Check {
	c = c.Clone()
	c.ServiceTags = orEmpty(c.ServiceTags)
	if c.Definition == nil {
		c.Definition = json.RawMessage("{}")
	}
	return c
}

func showChecks(checks []*state.Check) []*state.Check {
	out := make([]*state.Check, len(checks))
	for i, c := range checks {
		out[i] = showCheck(c)
	}
	return out
}

// serveChecks answers with checks, of nodes that ?node-meta= asks for.
func (s *Server) serveChecks(w http.ResponseWriter, r *http.Request, read func(memdb.WatchSet) (uint64, []*state.Check, error)) (any, error) {
	filter := metaFilter(r)
	expr, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	var out []*state.Check
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, checks, err := read(ws)
		if err == nil && filter != nil {
			var meta map[string]map[string]string
			if meta, err = s.store.NodeMeta(); err == nil {
				checks = slices.DeleteFunc(checks, func(c *state.Check) bool { return !satisfies(meta[c.Node], filter) })
			}
		}
		if err == nil {
			checks, err = filtered(expr, checks)
		}
		out = checks
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	return showChecks(out), nil
}

func (s *Server) healthNode(w http.ResponseWriter, r *http.Request) (any, error) {
	node, err := tail(r, "/v1/health/node/", "Missing node name")
	if err != nil {
		return nil, err
	}
	return s.serveChecks(w, r, func(ws memdb.WatchSet) (uint64, []*state.Check, error) { return s.store.NodeChecks(ws, node) })
}

func (s *Server) healthChecks(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := tail(r, "/v1/health/checks/", "Missing service name")
	if err != nil {
		return nil, err
	}
	return s.serveChecks(w, r, func(ws memdb.WatchSet) (uint64, []*state.Check, error) { return s.store.ServiceChecks(ws, name) })
}

func (s *Server) healthState(w http.ResponseWriter, r *http.Request) (any, error) {
	status, err := tail(r, "/v1/health/state/", "Missing check state")
	if err != nil {
		return nil, err
	}
	return s.serveChecks(w, r, func(ws memdb.WatchSet) (uint64, []*state.Check, error) { return s.store.ChecksInState(ws, status) })
}

type instanceJSON struct {
	Node    *state.Node
	Service nodeServiceJSON
	Checks  []*state.Check
}

func (s *Server) healthService(w http.ResponseWriter, r *http.Request) (any, error) {
	name, err := tail(r, "/v1/health/service/", "Missing service name")
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	passing := q.Has(state.Passing)
	if v := q.Get(state.Passing); v != "" {
		if passing, err = strconv.ParseBool(v); err != nil {
			return nil, badRequest("Invalid value for ?passing")
		}
	}
	filter, tags := metaFilter(r), q["tag"]
	expr, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	var found []state.Instance
	err = s.serve(w, r, func(ws memdb.WatchSet) (uint64, error) {
		idx, all, err := s.store.ServiceInstances(ws, name)
		found = slices.DeleteFunc(all, func(i state.Instance) bool {
			return !satisfies(i.Node.Meta, filter) || !hasTags(i.Service, tags) ||
				passing && slices.ContainsFunc(i.Checks, func(c *state.Check) bool { return c.Status != state.Passing })
		})
		return idx, err
	})
	if err != nil {
		return nil, err
	}
	out := make([]instanceJSON, len(found))
	for i, f := range found {
		out[i] = instanceJSON{Node: f.Node, Service: showService(f.Service), Checks: showChecks(f.Checks)}
	}
	out, err = filtered(expr, out)
	return orEmpty(out), err
}

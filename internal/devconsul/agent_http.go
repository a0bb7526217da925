package devconsul

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul/state"
)

// duration is a JSON duration: text, or a number of nanoseconds.
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
	case string:
		p, err := time.ParseDuration(v)
		if err != nil {
			return err
		}
		*d = duration(p)
	case float64:
		*d = duration(v)
	default:
		return fmt.Errorf("duration is a %T", v)
	}
	return nil
}

// checkJSON is a check as it comes, alone or with a service. Of its kinds only
// TTL is run; the fields of the others are known so that they can be refused.
type checkJSON struct {
	ID        string
	CheckID   string
	Name      string
	Notes     string
	ServiceID string
	Token     string
	Status    string
	Namespace string
	Partition string

	TTL                            duration
	DeregisterCriticalServiceAfter duration
	DeregisterSnake                duration `json:"deregister_critical_service_after"`
	ServiceIDSnake                 string   `json:"service_id"`

	Interval, Timeout                           duration
	Args, ScriptArgs                            []string
	HTTP, TCP, UDP, GRPC, H2PING, OSService     string
	Method, Body, Shell, TLSServerName          string
	DockerContainerID, AliasNode, AliasService  string
	Header                                      map[string][]string
	TLSSkipVerify, GRPCUseTLS, H2PingUseTLS     bool
	DisableRedirects, TCPUseTLS                 bool
	SuccessBeforePassing, FailuresBeforeWarning int
	FailuresBeforeCritical, OutputMaxSize       int
	ProxyHTTP, ProxyGRPC                        string
}

func (c checkJSON) empty() bool {
	return c.CheckID == "" && c.Name == "" && c.Notes == "" && c.Status == "" && c.TTL == 0 && c.Interval == 0 && c.kind() == ""
}

// kind names what other kind of check it is, "" if none.
func (c checkJSON) kind() string {
	for _, k := range []struct {
		set  bool
		name string
	}{
		{len(c.Args)+len(c.ScriptArgs) > 0, "script"}, {c.HTTP != "", "HTTP"}, {c.TCP != "", "TCP"}, {c.UDP != "", "UDP"},
		{c.GRPC != "", "gRPC"}, {c.H2PING != "", "H2PING"}, {c.OSService != "", "OS service"},
		{c.DockerContainerID != "", "Docker"}, {c.AliasNode+c.AliasService != "", "alias"},
	} {
		if k.set {
			return k.name
		}
	}
	return ""
}

func (c checkJSON) spec() (checkSpec, error) {
	kind := c.kind()
	switch {
	case c.Interval > 0 && c.TTL > 0:
		return checkSpec{}, badRequest("Invalid check: Interval and TTL cannot both be specified")
	case kind != "":
		return checkSpec{}, badRequest("Invalid check: the embedded Consul runs TTL checks only, not a check of kind %s: use a TTL, or a real Consul", kind)
	case c.TTL <= 0:
		return checkSpec{}, badRequest("Invalid check: TTL must be > 0 for TTL checks")
	}
	return checkSpec{
		id: c.CheckID, name: c.Name, notes: c.Notes, status: c.Status,
		ttl: time.Duration(c.TTL), deregisterAfter: time.Duration(max(c.DeregisterCriticalServiceAfter, c.DeregisterSnake)),
	}, nil
}

func validStatus(status string) bool {
	switch status {
	case "", state.Passing, state.Warning, state.Critical:
		return true
	}
	return false
}

// serviceJSON is a service as it comes, to the agent (Name) or the catalog (Service).
type serviceJSON struct {
	Kind                 string
	ID                   string
	Name                 string
	Service              string
	Tags                 []string
	Address              string
	TaggedAddresses      map[string]state.ServiceAddress
	TaggedAddressesSnake map[string]state.ServiceAddress `json:"tagged_addresses"`
	Meta                 map[string]string
	Port                 int
	SocketPath           string
	Check                *checkJSON
	Checks               []checkJSON
	Weights              *state.Weights
	Token                string
	EnableTagOverride    bool
	EnableTagSnake       bool `json:"enable_tag_override"`
	Namespace            string
	Partition            string
	PeerName             string
	Datacenter           string
	CreateIndex          uint64
	ModifyIndex          uint64
	Proxy                json.RawMessage
	Connect              json.RawMessage
}

func (j serviceJSON) service() (*state.Service, error) {
	if j.Kind != "" || present(j.Proxy) || present(j.Connect) {
		return nil, badRequest("the embedded Consul has no Connect: service %q must have no Kind, Proxy or Connect", j.Name+j.Service)
	}
	svc := &state.Service{
		ID: j.ID, Service: j.Name + j.Service, Tags: j.Tags, Address: j.Address, TaggedAddresses: j.TaggedAddresses,
		Meta: j.Meta, Port: j.Port, SocketPath: j.SocketPath, EnableTagOverride: j.EnableTagOverride || j.EnableTagSnake,
		Weights: state.Weights{Passing: 1, Warning: 1},
	}
	if svc.ID == "" {
		svc.ID = svc.Service
	}
	if len(svc.TaggedAddresses) == 0 {
		svc.TaggedAddresses = j.TaggedAddressesSnake
	}
	if j.Weights != nil && validWeights(*j.Weights) {
		svc.Weights = *j.Weights
	}
	if ip := net.ParseIP(j.Address); ip != nil {
		if ip.IsUnspecified() {
			return nil, badRequest("Invalid service address")
		}
		version := "ipv6"
		if ip.To4() != nil {
			version = "ipv4"
		}
		tagged := map[string]state.ServiceAddress{}
		for _, net := range []string{"lan_", "wan_"} {
			tagged[net+version] = state.ServiceAddress{Address: j.Address, Port: j.Port}
		}
		for k, v := range svc.TaggedAddresses {
			tagged[k] = v
		}
		svc.TaggedAddresses = tagged
	}
	return svc, nil
}

func validWeights(w state.Weights) bool {
	return w.Passing >= 1 && w.Passing <= math.MaxUint16 && w.Warning >= 0 && w.Warning <= math.MaxUint16
}

// present tells whether a block that is not served says anything.
func present(raw json.RawMessage) bool {
	s := strings.TrimSpace(string(raw))
	return s != "" && s != "null" && s != "{}"
}

func (s *Server) agentServiceRegister(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req serviceJSON
	if err := decode(r.Body, &req); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	if req.Service != "" {
		return nil, badRequest("Request decode failed: json: unknown field \"Service\"")
	}
	if req.Name == "" {
		return nil, badRequest("Missing service name")
	}
	// The catalog puts its default in the place of odd weights; the agent refuses them.
	if req.Weights != nil && !validWeights(*req.Weights) {
		return nil, badRequest("Invalid Weights: Passing must be greater than 0, and neither may be below 0 or above 65535")
	}
	svc, err := req.service()
	if err != nil {
		return nil, err
	}
	defs := req.Checks
	if req.Check != nil && !req.Check.empty() {
		defs = append(defs, *req.Check)
	}
	var specs []checkSpec
	for _, def := range defs {
		spec, err := def.spec()
		if err != nil {
			return nil, err
		}
		if !validStatus(def.Status) {
			return nil, badRequest("Status for checks must 'passing', 'warning', 'critical'")
		}
		specs = append(specs, spec)
	}
	q := r.URL.Query()
	replace := q.Has("replace-existing-checks") && (q.Get("replace-existing-checks") == "" || q.Get("replace-existing-checks") == "true")
	return nil, s.agent.registerService(svc, specs, replace)
}

func (s *Server) agentServiceDeregister(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, s.agent.deregisterService(strings.TrimPrefix(r.URL.Path, "/v1/agent/service/deregister/"))
}

func (s *Server) agentCheckRegister(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req checkJSON
	if err := decode(r.Body, &req); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	if req.Name == "" {
		return nil, badRequest("Missing check name")
	}
	if !validStatus(req.Status) {
		return nil, badRequest("Bad check status")
	}
	if req.CheckID = req.ID; req.CheckID == "" {
		req.CheckID = req.Name
	}
	spec, err := req.spec()
	if err != nil {
		return nil, err
	}
	serviceID := req.ServiceID
	if serviceID == "" {
		serviceID = req.ServiceIDSnake
	}
	return nil, s.agent.registerCheck(spec, serviceID)
}

func (s *Server) agentCheckDeregister(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, s.agent.deregisterCheck(strings.TrimPrefix(r.URL.Path, "/v1/agent/check/deregister/"))
}

func (s *Server) reportCheck(r *http.Request, prefix, status string) (any, error) {
	return nil, s.agent.report(strings.TrimPrefix(r.URL.Path, prefix), status, r.URL.Query().Get("note"))
}

func (s *Server) agentCheckPass(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.reportCheck(r, "/v1/agent/check/pass/", state.Passing)
}

func (s *Server) agentCheckWarn(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.reportCheck(r, "/v1/agent/check/warn/", state.Warning)
}

func (s *Server) agentCheckFail(_ http.ResponseWriter, r *http.Request) (any, error) {
	return s.reportCheck(r, "/v1/agent/check/fail/", state.Critical)
}

func (s *Server) agentCheckUpdate(_ http.ResponseWriter, r *http.Request) (any, error) {
	var req struct{ Status, Output string }
	if err := decode(r.Body, &req); err != nil {
		return nil, badRequest("Request decode failed: %v", err)
	}
	if req.Status == "" || !validStatus(req.Status) {
		return nil, badRequest("Invalid check status: '%s'", req.Status)
	}
	return nil, s.agent.report(strings.TrimPrefix(r.URL.Path, "/v1/agent/check/update/"), req.Status, req.Output)
}

// agentServiceJSON is how the agent shows a service of its own.
type agentServiceJSON struct {
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	SocketPath        string                          `json:",omitempty"`
	TaggedAddresses   map[string]state.ServiceAddress `json:",omitempty"`
	Weights           state.Weights
	EnableTagOverride bool
	ContentHash       string `json:",omitempty"`
	Datacenter        string
}

func (s *Server) showAgentService(svc *state.Service) agentServiceJSON {
	out := agentServiceJSON{
		ID: svc.ID, Service: svc.Service, Tags: orEmpty(svc.Tags), Meta: svc.Meta, Port: svc.Port, Address: svc.Address,
		SocketPath: svc.SocketPath, TaggedAddresses: svc.TaggedAddresses, Weights: svc.Weights,
		EnableTagOverride: svc.EnableTagOverride, Datacenter: s.cfg.Datacenter,
	}
	if out.Meta == nil {
		out.Meta = map[string]string{}
	}
	return out
}

func (s *Server) agentServices(http.ResponseWriter, *http.Request) (any, error) {
	out := map[string]agentServiceJSON{}
	for id, svc := range s.agent.listServices() {
		out[id] = s.showAgentService(svc)
	}
	return out, nil
}

func (s *Server) agentService(w http.ResponseWriter, r *http.Request) (any, error) {
	id := strings.TrimPrefix(r.URL.Path, "/v1/agent/service/")
	svc := s.agent.listServices()[id]
	if svc == nil {
		return nil, httpError{http.StatusNotFound, fmt.Sprintf("unknown service ID: %s", id)}
	}
	if r.URL.Query().Get("hash") != "" {
		return nil, badRequest("the embedded Consul does not block on the hash of a service: leave hash out")
	}
	out := s.showAgentService(svc)
	buf, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	h := fnv.New64a()
	h.Write(buf)
	out.ContentHash = strconv.FormatUint(h.Sum64(), 16)
	w.Header().Set("X-Consul-ContentHash", out.ContentHash)
	return out, nil
}

func (s *Server) agentChecks(http.ResponseWriter, *http.Request) (any, error) {
	out := map[string]*state.Check{}
	for id, c := range s.agent.listChecks() {
		out[id] = showCheck(c)
	}
	return out, nil
}

type memberJSON struct {
	Name                                  string
	Addr                                  string
	Port                                  uint16
	Tags                                  map[string]string
	Status                                int
	ProtocolMin, ProtocolMax, ProtocolCur int
	DelegateMin, DelegateMax, DelegateCur int
}

func (s *Server) member() memberJSON {
	n := s.agent.node
	return memberJSON{
		Name: n.Node, Addr: n.Address, Port: 8301, Status: 1,
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2, DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
		Tags: map[string]string{
			"role": "consul", "dc": s.cfg.Datacenter, "id": n.ID, "build": Version + ":", "port": "8300", "segment": "",
			"acls": "0", "vsn": "2", "vsn_min": "2", "vsn_max": "3", "raft_vsn": "3",
		},
	}
}

func (s *Server) agentMembers(_ http.ResponseWriter, r *http.Request) (any, error) {
	return []memberJSON{s.member()}, nil
}

func (s *Server) agentSelf(http.ResponseWriter, *http.Request) (any, error) {
	index := strconv.FormatUint(s.store.Index(), 10)
	return map[string]any{
		"Config": map[string]any{
			"Datacenter": s.cfg.Datacenter, "PrimaryDatacenter": s.cfg.Datacenter, "NodeName": s.cfg.NodeName,
			"NodeID": s.agent.node.ID, "Revision": "devconsul", "Server": true, "Version": Version,
		},
		"DebugConfig": map[string]any{
			"DevMode": true, "NodeName": s.cfg.NodeName, "Datacenter": s.cfg.Datacenter,
			"SessionTTLMin": s.cfg.SessionTTLMin.String(), "CheckUpdateInterval": s.cfg.CheckUpdateInterval.String(),
			"KVMaxValueSize": maxValueSize, "TxnMaxReqLen": maxValueSize,
		},
		"Member": s.member(),
		"Meta":   s.agent.node.Meta,
		"Stats": map[string]map[string]string{
			"agent": {
				"services": strconv.Itoa(len(s.agent.listServices())), "checks": strconv.Itoa(len(s.agent.listChecks())),
			},
			"build":  {"version": Version, "revision": "devconsul", "prerelease": "", "version_metadata": ""},
			"consul": {"acl": "disabled", "server": "true", "leader": "true", "leader_addr": s.leaderAddr(), "known_datacenters": "1"},
			"raft":   {"state": "Leader", "applied_index": index, "commit_index": index, "last_log_index": index, "num_peers": "0"},
			"runtime": {
				"arch": runtime.GOARCH, "os": runtime.GOOS, "version": runtime.Version(),
				"goroutines": strconv.Itoa(runtime.NumGoroutine()),
			},
		},
	}, nil
}

func (s *Server) leaderAddr() string { return s.agent.node.Address + ":8300" }

func (s *Server) statusLeader(http.ResponseWriter, *http.Request) (any, error) {
	return s.leaderAddr(), nil
}

func (s *Server) statusPeers(http.ResponseWriter, *http.Request) (any, error) {
	return []string{s.leaderAddr()}, nil
}

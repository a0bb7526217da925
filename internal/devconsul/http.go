package devconsul

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode"
)

// httpError is an answer with a status and a line of text. Any other error of a
// handler is a 500 with its text, as in Consul.
type httpError struct {
	code int
	text string
}

func (e httpError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return httpError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// endpoint answers a request: a value is sent as JSON, nil means that the
// endpoint wrote the answer itself, or that it is empty.
type endpoint func(w http.ResponseWriter, r *http.Request) (any, error)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", notFound)
	handle := func(pattern string, fn endpoint, methods ...string) {
		mux.Handle(pattern, s.wrap(fn, methods))
	}
	get := func(pattern string, fn endpoint) { handle(pattern, fn, http.MethodGet) }
	put := func(pattern string, fn endpoint) { handle(pattern, fn, http.MethodPut) }

	handle("/v1/kv/", s.kv, http.MethodGet, http.MethodPut, http.MethodDelete)
	put("/v1/txn", s.txn)

	put("/v1/session/create", s.sessionCreate)
	put("/v1/session/destroy/", s.sessionDestroy)
	put("/v1/session/renew/", s.sessionRenew)
	get("/v1/session/info/", s.sessionInfo)
	get("/v1/session/node/", s.sessionsOfNode)
	get("/v1/session/list", s.sessionList)

	get("/v1/agent/self", s.agentSelf)
	get("/v1/agent/members", s.agentMembers)
	get("/v1/agent/services", s.agentServices)
	get("/v1/agent/service/", s.agentService)
	put("/v1/agent/service/register", s.agentServiceRegister)
	put("/v1/agent/service/deregister/", s.agentServiceDeregister)
	get("/v1/agent/checks", s.agentChecks)
	put("/v1/agent/check/register", s.agentCheckRegister)
	put("/v1/agent/check/deregister/", s.agentCheckDeregister)
	put("/v1/agent/check/pass/", s.agentCheckPass)
	put("/v1/agent/check/warn/", s.agentCheckWarn)
	put("/v1/agent/check/fail/", s.agentCheckFail)
	put("/v1/agent/check/update/", s.agentCheckUpdate)

	put("/v1/catalog/register", s.catalogRegister)
	put("/v1/catalog/deregister", s.catalogDeregister)
	get("/v1/catalog/datacenters", s.catalogDatacenters)
	get("/v1/catalog/nodes", s.catalogNodes)
	get("/v1/catalog/services", s.catalogServices)
	get("/v1/catalog/service/", s.catalogService)
	get("/v1/catalog/node/", s.catalogNode)

	get("/v1/health/node/", s.healthNode)
	get("/v1/health/checks/", s.healthChecks)
	get("/v1/health/state/", s.healthState)
	get("/v1/health/service/", s.healthService)

	get("/v1/acl/", aclDisabled)

	get("/v1/status/leader", s.statusLeader)
	get("/v1/status/peers", s.statusPeers)
	return printable(mux)
}

// printable refuses paths with characters that do not print, as Consul does.
func printable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.ContainsFunc(r.URL.Path, func(c rune) bool { return !unicode.IsPrint(c) }) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		fmt.Fprintln(w, "aimlock's embedded Consul, in memory only. It has no UI; its API is under /v1/.")
		return
	}
	w.WriteHeader(http.StatusNotFound)
	if strings.Contains(r.URL.Path, "/v1/") {
		fmt.Fprintln(w, "Invalid URL path: not a recognized HTTP API endpoint")
	} else {
		fmt.Fprintln(w, "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'")
	}
}

// wrap turns an endpoint into a handler: method, common parameters, errors, JSON.
func (s *Server) wrap(fn endpoint, methods []string) http.Handler {
	allow := strings.Join(append([]string{http.MethodOptions}, methods...), ",")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Default-ACL-Policy", "allow")
		switch {
		case r.Method == http.MethodOptions:
			w.Header().Set("Allow", allow)
			return
		case !slices.Contains(methods, r.Method):
			w.Header().Set("Allow", allow)
			w.WriteHeader(http.StatusMethodNotAllowed)
			fmt.Fprintf(w, "method %s not allowed", r.Method)
			return
		}
		var obj any
		err := s.commonParams(r)
		if err == nil {
			obj, err = fn(w, r)
		}
		if err == nil && obj != nil {
			err = writeJSON(w, r, http.StatusOK, obj)
		}
		if err != nil {
			s.writeError(w, r, err)
		}
	})
}

// aclDisabled answers whatever is asked about tokens.
func aclDisabled(http.ResponseWriter, *http.Request) (any, error) {
	return nil, httpError{http.StatusUnauthorized, "ACL support disabled"}
}

// commonParams refuses what no endpoint serves.
func (s *Server) commonParams(r *http.Request) error {
	q := r.URL.Query()
	for _, ent := range []struct{ param, header, what string }{
		{"ns", "X-Consul-Namespace", "Namespaces"},
		{"partition", "X-Consul-Partition", "Partitions"},
	} {
		if r.Header.Get(ent.header) != "" {
			return badRequest("Invalid header: %q - %s are a Consul Enterprise feature", ent.header, ent.what)
		}
		if q.Get(ent.param) != "" {
			return badRequest("Invalid query parameter: %q - %s are a Consul Enterprise feature", ent.param, ent.what)
		}
	}
	if dc := q.Get("dc"); dc != "" && dc != s.cfg.Datacenter {
		return errors.New("No path to datacenter")
	}
	if q.Get("filter") != "" && !servesFilter(r.URL.Path) {
		return badRequest("the embedded Consul serves filter expressions for health checks, nodes and instances of a service or on a node only: filter the answer, or use a real Consul")
	}
	return nil
}

func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	var he httpError
	if errors.As(err, &he) {
		code = he.code
	}
	s.cfg.Log.Debug("request refused", "method", r.Method, "path", r.URL.Path, "status", code, "error", err)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	io.WriteString(w, err.Error())
}

func writeJSON(w http.ResponseWriter, r *http.Request, code int, obj any) error {
	var buf []byte
	var err error
	if _, pretty := r.URL.Query()["pretty"]; pretty {
		if buf, err = json.MarshalIndent(obj, "", "    "); err == nil {
			buf = append(buf, '\n')
		}
	} else {
		buf, err = json.Marshal(obj)
	}
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(buf)
	return nil
}

// decode reads a JSON body and refuses fields that v has not.
func decode(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// tail is what stands after the prefix in the path; missing is the refusal if
// there is nothing.
func tail(r *http.Request, prefix, missing string) (string, error) {
	t := strings.TrimPrefix(r.URL.Path, prefix)
	if t == "" {
		return "", badRequest("%s", missing)
	}
	return t, nil
}

// orEmpty makes a list that is sent as [] and not as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

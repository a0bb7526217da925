package conformance

import (
	"strconv"
	"strings"
)

var httpTests = []test{
	{"headers of a read", func(e *env) {
		p := e.put(e.key("a"), "1")
		a := e.raw("GET", "/v1/kv/"+p.Key, "")
		same(e, "index", a.header.Get("X-Consul-Index"), strconv.FormatUint(p.ModifyIndex, 10))
		same(e, "known leader", a.header.Get("X-Consul-KnownLeader"), "true")
		same(e, "last contact", a.header.Get("X-Consul-LastContact"), "0")
		same(e, "type", a.header.Get("Content-Type"), "application/json")
		none := e.raw("GET", "/v1/kv/"+e.key("none"), "")
		if idx, err := strconv.ParseUint(none.header.Get("X-Consul-Index"), 10, 64); err != nil || idx == 0 {
			e.Errorf("index of a missing key: %q, want one that is not 0", none.header.Get("X-Consul-Index"))
		}
	}},
	{"what is refused", func(e *env) {
		k := "/v1/kv/" + e.key("a")
		for _, r := range []struct {
			method, path, body string
			code               int
			says               string
		}{
			{"GET", "/v1/no/such/endpoint", "", 404, "not a recognized HTTP API endpoint"},
			{"GET", "/elsewhere", "", 404, "ensure the path starts with '/v1/'"},
			{"POST", k, "", 405, "method POST not allowed"},
			{"GET", "/v1/txn", "", 405, ""},
			{"GET", "/v1/session/create", "", 405, ""},
			{"GET", "/v1/kv/", "", 400, "Missing key name"},
			{"PUT", "/v1/kv/", "x", 400, "Missing key name"},
			{"DELETE", "/v1/kv/", "", 400, "Missing key name"},
			{"GET", k + "?index=x", "", 400, "Invalid index"},
			{"GET", k + "?wait=x", "", 400, "Invalid wait time"},
			{"GET", k + "?stale&consistent", "", 400, "conflicting semantics"},
			{"GET", k + "?ns=other", "", 400, "Namespaces are a Consul Enterprise feature"},
			{"GET", k + "?partition=other", "", 400, "Partitions are a Consul Enterprise feature"},
			{"GET", k + "?dc=no-such-dc", "", 500, "No path to datacenter"},
			{"PUT", k + "?cas=1&acquire=2", "x", 400, "Conflicting flags"},
			{"DELETE", k + "?recurse&cas=1", "", 400, "Conflicting flags"},
			{"PUT", k + "?cas=x", "x", 500, "invalid syntax"},
			{"PUT", k + "?flags=x", "x", 500, "invalid syntax"},
			{"PUT", "/v1/session/create", "{", 400, "Request decode failed"},
			{"PUT", "/v1/session/destroy/", "", 400, "Missing session"},
			{"GET", "/v1/session/info/", "", 400, "Missing session"},
			{"GET", "/v1/health/service/x?passing=x", "", 400, "Invalid value for ?passing"},
			{"GET", "/v1/health/service/", "", 400, "Missing service name"},
			{"GET", "/v1/catalog/node/", "", 400, "Missing node name"},
		} {
			a := e.raw(r.method, r.path, r.body)
			if a.code != r.code || !strings.Contains(a.body, r.says) {
				e.Errorf("%s %s: got %d %q, want %d %q", r.method, r.path, a.code, a.body, r.code, r.says)
			}
		}
	}},
	{"a token is accepted", func(e *env) {
		same(e, "status", e.raw("PUT", "/v1/kv/"+e.key("a")+"?token=anything", "x").code, 200)
	}},
	{"options", func(e *env) {
		same(e, "allow", e.raw("OPTIONS", "/v1/session/create", "").header.Get("Allow"), "OPTIONS,PUT")
	}},
}

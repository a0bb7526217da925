package devconsul_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// FuzzRequest: no request stops the embedded Consul, makes it wait when it was not
// asked to, or is answered by more than what stands in it.
func FuzzRequest(f *testing.F) {
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/v1/txn", `[{"KV":{"Verb":"set","Key":"a","Value":"eA=="}},{"KV":{"Verb":"get-tree","Key":""}}]`}, {"PUT", "/v1/txn", `[{"KV":{"Verb":"lock","Key":"a","Session":"x"}},null]`},
		{"PUT", "/v1/txn", strings.Repeat("[", 5000)}, {"GET", "/v1/kv/?recurse", ""}, {"PUT", "/v1/kv/a?acquire=x&flags=1", "v"}, {"PUT", "/v1/kv/a?cas=18446744073709551615", ""}, {"DELETE", "/v1/kv/?recurse&cas=0", ""},
		{"PUT", "/v1/session/create", `{"TTL":"10s","Behavior":"delete","LockDelay":"-1s","NodeChecks":[]}`}, {"PUT", "/v1/session/create", `{"LockDelay":1e300}`},
		{"PUT", "/v1/agent/service/register", `{"ID":"a","Name":"a","Check":{"TTL":"10s","DeregisterCriticalServiceAfter":"1m"}}`}, {"PUT", "/v1/agent/check/update/x", `{"Status":"passing","Output":"\u0000"}`},
		{"GET", `/v1/health/service/a?filter=((((((((((((((((((((((((((((((Node+==+a))))))))))))))))))))))))))))))`, ""}, {"GET", "/v1/health/state/any?index=18446744073709551616", ""}, {"GET", "/v1/catalog/nodes?near=_agent&stale", ""},
		{"GET", "/v1/kv/a?keys&separator=/&pretty", ""}, {"GET", "/v1/%zz", ""},
	} {
		f.Add(r.method, r.path, []byte(r.body))
	}
	s, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, method, path string, body []byte) {
		if len(body) > 1<<16 || strings.Contains(path, "index=") || strings.Contains(path, "leave") {
			return // a blocking query waits as long as it says
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://consul/"+strings.TrimLeft(path, "/"), bytes.NewReader(body))
		if err != nil {
			return
		}
		start, w := time.Now(), httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("%s %q took %s", method, path, took)
		}
		if w.Code < 200 || w.Code > 599 || w.Body.Len() > 64<<20 {
			t.Fatalf("%s %q is answered %d, by %d bytes", method, path, w.Code, w.Body.Len())
		}
	})
}

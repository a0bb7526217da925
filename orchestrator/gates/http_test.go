package gates_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// environ is the environment of the orchestrator in tests.
func environ(name string) (string, bool) {
	v, ok := map[string]string{"PATH": os.Getenv("PATH"), "SECRET": "hunter2", "BROKEN": "a\nX-Other: b"}[name]
	return v, ok
}

// ask asks one gate and holds what every answer must hold.
func ask(t *testing.T, q gates.Question) gates.Answer {
	t.Helper()
	return askContext(t, t.Context(), gates.Config{LookupEnv: environ}, q)
}

func askContext(t *testing.T, ctx context.Context, cfg gates.Config, q gates.Question) gates.Answer {
	t.Helper()
	q.Gate.Name = "g"
	a := gates.New(cfg).Ask(ctx, q)
	for _, s := range []string{a.Value, a.Why} {
		if len(s) > 300 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) && r != '…' }) {
			t.Errorf("not fit to be shown: %q", s)
		}
		if strings.Contains(s, "hunter2") {
			t.Errorf("a secret is shown: %q", s)
		}
	}
	if a.Why == "" {
		t.Error("no why")
	}
	return a
}

// want holds an answer against "pass", "fail", "unknown", "pending" or "error"
// and a part of its why.
func want(t *testing.T, a gates.Answer, answer, why string) {
	t.Helper()
	got := string(a.Answer)
	if a.Error {
		if a.Answer != orchestrator.Unknown {
			t.Errorf("%s is an error", a.Answer)
		}
		got = "error"
	}
	if got != answer || !strings.Contains(a.Why, why) {
		t.Errorf("answer %s (%s) because %q, want %s because %q", got, a.Value, a.Why, answer, why)
	}
}

func httpGate(g orchestrator.GateHTTP) gates.Question {
	return gates.Question{Gate: orchestrator.Gate{Kind: orchestrator.GateKindHTTP, HTTP: &g}}
}

func TestHTTPStatus(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := 0
		fmt.Sscan(strings.Trim(r.URL.Path, "/"), &code)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
	}))
	defer s.Close()
	for _, c := range []struct {
		code   int
		want   []int
		answer string
		why    string
	}{
		{200, nil, "pass", "answered 200"},
		{204, nil, "pass", "answered 204"},
		{204, []int{200}, "fail", "answered 204, and 200 must come"},
		{500, nil, "fail", "answered 500, and 200 to 299 must come"},
		{503, []int{200, 204}, "fail", "answered 503, and 200, 204 must come"},
		{404, nil, "fail", "answered 404"},
		{503, []int{503}, "pass", "answered 503"},
		{301, []int{301}, "pass", "answered 301"},
		{401, nil, "error", "401 (Unauthorized), which says nothing of what was asked"},
		{403, []int{200}, "error", "403"},
		{403, []int{403}, "pass", "403"},
		{429, nil, "error", "429"},
		{502, nil, "error", "502"},
		{504, nil, "error", "504"},
	} {
		a := ask(t, httpGate(orchestrator.GateHTTP{URL: fmt.Sprintf("%s/%d?secret=hunter2", s.URL, c.code), Status: c.want}))
		want(t, a, c.answer, c.why)
		if a.Value != fmt.Sprintf("HTTP %d", c.code) {
			t.Errorf("%d: value %q", c.code, a.Value)
		}
	}
}

func TestHTTPBody(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, typ, body, cond string
		answer, why           string
	}{
		{"true", "application/json", `{"ready": true, "errors": 3}`, `json.ready && json.errors < 5`, "pass", "json.ready && json.errors < 5"},
		{"false", "application/json; charset=utf-8", `{"ready": true, "errors": 5}`, `json.ready && json.errors < 5`, "fail", "does not hold"},
		{"problem", "application/problem+json", `{"a": 1}`, `json.a == 1`, "pass", ""},
		{"text that is JSON", "text/plain", `{"a": 1}`, `json.a == 1`, "pass", ""},
		{"text", "text/html", "all is OK\n", `strcontains(body, "OK")`, "pass", ""},
		{"status", "text/html", "x", `status == 200`, "pass", ""},
		{"list", "application/json", `[{"s":"up"},{"s":"down"}]`, `alltrue([for x in json : x.s == "up"])`, "fail", ""},
		{"not there", "application/json", `{}`, `json.ready`, "unknown", `Unsupported attribute`},
		{"null", "application/json", `{"ready": null}`, `json.ready`, "unknown", "null"},
		{"no bool", "application/json", `{"ready": "yes"}`, `json.ready`, "unknown", "neither true nor false"},
		{"invalid JSON", "application/json", `{"ready": tru`, `json.ready`, "error", "is not JSON"},
		{"two documents", "application/json", `{"ready": true} {"ready": false}`, `json.ready`, "error", "behind the document"},
		{"empty", "application/json", ``, `json.ready`, "error", "is not JSON"},
		{"a page", "text/html", `{"ready": true}`, `json.ready`, "error", "is this a page to log in?"},
		{"unreadable type", ";;", `{"ready": true}`, `json.ready`, "error", "content type"},
		{"not UTF-8", "text/plain", "OK\xff", `strcontains(body, "OK")`, "error", "not text in UTF-8"},
		{"escapes", "application/json", `{"a": "\u001b[31mred"}`, `json.a.b`, "unknown", ""},
		{"long", "text/plain", strings.Repeat("OK", 600_000), `strcontains(body, "OK")`, "error", "more than 1048576 bytes"},
		{"deep", "application/json", strings.Repeat("[", 5000) + strings.Repeat("]", 5000), `json == 1`, "error", "nested"},
		{"deeper", "application/json", strings.Repeat("[", 500_000), `json == 1`, "error", "is not JSON"},
		{"many", "application/json", "[" + strings.Repeat("1,", 60_000) + "1]", `length(json) > 1`, "error", "more than 50000 values"},
		{"huge number", "application/json", `{"a": 1e999999999}`, `json.a > 1`, "error", "out of range"},
		{"tiny number", "application/json", `{"a": 1e-999999999}`, `json.a == 0`, "pass", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.typ)
				_, _ = w.Write([]byte(c.body))
			}))
			defer s.Close()
			want(t, ask(t, httpGate(orchestrator.GateHTTP{URL: s.URL, Body: c.cond})), c.answer, c.why)
		})
	}
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer s.Close()
	q := httpGate(orchestrator.GateHTTP{URL: s.URL + "/a?b=c", Method: "POST", Headers: map[string]string{
		"Authorization": "Bearer ${env.SECRET}", "Host": "other.example", "Accept": "text/plain",
	}})
	want(t, ask(t, q), "pass", "POST "+s.URL+"/a answered 200")
	if got.Method != http.MethodPost || got.URL.RawQuery != "b=c" || got.Host != "other.example" ||
		got.Header.Get("Authorization") != "Bearer hunter2" || got.Header.Get("User-Agent") != "aimlock" {
		t.Errorf("asked %s %s at %s with %v", got.Method, got.URL, got.Host, got.Header)
	}
	got = nil
	q.Gate.HTTP.Headers = map[string]string{"Authorization": "Bearer ${env.ABSENT}"}
	want(t, ask(t, q), "error", `header "Authorization" needs the environment variable ABSENT`)
	q.Gate.HTTP.Headers = map[string]string{"X-Name": "${env.BROKEN}"}
	want(t, ask(t, q), "error", "control character")
	if got != nil {
		t.Error("it was asked without its headers")
	}
}

func TestHTTPRedirects(t *testing.T) {
	t.Parallel()
	var leaked string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { leaked = r.Header.Get("Authorization") }))
	defer other.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/other":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "/same":
			http.Redirect(w, r, "/end", http.StatusFound)
		}
	}))
	defer s.Close()
	get := func(path string, status ...int) gates.Answer {
		return ask(t, httpGate(orchestrator.GateHTTP{URL: s.URL + path, Status: status, Headers: map[string]string{"Authorization": "${env.SECRET}"}}))
	}
	want(t, get("/same"), "pass", "")
	want(t, get("/loop"), "error", "redirects more than 5 times")
	want(t, get("/other"), "error", "another host")
	want(t, get("/other", 302), "pass", "302")
	if leaked != "" {
		t.Errorf("another host was given %q", leaked)
	}
}

func TestHTTPTrouble(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	want(t, ask(t, httpGate(orchestrator.GateHTTP{URL: gone.URL})), "error", "connection refused")

	done := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
		}
		<-done
	}))
	defer slow.Close()
	defer close(done)
	for _, path := range []string{"/", "/body"} {
		q := httpGate(orchestrator.GateHTTP{URL: slow.URL + path, Body: `body == ""`})
		q.Gate.Timeout = 200 * time.Millisecond
		want(t, ask(t, q), "error", "no answer within 200ms")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, askContext(t, ctx, gates.Config{}, httpGate(orchestrator.GateHTTP{URL: slow.URL})), "error", "canceled")

	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("half"))
	}))
	defer broken.Close()
	want(t, ask(t, httpGate(orchestrator.GateHTTP{URL: broken.URL, Body: `body != ""`})), "error", "broke off")
}

func TestHTTPTLS(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	want(t, ask(t, httpGate(orchestrator.GateHTTP{URL: s.URL})), "error", "certificate")
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	write("bad.pem", []byte("x"))
	q := httpGate(orchestrator.GateHTTP{URL: s.URL, CAFile: "ca.pem"})
	q.Dir = dir
	want(t, ask(t, q), "pass", "")
	q.Gate.HTTP.CAFile = "bad.pem"
	want(t, ask(t, q), "error", "no certificate")
	q.Gate.HTTP.CAFile = "absent.pem"
	want(t, ask(t, q), "error", "ca_file")
}

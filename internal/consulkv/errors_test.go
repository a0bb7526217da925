package consulkv_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// What a server can answer, and what is made of it: the kind, whether it is
// tried again, and whether a write that got it may stand.
func TestAnswersAreClassified(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("\x1b[31mred\x07 ", 100_000)
	for _, tc := range []struct {
		name      string
		handler   http.HandlerFunc
		do        func(*consulkv.Client) error
		kind      consulkv.Kind
		temporary bool
		ambiguous bool
		says      string
	}{
		{"a web page in place of data", answer(nil, 200, "text/html; charset=utf-8", "<html>Sign in</html>"), get, consulkv.NotConsul, false, true, "CONSUL_HTTP_ADDR"},
		{"a web page with an error", answer(nil, 502, "text/html", "<html>Bad gateway</html>"), txn, consulkv.NotConsul, false, true, "web page"},
		{"404 of something else to a read", answer(nil, 404, plain, "404 page not found"), get, consulkv.NotConsul, false, true, "404"},
		{"404 to a write", answer(nil, 404, plain, "404 page not found"), txn, consulkv.BadRequest, false, false, "404"},
		{"malformed JSON", answer(nil, 200, asJSON, `{"Results": [}`, "X-Consul-Index", "5"), txn, consulkv.NotConsul, false, true, "invalid character"},
		{"JSON of another shape", answer(nil, 200, asJSON, `{"Results": "the value"}`), txn, consulkv.NotConsul, false, true, "cannot unmarshal"},
		{"a value that is not base64", answer(nil, 200, asJSON, `[{"Key":"k","Value":"%%%"}]`, "X-Consul-Index", "5"), get, consulkv.NotConsul, false, true, "base64"},
		{"an answer that breaks off", answer(nil, 200, asJSON, `{"Results": [`), txn, consulkv.Broken, true, true, "unexpected EOF"},
		{"an empty answer", answer(nil, 200, asJSON, ""), txn, consulkv.Broken, true, true, "EOF"},
		{"500", answer(nil, 500, plain, "rpc error: making call: EOF"), txn, consulkv.ServerError, true, true, "HTTP 500"},
		{"500 without a word", answer(nil, 503, plain, ""), txn, consulkv.ServerError, true, true, "HTTP 503"},
		{"leadership lost while writing", answer(nil, 500, plain, "leadership lost while committing log"), txn, consulkv.ServerError, true, true, "leadership lost"},
		{"no leader", answer(nil, 500, plain, "No cluster leader"), txn, consulkv.NoLeader, true, true, "election"},
		{"a leader that is no member yet", answer(nil, 500, plain, "rpc error making call: Raft leader not found in server lookup mapping"), txn, consulkv.NoLeader, true, true, "election"},
		{"a leader no more", answer(nil, 500, plain, "rpc error making call: rpc error making call: node is not the leader"), txn, consulkv.NoLeader, true, true, "election"},
		{"wrong token", answer(nil, 403, plain, "Permission denied: token with AccessorID '…' lacks permission 'key:write' on \"k\""), txn, consulkv.Denied, false, false, "CONSUL_HTTP_TOKEN"},
		{"token unknown", answer(nil, 403, plain, "ACL not found"), get, consulkv.Denied, false, false, "this Consul does not know the token"},
		{"denied as an error of the server", answer(nil, 500, plain, "rpc error: Permission denied"), txn, consulkv.Denied, false, false, "CONSUL_HTTP_TOKEN"},
		{"denied within a transaction", answer(nil, 409, asJSON, `{"Errors":[{"OpIndex":0,"What":"Permission denied: token lacks permission 'key:write'"}]}`), txn, consulkv.Denied, false, false, "key:write"},
		{"too large", answer(nil, 413, plain, "Request body too large, max size: 524288 bytes."), txn, consulkv.TooLarge, false, false, "524288"},
		{"rate limited", answer(nil, 429, plain, "rate limit exceeded"), txn, consulkv.RateLimited, true, false, "rate limit"},
		{"a proxy that lost patience", answer(nil, 408, plain, "Request Time-out"), txn, consulkv.Broken, true, true, "408"},
		{"bad request", answer(nil, 400, plain, "Failed to parse body"), txn, consulkv.BadRequest, false, false, "Failed to parse"},
		{"a redirect is not followed", answer(nil, 302, plain, "", "Location", "/elsewhere"), txn, consulkv.BadRequest, false, false, "302"},
		{"a huge error with escape codes", answer(nil, 500, plain, long), txn, consulkv.ServerError, true, true, "red"},
		{"a huge 404 with escape codes", answer(nil, 404, plain, long), txn, consulkv.BadRequest, false, false, "red"},
		{"a proxy that echoes the request", answer(nil, 500, plain, "X-Consul-Token: "+secret+"\r\nbye"), txn, consulkv.ServerError, true, true, "[token]"},
		{"the connection breaks", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, txn, consulkv.Broken, true, true, "did not answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			err := tc.do(serve(t, tc.handler, once))
			e, ok := errors.AsType[*consulkv.Error](err)
			if !ok {
				t.Fatalf("got %T %v", err, err)
			}
			if e.Kind != tc.kind || consulkv.KindOf(err) != tc.kind {
				t.Errorf("kind %q, want %q: %v", e.Kind, tc.kind, err)
			}
			if e.Temporary() != tc.temporary {
				t.Errorf("temporary: %v", e.Temporary())
			}
			if got := consulkv.Ambiguous(err); got != tc.ambiguous {
				t.Errorf("ambiguous: %v", got)
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%q does not say %q", err, tc.says)
			}
			clean(t, err)
		})
	}
}

// Of the token that nobody gave, Consul says that it does not know it.
func TestNoTokenIsTold(t *testing.T) {
	t.Parallel()
	c := serve(t, answer(nil, 403, plain, "ACL not found"), func(cfg *consulkv.Config) { cfg.Token = "" })
	_, err := c.Get(t.Context(), "k")
	if err == nil || !strings.Contains(err.Error(), "no token was given: set CONSUL_HTTP_TOKEN") || strings.Contains(err.Error(), "does not know") {
		t.Errorf("%v", err)
	}
}

func TestRefusalIsNoError(t *testing.T) {
	t.Parallel()
	body := `{"Results":null,"Errors":[{"OpIndex":1,"What":"failed session check for key \"a\u001b[2J\", current session \"x\" != \"y\""},{"OpIndex":7,"What":"beyond"}]}`
	c := serve(t, answer(nil, 409, asJSON, body))
	_, err := c.Txn(t.Context(), consulkv.CheckIndex("k", 3), consulkv.CheckSession("a", "y"))
	ref, ok := errors.AsType[*consulkv.Refused](err)
	if !ok || consulkv.Ambiguous(err) {
		t.Fatalf("got %v", err)
	}
	if len(ref.Ops) != 2 || ref.Ops[0].Index != 1 || ref.Ops[0].Key != "a" || ref.Ops[0].Verb != string(api.KVCheckSession) {
		t.Fatalf("got %+v", ref.Ops)
	}
	if _, ok := ref.First("a"); !ok {
		t.Fatal("the refusal of a is not found")
	}
	if strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Fatalf("escape codes pass: %q", err)
	}
}

// A renewal that is answered with 404 by a proxy does not mean that the session
// ended; one that Consul answers so does.
func TestRenewalOfWhatIsNotConsul(t *testing.T) {
	t.Parallel()
	for body, gone := range map[string]bool{
		"404 page not found":                   false,
		"Session id 'abc' not found":           true,
		"default backend - 404":                false,
		`{"error":"no route for the session"}`: false,
	} {
		c := serve(t, answer(nil, 404, plain, body))
		entry, _, err := c.API().Session().Renew("abc", nil)
		if gone && (err != nil || entry != nil) {
			t.Errorf("%q: %v, %v; the session is gone", body, entry, err)
		}
		if !gone && consulkv.KindOf(c.Classify("renew", err)) != consulkv.NotConsul {
			t.Errorf("%q: %v, %v; it is not Consul that says so", body, entry, err)
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	c, err := consulkv.New(consulkv.Config{Address: addr, RetryFor: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	err = get(c)
	e, ok := errors.AsType[*consulkv.Error](err)
	if !ok || e.Kind != consulkv.Unreachable || consulkv.Ambiguous(err) || e.Tries < 2 {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{addr, "CONSUL_HTTP_ADDR", "tries"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestTLSMistakes(t *testing.T) {
	t.Parallel()
	secure := httptest.NewTLSServer(answer(nil, 200, asJSON, "null"))
	defer secure.Close()
	insecure := httptest.NewServer(answer(nil, 200, asJSON, "null"))
	defer insecure.Close()
	for name, addr := range map[string]string{
		"a certificate that nobody vouches for": secure.URL,
		"TLS to a server without it":            strings.Replace(insecure.URL, "http:", "https:", 1),
	} {
		c, err := consulkv.New(consulkv.Config{Address: addr})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err = get(c)
		if consulkv.KindOf(err) != consulkv.TLS || consulkv.Ambiguous(err) {
			t.Errorf("%s: %v", name, err)
		}
		if time.Since(start) > 5*time.Second {
			t.Errorf("%s: was tried again for %s", name, time.Since(start))
		}
	}
}

func TestAddressesAndTokens(t *testing.T) {
	t.Parallel()
	if _, err := consulkv.New(consulkv.Config{Address: "http//typo"}); err == nil || !strings.Contains(err.Error(), "CONSUL_HTTP_ADDR") {
		t.Errorf("a typo in the address: %v", err)
	}
	if _, err := consulkv.New(consulkv.Config{TokenFile: t.TempDir() + "/none"}); err == nil || !strings.Contains(err.Error(), "token file") {
		t.Errorf("no token file: %v", err)
	}
	// consul/api would look up a host of that name, and say it in every error.
	for _, addr := range []string{"http://user:hunter2@127.0.0.1:8500", "user:hunter2@127.0.0.1:8500", "user:hunter2@127.0.0.1:8500/below"} {
		_, err := consulkv.New(consulkv.Config{Address: addr})
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "CONSUL_HTTP_AUTH") {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if _, err := consulkv.New(consulkv.Config{Address: "unix:///run/a@b/consul.sock"}); err != nil {
		t.Errorf("a socket: %v", err)
	}
}

func TestAmbiguousOfOtherErrors(t *testing.T) {
	t.Parallel()
	if consulkv.Ambiguous(nil) {
		t.Error("nil is ambiguous")
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, errors.New("anything")} {
		if !consulkv.Ambiguous(err) {
			t.Errorf("%v: it may stand", err)
		}
	}
}

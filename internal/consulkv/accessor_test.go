package consulkv

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

func TestAccessor(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		token  string
		answer func(n int64, w http.ResponseWriter, r *http.Request)
		want   []string
		asked  int64
	}{
		"a token": {token: "secret", answer: func(_ int64, w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/acl/token/self" || r.Header.Get("X-Consul-Token") != "secret" {
				w.WriteHeader(http.StatusTeapot)
			}
			_, _ = w.Write([]byte(`{"AccessorID":"6a1253d2","SecretID":"secret"}`))
		}, want: []string{"6a1253d2", "6a1253d2"}, asked: 1},
		"no token": {answer: func(_ int64, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"AccessorID":"00000000-0000-0000-0000-000000000002"}`))
		}, want: []string{"", ""}},
		"ACLs are disabled": {token: "secret", answer: func(_ int64, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "ACL support disabled", http.StatusUnauthorized)
		}, want: []string{"", ""}, asked: 1},
		"denied": {token: "secret", answer: func(_ int64, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "ACL not found", http.StatusForbidden)
		}, want: []string{"", ""}, asked: 1},
		"not there": {token: "secret", answer: func(_ int64, w http.ResponseWriter, _ *http.Request) { http.NotFound(w, nil) }, want: []string{"", ""}, asked: 1},
		"no leader at first": {token: "secret", answer: func(n int64, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				http.Error(w, "No cluster leader", http.StatusInternalServerError)
				return
			}
			_, _ = w.Write([]byte(`{"AccessorID":"6a1253d2"}`))
		}, want: []string{"", "6a1253d2", "6a1253d2"}, asked: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tc.answer(asked.Add(1), w, r) }))
			defer srv.Close()
			c, err := New(Config{Address: srv.URL, Token: tc.token})
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range tc.want {
				if got := c.Accessor(t.Context()); got != want {
					t.Errorf("answer %d: %q, want %q", i, got, want)
				}
			}
			if asked.Load() != tc.asked {
				t.Errorf("asked %d times, want %d", asked.Load(), tc.asked)
			}
		})
	}
}

// Who does something is not kept waiting to say who.
func TestAccessorIsBounded(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}))
	defer srv.Close()
	defer close(done)
	c, err := New(Config{Address: srv.URL, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if got := c.Accessor(t.Context()); got != "" {
		t.Fatalf("accessor %q", got)
	}
	if took := time.Since(start); took > accessorTimeout+3*time.Second {
		t.Fatalf("it took %s", took)
	}
}

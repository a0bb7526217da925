package command

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// The page is served, by the whole program, until it is told to end.
func TestUI(t *testing.T) {
	t.Parallel()
	consul, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = consul.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- Run(ctx, []string{"ui", "-listen", "127.0.0.1:0", "-http-addr", consul.URL()}, IO{
			Stdin: strings.NewReader(""), Stdout: in, Stderr: io.Discard, LookupEnv: func(string) (string, bool) { return "", false },
		})
		_ = in.Close()
	}()
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url = strings.TrimSpace(url)
	client := &http.Client{Timeout: 30 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"events?view=locks", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || line != "event: summary\n" {
		t.Errorf("a stream begins with %q, %v", line, err)
	}
	// A stream that is open keeps it from nothing.
	cancel()
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(30 * time.Second):
		t.Error("it does not end")
	}
}

// A viewer acts under the viewer's token: never under the server's, not even
// without one.
func TestViewersTokens(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = r.Header.Get("X-Consul-Token")
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(srv.Close)
	env := map[string]string{"CONSUL_HTTP_ADDR": srv.URL, "CONSUL_HTTP_TOKEN": "the-servers"}
	m := newMeta(t.Context(), IO{LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }})
	for _, token := range []string{"", "a-viewers"} {
		c, err := m.consulWith(nil, &token)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), "x"); err == nil {
			t.Error("a refusal is no error")
		}
		mu.Lock()
		if seen != token {
			t.Errorf("the token sent is %q, and the viewer's %q", seen, token)
		}
		mu.Unlock()
	}
	if c, err := m.Consul(); err != nil {
		t.Fatal(err)
	} else if _, err := c.Get(t.Context(), "x"); errors.Is(err, nil) || seen != "the-servers" {
		t.Errorf("the server's own token sent is %q", seen)
	}
}

// With a token in the environment of the process itself, too, a viewer without
// one has none.
func TestAnonymous(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "the-servers")
	seen := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("X-Consul-Token")
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(srv.Close)
	m := newMeta(t.Context(), IO{LookupEnv: func(string) (string, bool) { return "", false }})
	m.consul.httpAddr = srv.URL
	none := ""
	c, err := m.consulWith(nil, &none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "x"); err == nil {
		t.Error("a refusal is no error")
	}
	if token := <-seen; token != "" {
		t.Errorf("sent %q", token)
	}
}

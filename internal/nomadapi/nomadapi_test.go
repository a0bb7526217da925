package nomadapi_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/aim-control/aimlock/internal/nomadapi"
)

const secret = "5ec2e7-0000"

func server(t *testing.T, h http.HandlerFunc) (*nomadapi.Client, string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := nomadapi.New(nomadapi.Config{Address: srv.URL, TokenFile: file, Region: "europe"})
	if err != nil {
		t.Fatal(err)
	}
	return c, srv.URL
}

func nodes(t *testing.T, c *nomadapi.Client) ([]*api.NodeListStub, error) {
	t.Helper()
	return nomadapi.Retry(t.Context(), c, "list nodes", func(q *api.QueryOptions) ([]*api.NodeListStub, error) {
		l, _, err := c.API().Nodes().List(q)
		return l, err
	})
}

func TestTokenAndRegion(t *testing.T) {
	t.Parallel()
	c, _ := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Nomad-Token") != secret || r.URL.Query().Get("region") != "europe" || r.URL.Query().Has("stale") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(`[{"ID": "a"}]`))
	})
	if l, err := nodes(t, c); err != nil || len(l) != 1 {
		t.Fatalf("got %v, %v", l, err)
	}
}

// What will not change by asking again is not asked again.
func TestRetry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status int
		body   string
		tries  int32
		want   string
	}{
		"no leader":         {500, "No cluster leader", 3, ""},
		"too much to do":    {429, "", 3, ""},
		"denied":            {403, "Permission denied \x1b[31m", 1, "HTTP 403: Permission denied ?[31m"},
		"of another planet": {500, "No path to region", 1, "No path to region"},
		"a filter":          {400, "failed to read filter expression", 1, "filter expression"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			c, url := server(t, func(w http.ResponseWriter, _ *http.Request) {
				if tries.Add(1) == 3 {
					_, _ = w.Write([]byte(`[]`))
					return
				}
				w.WriteHeader(tc.status)
				_, _ = w.Write([]byte(tc.body))
			})
			_, err := nodes(t, c)
			if n := tries.Load(); n != tc.tries {
				t.Errorf("%d tries, want %d", n, tc.tries)
			}
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), url) || nomadapi.Status(err) != tc.status {
				t.Errorf("got %v", err)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "\x1b")) {
				t.Errorf("shows what it must not: %q", err)
			}
		})
	}
}

func TestStopped(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	c, _ := server(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel(errors.New("enough"))
		<-r.Context().Done()
	})
	_, err := nomadapi.Retry(ctx, c, "list nodes", func(q *api.QueryOptions) (int, error) {
		_, _, err := c.API().Nodes().List(q)
		return 0, err
	})
	if err == nil || err.Error() != "enough" {
		t.Fatalf("got %v", err)
	}
}

func TestBlocking(t *testing.T) {
	t.Parallel()
	c, err := nomadapi.New(nomadapi.Config{Address: "http://h"})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		bound := func(index uint64, wait time.Duration) (time.Duration, *api.QueryOptions) {
			q, cancel := c.Blocking(t.Context(), index, wait)
			defer cancel()
			at, ok := q.Context().Deadline()
			if !ok {
				t.Fatal("it has no bound")
			}
			return time.Until(at), q
		}
		if d, q := bound(0, time.Hour); d != nomadapi.Timeout || q.WaitIndex != 0 || q.AllowStale {
			t.Errorf("of no index: %s, %+v", d, q)
		}
		if d, q := bound(7, 16*time.Second); d != nomadapi.Timeout+17*time.Second || q.WaitTime != 16*time.Second || q.WaitIndex != 7 {
			t.Errorf("16s: %s, %+v", d, q)
		}
		if _, q := bound(7, time.Hour); q.WaitTime != nomadapi.MaxWait {
			t.Errorf("an hour: %+v", q)
		}
		// A wait of 0 would be Nomad's five minutes.
		if _, q := bound(7, 0); q.WaitTime != time.Second {
			t.Errorf("none: %+v", q)
		}
	})
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cfg  nomadapi.Config
		want string
	}{
		"no URL":           {nomadapi.Config{Address: "nomad.example:4646"}, "NOMAD_ADDR"},
		"no host":          {nomadapi.Config{Address: "http://"}, "names no host"},
		"another protocol": {nomadapi.Config{Address: "ftp://u:" + secret + "@h"}, "is no URL"},
		"no token file":    {nomadapi.Config{Address: "http://h", TokenFile: "/nowhere/token"}, "/nowhere/token"},
		"no CA":            {nomadapi.Config{Address: "https://h", CACert: "/nowhere/ca.pem"}, "/nowhere/ca.pem"},
		"half a pair":      {nomadapi.Config{Address: "https://h", ClientCert: "/nowhere/c.pem"}, "key"},
	} {
		if _, err := nomadapi.New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if c, err := nomadapi.New(nomadapi.Config{Address: "unix:///secrets/api.sock"}); err != nil {
		t.Errorf("a socket: %v", err)
	} else if addr := c.Addr(); addr != "unix:///secrets/api.sock" {
		t.Errorf("a socket is shown as %q", addr)
	}
}

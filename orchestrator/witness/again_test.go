package witness_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/witness"
)

// lines are what is logged.
type lines chan string

func (l lines) Write(b []byte) (int, error) { l <- string(b); return len(b), nil }

// Who was told that holders are not watched is told when they are again.
func TestWatchedAgainIsTold(t *testing.T) {
	t.Parallel()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	var asked atomic.Int32
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: consulkvtest.InProcess(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/v1/catalog/node/") && asked.Add(1) == 1 {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		srv.Handler().ServeHTTP(w, req)
	}))})
	if err != nil {
		t.Fatal(err)
	}
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	log, done := make(lines, 10), make(chan struct{})
	go func() {
		defer close(done)
		witness.New(witness.Config{Consul: kv, Prefix: prefix, Self: self, Agent: "aimlock-agent-node-1", Log: hclog.New(&hclog.LoggerOptions{Output: log})}).Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	for _, want := range []string{"[WARN]  holders on this host are not watched now", "[INFO]  holders on this host are watched again"} {
		select {
		case got := <-log:
			if !strings.Contains(got, want) {
				t.Fatalf("logged %q, not %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("not told: %s", want)
		}
	}
}

// Of one lock it is told as well. What the token lacks is write on what the agent says
// of the lock's holder, though the request that failed reads it.
func TestLockWatchedAgainIsTold(t *testing.T) {
	t.Parallel()
	var hides atomic.Bool
	hides.Store(true)
	seen := prefix.Observed("a", "node-1")
	log := make(lines, 10)
	h := newHostVia(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path != "/v1/txn" || !hides.Load() {
				next.ServeHTTP(w, req)
				return
			}
			// So Consul answers where the token may not read a key of a transaction.
			body, err := io.ReadAll(req.Body)
			if err != nil {
				t.Error(err)
			}
			req.Body = io.NopCloser(bytes.NewReader(body))
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, req)
			var out map[string]any
			if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
				t.Error(err)
			}
			results, _ := out["Results"].([]any)
			out["Results"] = slices.DeleteFunc(results, func(r any) bool {
				kv, _ := r.(map[string]any)["KV"].(map[string]any)
				return kv["Key"] == seen
			})
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(out); err != nil {
				t.Error(err)
			}
		})
	}, hclog.New(&hclog.LoggerOptions{Output: log}))
	h.hold(func(*records.Holder) {})
	for _, want := range []string{"[WARN]  lock a is not watched now", "[INFO]  lock a is watched again"} {
		select {
		case got := <-log:
			if !strings.Contains(got, want) {
				t.Fatalf("logged %q, not %q", got, want)
			}
			if rule := `key \"` + seen + `\" { policy = \"write\" }`; hides.Load() && !strings.Contains(got, rule) {
				t.Errorf("%s is not named: %s", rule, got)
			}
			hides.Store(false)
		case <-time.After(20 * time.Second):
			t.Fatalf("not told: %s", want)
		}
	}
}

package witness_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
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

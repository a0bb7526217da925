package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// An agent says once that its configs come near to what Consul takes of
// connections.
func TestWarnsOfManyConfigs(t *testing.T) {
	t.Parallel()
	consul, err := consulkv.New(consulkv.Config{Address: "127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	a, err := New(Config{Node: "n1", StateDir: t.TempDir(), Consul: consul, Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn})})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	for i := range 2 * manyConfigs {
		a.ensure(ctx, &wg, fmt.Sprintf("c%d.conf", i))
		a.ensure(ctx, &wg, "c0.conf")
		if said := strings.Contains(log.String(), "http_max_conns_per_client"); said != (i+1 >= manyConfigs) {
			t.Fatalf("after %d configs it is said: %v", i+1, said)
		}
	}
	wg.Wait()
	if n := strings.Count(log.String(), "http_max_conns_per_client"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

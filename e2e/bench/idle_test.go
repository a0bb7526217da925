package bench

import (
	"context"
	"encoding/json"
	"flag"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

var idleFor = flag.Duration("idle", 11*time.Minute, "count requests for so long; a blocking query waits for up to 5 min 19 s")

// idleAgents are counted; what 1,000 ask is so much more, since none knows of any
// other.
const idleAgents = 50

// BenchmarkIdle counts what agents with a config ask of Consul while nothing
// happens, for longer than two blocking queries wait. It is told for each agent and
// hour: what goes on to Consul's servers, and what the agent's own Consul agent
// answers by itself or holds back.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() {
		c := harness.StartConsul(b, harness.WithHCL("limits { http_max_conns_per_client = 3000 }"))
		count := &kinds{n: map[string]float64{}}
		dir := b.TempDir()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var fleet []orchestrator.Node
		for i := range idleAgents {
			n := orchestrator.Node{Name: "n" + string(rune('a'+i/26)) + string(rune('a'+i%26))}
			fleet = append(fleet, n)
			kv, err := consulkv.New(consulkv.Config{Address: c.Addr, Wrap: count.wrap})
			if err != nil {
				b.Fatal(err)
			}
			at := filepath.Join(dir, n.Name)
			a, err := agent.New(agent.Config{Node: n.Name, StateDir: filepath.Join(at, "state"), Root: filepath.Join(at, "root"), Consul: kv, Prefix: keys.DefaultPrefix})
			if err != nil {
				b.Fatal(err)
			}
			wg.Go(func() {
				if err := a.Run(ctx); err != nil {
					b.Error(err)
				}
			})
		}
		harness.Eventually(b, limit, "all agents have checked in", func() bool {
			l, _, err := c.Client().Health().Service(agent.ServiceName, "", true, &api.QueryOptions{RequireConsistent: true})
			return err == nil && len(l) == idleAgents
		})
		list, err := json.Marshal(fleet)
		if err != nil {
			b.Fatal(err)
		}
		write(b, filepath.Join(dir, "fleet.json"), string(list))
		write(b, filepath.Join(dir, "rollout.hcl"), rolloutSpec)
		write(b, filepath.Join(dir, "app.conf"), "a = 1\n")
		harness.Output(b, limit, harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"rollout", "start", "rollout.hcl"}, Env: c.Env(), Dir: dir})

		count.reset()
		span := time.NewTimer(*idleFor)
		<-span.C
		each := idleFor.Hours() * idleAgents
		for kind, n := range count.reset() {
			b.ReportMetric(n/each, kind+"/agent-hour")
		}
		b.ReportMetric(0, "ns/op")
		cancel()
		wg.Wait()
	}
}

// kinds counts requests by what they ask for.
type kinds struct {
	mu sync.Mutex
	n  map[string]float64
}

func (k *kinds) reset() map[string]float64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := k.n
	k.n = map[string]float64{}
	return out
}

func (k *kinds) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		var kind string
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/agent/check/"):
			kind = "passes"
		case strings.HasPrefix(r.URL.Path, "/v1/agent/"):
			kind = "local"
		case r.URL.Query().Get("index") != "" && r.URL.Query().Get("index") != "0":
			kind = "blocking"
		case r.Method == http.MethodGet:
			kind = "reads"
		default:
			kind = "writes"
		}
		k.mu.Lock()
		k.n[kind]++
		k.n["requests"]++
		k.mu.Unlock()
		return next.RoundTrip(r)
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

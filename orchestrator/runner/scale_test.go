package runner_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// meter counts what goes between one client and Consul.
type meter struct {
	next            http.RoundTripper
	requests, bytes atomic.Int64

	mu    sync.Mutex
	paths []string
}

func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	m.requests.Add(1)
	m.mu.Lock()
	m.paths = append(m.paths, req.URL.Path)
	m.mu.Unlock()
	if req.Body != nil {
		req.Body = &counted{req.Body, &m.bytes}
	}
	resp, err := m.next.RoundTrip(req)
	if resp != nil {
		resp.Body = &counted{resp.Body, &m.bytes}
	}
	return resp, err
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// simulated answers for all agents of a config at once: it follows desired/ and
// writes what agents would write, some time after.
type simulated struct {
	kv    *consulkv.Client
	after time.Duration
	seen  sync.Map // node -> order
}

func (s *simulated) run(ctx context.Context, node int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	w := consulkv.NewWatcher(s.kv, consulkv.WatchOptions{Name: "desired", MinInterval: 50 * time.Millisecond},
		func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) {
			return s.kv.API().KV().List(prefix.DesiredAll(config), q)
		})
	for ctx.Err() == nil {
		list, err := w.Next(ctx)
		if err != nil {
			break
		}
		for _, p := range list {
			var d records.Desired
			if err := records.Decode(p.Key, p.Value, &d); err != nil {
				return err
			}
			name := keys.LastSegment(p.Key)
			if o, ok := s.seen.Swap(name, d.Order); ok && o == d.Order {
				continue
			}
			g.Go(func() error {
				select {
				case <-time.After(s.after):
				case <-ctx.Done():
					return nil
				}
				a := records.Actual{Version: records.Version, Node: name, Config: config, Revision: d.Revision, Order: d.Order, Rollout: d.Rollout, Result: records.ResultApplied, Time: time.Now()}
				if err := s.kv.Put(ctx, prefix.Actual(config, name), records.Encode(&a)); err != nil && ctx.Err() == nil {
					return err
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// rollOut runs a rollout of three stages to n simulated nodes, and returns what
// the orchestrator exchanged with Consul for it.
func rollOut(t testing.TB, n int, after time.Duration, stages ...orchestrator.Stage) (requests, bytes int64, took time.Duration) {
	t.Helper()
	srv, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	m := &meter{}
	client := func(wrap func(http.RoundTripper) http.RoundTripper) *consulkv.Client {
		kv, err := consulkv.New(consulkv.Config{Address: srv.Addr(), Wrap: wrap})
		if err != nil {
			t.Fatal(err)
		}
		return kv
	}
	kv := client(func(next http.RoundTripper) http.RoundTripper { m.next = next; return m })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	sim := &simulated{kv: client(nil), after: after}
	go func() { done <- sim.run(ctx, n) }()
	defer func() {
		cancel()
		if err := <-done; err != nil && !strings.Contains(err.Error(), "canceled") {
			t.Error(err)
		}
	}()
	c, err := locksmith.New(locksmith.Config{Consul: kv, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{kv: kv}
	for i := range n {
		f.nodes = append(f.nodes, orchestrator.Node{Name: fmt.Sprintf("node-%05d", i)})
	}
	start := time.Now()
	out, err := runner.New(runner.Config{Consul: kv, Prefix: prefix, Locks: runner.Locksmith(c)}).Start(ctx, f.input("content", stages...))
	if err != nil || out.Header.Counts[orchestrator.ClassApplied] != n {
		t.Fatalf("%+v %v", out, err)
	}
	return m.requests.Load(), m.bytes.Load(), time.Since(start)
}

var threeStages = []orchestrator.Stage{
	{Name: "canary", Nodes: 1}, {Name: "tenth", Percent: 10, MaxParallel: 50}, {Name: "rest", Percent: 100, MaxParallel: 100},
}

// TestBytesAreLinear: what an orchestrator exchanges with Consul grows with the
// fleet and no faster.
func TestBytesAreLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("it rolls out to 1,000 nodes")
	}
	perNode := func(n int) float64 {
		requests, bytes, took := rollOut(t, n, 100*time.Millisecond, threeStages...)
		t.Logf("%5d nodes: %5d requests, %8d bytes, %5d bytes a node, %s", n, requests, bytes, bytes/int64(n), took.Round(time.Millisecond))
		return float64(bytes) / float64(n)
	}
	small, large := perNode(200), perNode(800)
	if large > 1.3*small {
		t.Errorf("%.0f bytes a node at 200 nodes, %.0f at 800", small, large)
	}
	if large > 12_000 {
		t.Errorf("%.0f bytes a node", large)
	}
}

func BenchmarkRollout(b *testing.B) {
	for _, n := range []int{1000, 3000, 10000} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			for b.Loop() {
				requests, bytes, took := rollOut(b, n, 0, orchestrator.Stage{Name: "all", Percent: 100})
				b.ReportMetric(float64(requests), "requests")
				b.ReportMetric(float64(bytes)/float64(n), "bytes/node")
				b.ReportMetric(float64(n)/took.Seconds(), "nodes/s")
			}
		})
	}
}

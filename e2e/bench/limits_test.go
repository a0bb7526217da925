package bench

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// manyWatches lets this process have a connection for each blocking query.
const manyWatches = "limits { http_max_conns_per_client = 18000 }"

// BenchmarkWatches is what idle agents cost one Consul server: each has one
// blocking query on its own key and one on the names of configs, which one new
// revision wakes all at once. A server of a cluster sees the same queries,
// forwarded by the agents' own Consul agents over few connections; here each
// has one, which is the more costly way.
func BenchmarkWatches(b *testing.B) {
	for _, n := range []int{500, 2000, 8000} {
		b.Run(fmt.Sprintf("agents-%d", n), func(b *testing.B) { watches(b, n) })
	}
}

func watches(b *testing.B, n int) {
	c := harness.StartConsul(b, harness.WithHCL(manyWatches))
	w := newWatchers(b, c, 2*n)
	root := scalePrefix.ConfigsRoot()
	w.put(root+"seed", "1")
	own := make([]string, n)
	for i := range own {
		own[i] = scalePrefix.Desired(scaleConfig, fmt.Sprintf("n%05d", i))
	}
	w.putAll(own, `{"version":1}`)
	before := memory(b, c.Pid(), "VmRSS")
	for _, key := range own {
		w.watch("/v1/kv/" + key)
		w.watch("/v1/kv/" + root + "?keys&separator=/")
	}
	w.settle(2 * n)
	each := (memory(b, c.Pid(), "VmRSS") - before) * 1000 / float64(n)

	const idle = 10 * time.Second
	cpu := processorTime(b, c.Pid())
	<-time.After(idle)
	rest := processorTime(b, c.Pid()) - cpu

	var woken, busy time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		answers, cpu, start := w.answers.Load(), processorTime(b, c.Pid()), time.Now()
		w.put(fmt.Sprintf("%snew-%d/x", root, rounds), "1")
		harness.Eventually(b, limit, "all are woken", func() bool { return w.answers.Load() >= answers+int64(n) })
		woken += time.Since(start)
		w.settle(2 * n)
		busy += processorTime(b, c.Pid()) - cpu
	}
	b.ReportMetric(each, "KB/agent")
	b.ReportMetric(rest.Seconds()/idle.Seconds()*100, "%cpu-idle")
	b.ReportMetric(woken.Seconds()/float64(rounds), "s-wake-all")
	b.ReportMetric(busy.Seconds()/float64(rounds), "cpu-s-wake-all")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSnapshot is what a fleet weighs in a server: catalog, orders and
// answers of three configs.
func BenchmarkSnapshot(b *testing.B) {
	const configs = 3
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("nodes-%d", n), func(b *testing.B) {
			f := newScaleFleet(b, n)
			w := newWatchers(b, f.consul, 1)
			o := orchestrator.Order{Epoch: 1, Token: 12345, Seq: 3}
			for i := range configs {
				config := fmt.Sprintf("app-%d.conf", i)
				var desired, actual []string
				for _, node := range f.names {
					desired, actual = append(desired, scalePrefix.Desired(config, node)), append(actual, scalePrefix.Actual(config, node))
				}
				sum := strings.Repeat("a", 64)
				w.putAll(desired, string(records.Encode(&records.Desired{Version: 1, Revision: sum[:12], Order: o, Rollout: "app-20260101-000000-aaaa", Chunks: 1, Size: 20, SHA256: sum, Destination: "/etc/app.conf", Action: records.ActionApply})))
				w.putAll(actual, string(records.Encode(&records.Actual{Version: 1, Node: "n00000", Config: config, Revision: sum[:12], SHA256: sum, Order: o, Rollout: "app-20260101-000000-aaaa", Result: records.ResultApplied, Previous: sum[:12], Time: time.Now().UTC()})))
			}
			var size, sent int64
			var took time.Duration
			for b.Loop() {
				start := time.Now()
				snap, _, err := f.consul.Client().Snapshot().Save(nil)
				if err != nil {
					b.Fatal(err)
				}
				packed := &counted{snap, &atomic.Int64{}}
				raw, err := gzip.NewReader(packed)
				if err != nil {
					b.Fatal(err)
				}
				if size, err = io.Copy(io.Discard, raw); err != nil {
					b.Fatal(err)
				}
				_ = snap.Close()
				sent = packed.n.Load()
				took = time.Since(start)
			}
			b.ReportMetric(float64(size)/(1<<20), "MB-snapshot")
			b.ReportMetric(float64(sent)/(1<<20), "MB-packed")
			b.ReportMetric(float64(size)/float64(n*configs), "B/node/config")
			b.ReportMetric(took.Seconds(), "s-snapshot")
			b.ReportMetric(memory(b, f.consul.Pid(), "VmRSS"), "MB-server")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// watchers are blocking queries, each asked again as soon as it is answered.
type watchers struct {
	b       *testing.B
	addr    string
	kv      *consulkv.Client
	http    *http.Client
	ctx     context.Context // of the benchmark
	wg      sync.WaitGroup
	pending atomic.Int64 // queries that the server holds, or will
	answers atomic.Int64
}

// newWatchers makes room for so many queries at once, and no more: a transport without
// a bound dials another connection for a query that then goes over one that has become
// idle, and keeps both.
func newWatchers(b *testing.B, c *harness.Consul, atOnce int) *watchers {
	b.Helper()
	kv, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watchers{b: b, addr: c.Addr, kv: kv, ctx: ctx, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: atOnce, MaxConnsPerHost: atOnce}}}
	b.Cleanup(func() {
		cancel()
		w.wg.Wait()
		w.http.CloseIdleConnections()
	})
	return w
}

func (w *watchers) put(key, value string) {
	w.b.Helper()
	if err := w.kv.Put(w.b.Context(), key, []byte(value)); err != nil {
		w.b.Fatal(err)
	}
}

func (w *watchers) putAll(ks []string, value string) {
	w.b.Helper()
	g, ctx := errgroup.WithContext(w.b.Context())
	g.SetLimit(scaleWriters)
	for part := range slices.Chunk(ks, consulkv.MaxTxnOps) {
		g.Go(func() error {
			var ops []consulkv.Op
			for _, k := range part {
				ops = append(ops, consulkv.Set(k, []byte(value)))
			}
			_, err := w.kv.Txn(ctx, ops...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		w.b.Fatal(err)
	}
}

// watch follows one path until the benchmark ends.
func (w *watchers) watch(path string) {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	w.wg.Go(func() {
		index := "0"
		for w.ctx.Err() == nil {
			req, err := http.NewRequestWithContext(w.ctx, http.MethodGet, fmt.Sprintf("http://%s%s%swait=9m&index=%s", w.addr, path, sep, index), nil)
			if err != nil {
				panic(err)
			}
			if index != "0" {
				w.pending.Add(1)
			}
			resp, err := w.http.Do(req)
			if index != "0" {
				w.pending.Add(-1)
			}
			if err != nil {
				if w.ctx.Err() == nil {
					w.b.Errorf("%s: %v", path, err)
				}
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				w.b.Errorf("%s: %s", path, resp.Status)
				return
			}
			if index != "0" {
				w.answers.Add(1)
			}
			index = resp.Header.Get("X-Consul-Index")
		}
	})
}

// settle waits until n queries are held and no answer comes any more.
func (w *watchers) settle(n int) {
	w.b.Helper()
	last := int64(-1)
	harness.Eventually(w.b, limit, "all queries are held", func() bool {
		now := w.answers.Load()
		still := now == last && w.pending.Load() == int64(n)
		last = now
		return still
	})
}

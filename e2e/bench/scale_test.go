package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/orchestrator/spec"
)

const (
	// scaleWriters is how many transactions of one decision the runner has
	// under way, and so the floor.
	scaleWriters = 4
	// scaleAcks is how many of the simulated agents put their answer at once.
	scaleAcks   = 64
	scalePrefix = keys.Prefix(keys.DefaultPrefix)
	scaleConfig = "app.conf"
	floorConfig = "floor.conf"
)

const scaleSpec = `rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/etc/app.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "all" {
    percent = 100
  }
}
`

// BenchmarkScale is a rollout in one stage without bake to fleets of 1,000 to
// 10,000 nodes, and beside it, in the same run and in turns, its floor: the same
// pointers, written raw in full transactions by as many writers, and one answer
// put by each node. The agents are simulated in this process, in both alike:
// what they learn and what they answer goes through Consul. Their services are
// in the catalog, one Consul node each, because an orchestrator reads that too.
//
// The orchestrator is a process of its own. What it takes is the time from its
// start to its end. The processor time of all together is beside it, as a multiple
// of the floor's: what else the machine does matters less to it.
func BenchmarkScale(b *testing.B) {
	for _, n := range []int{1000, 3000, 10000} {
		b.Run(fmt.Sprintf("nodes-%d", n), func(b *testing.B) { scale(b, n) })
	}
}

func scale(b *testing.B, n int) {
	f := newScaleFleet(b, n)
	f.follow(floorConfig)
	f.follow(scaleConfig)
	f.floor(0) // makes the keys of both, so that all rounds write over what stands
	f.process(0)
	var floors, takes []float64
	var floorCPU, rolloutCPU, own time.Duration
	var peak float64
	round := 0
	for b.Loop() {
		round++
		cpu := f.processor()
		floors = append(floors, f.floor(round).Seconds())
		floorCPU, cpu = floorCPU+f.processor()-cpu, f.processor()
		took, p, mb := f.process(round)
		rolloutCPU, own = rolloutCPU+f.processor()-cpu+p.CPU(), own+p.CPU()
		takes, peak = append(takes, took.Seconds()), max(peak, mb)
	}
	slices.Sort(floors)
	slices.Sort(takes)
	floor, took := floors[len(floors)/2], takes[len(takes)/2]
	b.ReportMetric(floor, "s-floor")
	b.ReportMetric(took, "s-rollout")
	b.ReportMetric(took/floor, "x-floor")
	b.ReportMetric(rolloutCPU.Seconds()/floorCPU.Seconds(), "x-floor-cpu")
	b.ReportMetric(own.Seconds()/float64(round), "cpu-s-own")
	b.ReportMetric(peak, "MB-peak")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkScaleTraffic is the same rollout with its orchestrator in this
// process: what it asks and reads. Blocking queries are counted by what they
// ask for.
func BenchmarkScaleTraffic(b *testing.B) {
	perNode := map[int]float64{}
	sizes := []int{1000, 3000, 10000}
	for _, n := range sizes {
		b.Run(fmt.Sprintf("nodes-%d", n), func(b *testing.B) {
			f := newScaleFleet(b, n)
			f.follow(scaleConfig)
			f.process(0)
			var count *traffic
			rounds := 0
			for b.Loop() {
				rounds++
				count = f.inProcess(rounds)
			}
			fmt.Fprintf(os.Stderr, "a rollout to %d nodes asks:\n%s", n, count.shares()) // b.Log cuts it off
			perNode[n] = float64(count.read.Load()) / float64(n)
			b.ReportMetric(float64(count.requests.Load()), "requests")
			b.ReportMetric(float64(len(count.watched())), "watches")
			b.ReportMetric(perNode[n], "B-read/node")
			b.ReportMetric(float64(count.written.Load())/float64(n), "B-written/node")
			b.ReportMetric(0, "ns/op")
		})
	}
	if small, large := perNode[sizes[0]], perNode[sizes[len(sizes)-1]]; small > 0 && large > 1.5*small {
		b.Errorf("%.0f bytes are read for each node of %d and %.0f of %d: that is not O(N)", small, sizes[0], large, sizes[len(sizes)-1])
	}
}

// scaleFleet is n simulated agents and what is rolled out to them.
type scaleFleet struct {
	b      *testing.B
	consul *harness.Consul
	kv     *consulkv.Client
	n      int
	names  []string
	dir    string
	// acks counts the answers put, by config.
	acks map[string]*atomic.Int64
}

func newScaleFleet(b *testing.B, n int) *scaleFleet {
	b.Helper()
	c := harness.StartConsul(b, harness.WithHCL("limits { http_max_conns_per_client = 3000 }"))
	kv, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		b.Fatal(err)
	}
	f := &scaleFleet{b: b, consul: c, kv: kv, n: n, dir: b.TempDir(), acks: map[string]*atomic.Int64{}}
	var list []orchestrator.Node
	for i := range n {
		f.names = append(f.names, fmt.Sprintf("n%05d", i))
		list = append(list, orchestrator.Node{Name: f.names[i]})
	}
	text, err := json.Marshal(list)
	if err != nil {
		b.Fatal(err)
	}
	write(b, filepath.Join(f.dir, "fleet.json"), string(text))
	write(b, filepath.Join(f.dir, "rollout.hcl"), scaleSpec)
	f.register()
	return f
}

// register puts a Consul node with the agent's service and its check into the
// catalog for each node.
func (f *scaleFleet) register() {
	f.b.Helper()
	g, ctx := errgroup.WithContext(f.b.Context())
	g.SetLimit(scaleWriters)
	for part := range slices.Chunk(f.names, 40) {
		g.Go(func() error {
			var ops api.TxnOps
			for i, name := range part {
				id := agent.ServiceID(name)
				ops = append(
					ops,
					&api.TxnOp{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: name, Address: fmt.Sprintf("10.0.0.%d", i), Meta: map[string]string{"zone": "a"}}}},
					&api.TxnOp{Service: &api.ServiceTxnOp{Verb: api.ServiceSet, Node: name, Service: api.AgentService{ID: id, Service: agent.ServiceName, Meta: map[string]string{"node": name, "version": "0.0.0"}}}},
					&api.TxnOp{Check: &api.CheckTxnOp{Verb: api.CheckSet, Check: api.HealthCheck{Node: name, CheckID: id, Name: "aimlock agent", Status: api.HealthPassing, ServiceID: id, ServiceName: agent.ServiceName}}},
				)
			}
			ok, resp, _, err := f.consul.Client().Txn().Txn(ops, (&api.QueryOptions{}).WithContext(ctx))
			if err == nil && !ok {
				err = fmt.Errorf("register nodes: %v", resp.Errors)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		f.b.Fatal(err)
	}
}

// follow answers the orders of one config for all nodes, until the benchmark
// ends.
func (f *scaleFleet) follow(config string) {
	acks := &atomic.Int64{}
	f.acks[config] = acks
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	type order struct {
		node  string
		value []byte
	}
	work := make(chan order, f.n)
	for range scaleAcks {
		g.Go(func() error {
			for o := range work {
				var d records.Desired
				if err := records.Decode(o.node, o.value, &d); err != nil {
					return err
				}
				a := records.Actual{Version: records.Version, Node: o.node, Config: config, Revision: d.Revision, SHA256: d.SHA256, Order: d.Order, Rollout: d.Rollout, Result: records.ResultApplied, Time: time.Now().UTC()}
				if err := f.kv.Put(ctx, scalePrefix.Actual(config, o.node), records.Encode(&a)); err != nil {
					return err
				}
				acks.Add(1)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		prefix, seen := scalePrefix.DesiredAll(config), uint64(0)
		w := consulkv.NewWatcher(f.kv, consulkv.WatchOptions{Name: prefix, MinInterval: 50 * time.Millisecond},
			func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) {
				return f.kv.Scan(q.Context(), prefix, q, func(h *consulkv.Head) bool { return h.ModifyIndex > seen })
			})
		for {
			list, err := w.Next(ctx)
			if err != nil {
				return err
			}
			for _, p := range list {
				seen = max(seen, p.ModifyIndex)
				work <- order{keys.LastSegment(p.Key), p.Value}
			}
		}
	})
	f.b.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			f.b.Error(err)
		}
	})
}

// floor writes what a rollout to all nodes cannot do without, and returns how
// long it took until the last answer stood.
func (f *scaleFleet) floor(round int) time.Duration {
	f.b.Helper()
	acks := f.acks[floorConfig]
	acks.Store(0)
	d := records.Desired{
		Version: records.Version, Revision: strings.Repeat("a", 12), Order: orchestrator.Order{Epoch: 1, Token: uint64(round + 1), Seq: 1},
		Rollout: "app-20260101-000000-aaaa", Chunks: 1, Size: 20, SHA256: strings.Repeat("a", 64), Destination: "/etc/app.conf", Action: records.ActionApply,
	}
	value := records.Encode(&d)
	start := time.Now()
	g, ctx := errgroup.WithContext(f.b.Context())
	g.SetLimit(scaleWriters)
	for part := range slices.Chunk(f.names, consulkv.MaxTxnOps) {
		g.Go(func() error {
			ops := make([]consulkv.Op, len(part))
			for i, n := range part {
				ops[i] = consulkv.Set(scalePrefix.Desired(floorConfig, n), value)
			}
			_, err := f.kv.Txn(ctx, ops...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		f.b.Fatal(err)
	}
	harness.Eventually(f.b, limit, "all nodes have answered", func() bool { return acks.Load() == int64(f.n) })
	return time.Since(start)
}

func (f *scaleFleet) content(round int) {
	write(f.b, filepath.Join(f.dir, "app.conf"), fmt.Sprintf("revision = %d\n", round))
}

// processor is what Consul and the simulated agents have used.
func (f *scaleFleet) processor() time.Duration {
	return processorTime(f.b, f.consul.Pid()) + processorTime(f.b, os.Getpid())
}

// process rolls a new content out by a process of its own, and returns how long
// it took, and the most memory that it had resident, in MB.
func (f *scaleFleet) process(round int) (time.Duration, *harness.Process, float64) {
	f.b.Helper()
	f.content(round)
	start := time.Now()
	p := harness.Start(f.b, harness.Spec{Path: harness.Aimlock.Path(f.b), Args: []string{"rollout", "start", "rollout.hcl"}, Env: f.consul.Env(), Dir: f.dir})
	peak := peakOf(p)
	code := p.Wait(limit)
	took := time.Since(start)
	if code != 0 {
		f.b.Fatalf("rollout start ends with %d: %s", code, p.Stderr())
	}
	return took, p, <-peak
}

// peakOf follows the most memory that a process has resident until it ends, but for its
// last milliseconds. What Linux accounts to a process that has ended (ru_maxrss) is that
// of its starter, where that is more: exec hands it on.
func peakOf(p *harness.Process) <-chan float64 {
	out := make(chan float64, 1)
	go func() {
		peak := 0.0
		for tick := time.NewTicker(5 * time.Millisecond); ; {
			select {
			case <-p.Done():
				tick.Stop()
				out <- peak
				return
			case <-tick.C:
				if mb, err := status(p.Pid(), "VmHWM"); err == nil {
					peak = mb
				}
			}
		}
	}()
	return out
}

// inProcess rolls a new content out by this process, and returns what it
// exchanged with Consul.
func (f *scaleFleet) inProcess(round int) *traffic {
	f.b.Helper()
	f.content(round)
	count := &traffic{}
	client, err := consulkv.New(consulkv.Config{Address: f.consul.Addr, Wrap: count.wrap})
	if err != nil {
		f.b.Fatal(err)
	}
	locks, err := locksmith.New(locksmith.Config{Consul: client})
	if err != nil {
		f.b.Fatal(err)
	}
	file, diags := spec.Load(filepath.Join(f.dir, "rollout.hcl"))
	if diags.HasErrors() {
		f.b.Fatal(diags)
	}
	r := runner.New(runner.Config{Consul: client, Locks: runner.Locksmith(locks), By: "bench"})
	out, err := r.Start(f.b.Context(), runner.Input{Spec: file.Spec, Contents: file.Contents, Fleet: runner.StaticFleet(file.Fleet.Nodes)})
	if err != nil {
		f.b.Fatal(err)
	}
	if out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassApplied] != f.n {
		f.b.Fatalf("%s with %v of %d nodes", out.Header.State, out.Header.Counts, f.n)
	}
	return count
}

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/orchestrator/spec"
)

const rolloutSpec = `rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/etc/app.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "canary" {
    nodes = 1
  }
  stage "half" {
    percent      = 50
    max_parallel = 50
  }
  stage "rest" {
    percent      = 100
    max_parallel = 50
  }
}
`

// traffic counts what goes between one client and Consul: bodies, the answers'
// as they are before compression.
type traffic struct {
	next                    http.RoundTripper
	requests, read, written atomic.Int64
	// blocking has the path of each blocking query.
	blocking sync.Map
	mu       sync.Mutex
	kinds    map[string]*share
}

// share is what requests of one kind exchange.
type share struct {
	requests      int
	read, written atomic.Int64
}

// shares has a line for each kind of request.
func (c *traffic) shares() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(c.kinds)) {
		s := c.kinds[kind]
		fmt.Fprintf(&out, "%6d %9d read %9d written  %s\n", s.requests, s.read.Load(), s.written.Load(), kind)
	}
	return out.String()
}

var random = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{64}|app-[0-9]{8}-[0-9]{6}-[a-z0-9]+|[0-9]{6,}|/actual/([^/]+)/[0-9a-z]+/.*`)

func (c *traffic) kind(r *http.Request) *share {
	q := r.URL.Query()
	kind := r.Method + " " + random.ReplaceAllString(strings.TrimPrefix(r.URL.Path, "/v1/"), "*")
	for _, name := range []string{"recurse", "keys"} {
		if q.Has(name) {
			kind += " " + name
		}
	}
	if i := q.Get("index"); i != "" && i != "0" {
		kind += " blocking"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds = map[string]*share{}
	}
	s := c.kinds[kind]
	if s == nil {
		s = &share{}
		c.kinds[kind] = s
	}
	s.requests++
	s.written.Add(max(r.ContentLength, 0))
	return s
}

func (c *traffic) wrap(next http.RoundTripper) http.RoundTripper {
	c.next = next
	return c
}

// watched is what was asked for by blocking queries.
func (c *traffic) watched() []string {
	var out []string
	c.blocking.Range(func(k, _ any) bool {
		out = append(out, k.(string))
		return true
	})
	return out
}

func (c *traffic) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	if q := r.URL.Query(); q.Get("index") != "" && q.Get("index") != "0" {
		c.blocking.Store(r.URL.Path, nil)
	}
	c.written.Add(max(r.ContentLength, 0))
	kind := c.kind(r)
	resp, err := c.next.RoundTrip(r)
	if err == nil {
		resp.Body = &counted{&counted{resp.Body, &c.read}, &kind.read}
	}
	return resp, err
}

type counted struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// BenchmarkRolloutBytes is a rollout of three stages without bake to fleets of
// agents in this process: what its orchestrator asks, reads and writes. What it
// reads for each node must not grow with the fleet.
func BenchmarkRolloutBytes(b *testing.B) {
	perNode := map[int]float64{}
	sizes := []int{100, 200, 300}
	for _, n := range sizes {
		b.Run(fmt.Sprintf("agents-%d", n), func(b *testing.B) { perNode[n] = rolloutBytes(b, n) })
	}
	if small, large := perNode[sizes[0]], perNode[sizes[len(sizes)-1]]; small > 0 && large > 1.5*small {
		b.Errorf("%.0f bytes are read for each node of %d and %.0f of %d: that is not O(N)", small, sizes[0], large, sizes[len(sizes)-1])
	}
}

func rolloutBytes(b *testing.B, n int) float64 {
	// Each blocking query has a connection of its own.
	c := harness.StartConsul(b, harness.WithHCL("limits { http_max_conns_per_client = 3000 }"))
	dir, nodes := b.TempDir(), startAgents(b, c, n)
	list, err := json.Marshal(nodes)
	if err != nil {
		b.Fatal(err)
	}
	write(b, filepath.Join(dir, "fleet.json"), string(list))
	write(b, filepath.Join(dir, "rollout.hcl"), rolloutSpec)

	count := &traffic{}
	client, err := consulkv.New(consulkv.Config{Address: c.Addr, Wrap: count.wrap})
	if err != nil {
		b.Fatal(err)
	}
	locks, err := locksmith.New(locksmith.Config{Consul: client})
	if err != nil {
		b.Fatal(err)
	}
	r := runner.New(runner.Config{Consul: client, Locks: runner.Locksmith(locks), By: "bench"})
	rollouts := 0
	for b.Loop() {
		rollouts++
		write(b, filepath.Join(dir, "app.conf"), fmt.Sprintf("revision = %d\n", rollouts))
		f, diags := spec.Load(filepath.Join(dir, "rollout.hcl"))
		if diags.HasErrors() {
			b.Fatal(diags)
		}
		out, err := r.Start(b.Context(), runner.Input{Spec: f.Spec, Contents: f.Contents, Fleet: runner.StaticFleet(f.Fleet.Nodes)})
		if err != nil {
			b.Fatal(err)
		}
		if out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassApplied] != n {
			b.Fatalf("%s with %v of %d nodes", out.Header.State, out.Header.Counts, n)
		}
	}
	each := func(v *atomic.Int64) float64 { return float64(v.Load()) / float64(rollouts) }
	read := each(&count.read)
	b.ReportMetric(each(&count.requests), "requests")
	b.ReportMetric(read, "B-read")
	b.ReportMetric(each(&count.written), "B-written")
	b.ReportMetric(read/float64(n), "B-read/node")
	b.ReportMetric(each(&count.written)/float64(n), "B-written/node")
	b.ReportMetric(b.Elapsed().Seconds()/float64(rollouts), "s/rollout")
	b.ReportMetric(0, "ns/op")
	return read / float64(n)
}

// ownNode has an agent believe that it stands on a Consul node of its own, as in a
// fleet of machines: what it watches is the holders of its node, and a hundred
// agents of one node would all watch the one that drives the rollout.
type ownNode struct {
	next http.RoundTripper
	name string
}

func (o ownNode) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path != "/v1/agent/self" {
		return o.next.RoundTrip(r)
	}
	resp, err := o.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer func() { _ = resp.Body.Close() }()
	var self map[string]map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&self); err != nil {
		return nil, err
	}
	self["Config"]["NodeName"] = o.name
	body, err := json.Marshal(self)
	if err != nil {
		return nil, err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Del("Content-Length")
	return resp, nil
}

// startAgents starts n agents, each with a client of its own as if it were on a
// machine of its own, and waits until all have checked in.
func startAgents(b *testing.B, c *harness.Consul, n int) []orchestrator.Node {
	b.Helper()
	dir, nodes := b.TempDir(), make([]orchestrator.Node, n)
	for i := range nodes {
		nodes[i] = orchestrator.Node{Name: fmt.Sprintf("n%03d", i)}
		client, err := consulkv.New(consulkv.Config{Address: c.Addr, Wrap: func(next http.RoundTripper) http.RoundTripper {
			return ownNode{next, nodes[i].Name}
		}})
		if err != nil {
			b.Fatal(err)
		}
		at := filepath.Join(dir, nodes[i].Name)
		a, err := agent.New(agent.Config{Node: nodes[i].Name, StateDir: filepath.Join(at, "state"), Root: filepath.Join(at, "root"), Consul: client, Prefix: keys.DefaultPrefix})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		b.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	}
	harness.Eventually(b, limit, "all agents have checked in", func() bool {
		l, _, err := c.Client().Health().Service(agent.ServiceName, "", true, &api.QueryOptions{RequireConsistent: true})
		return err == nil && len(l) == n
	})
	return nodes
}

func write(b *testing.B, path, text string) {
	b.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
}

package runner_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// TestCountRollout: what an orchestrator asks and exchanges with Consul for a rollout
// in two stages to 300 nodes that take 100 ms each, in virtual time: so it is the same
// on every machine. The line that it prints is held to a baseline: make bench-check.
func TestCountRollout(t *testing.T) {
	const n = 300
	synctest.Test(t, func(t *testing.T) {
		srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = srv.Close() }()
		m := &meter{}
		client := func(wrap func(http.RoundTripper) http.RoundTripper) *consulkv.Client {
			kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
				return wrap(consulkvtest.InProcess(srv.Handler())(rt))
			}})
			if err != nil {
				t.Fatal(err)
			}
			return kv
		}
		kv := client(func(next http.RoundTripper) http.RoundTripper { m.next = next; return m })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		sim := &simulated{kv: client(func(next http.RoundTripper) http.RoundTripper { return next }), after: 100 * time.Millisecond}
		go func() { done <- sim.run(ctx, n) }()
		c, err := locksmith.New(locksmith.Config{Consul: kv, Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		f := &fleet{kv: kv}
		for i := range n {
			f.nodes = append(f.nodes, orchestrator.Node{Name: fmt.Sprintf("node-%05d", i)})
		}
		stages := []orchestrator.Stage{{Name: "canary", Nodes: 1}, {Name: "rest", Percent: 100, MaxParallel: 100}}
		r, in := runner.New(runner.Config{Consul: kv, Prefix: prefix, Locks: runner.Locksmith(c)}), f.input("content", stages...)
		out, err := r.Start(ctx, in)
		if err != nil || out.Header.Counts[orchestrator.ClassApplied] != n {
			t.Fatalf("%+v %v", out, err)
		}
		fmt.Printf("pkg: github.com/aim-control/aimlock/orchestrator/runner\nBenchmarkCountRolloutTraffic \t1\t%d requests/op\t%.0f bytes/node\n", m.requests.Load(), float64(m.bytes.Load())/n)
		if per := float64(m.bytes.Load()) / n; per > 12_000 {
			t.Errorf("%.0f bytes a node", per)
		}
		idle(t, m, r, in)
		if _, err := sim.kv.API().KV().Delete(prefix.Actual(config, f.nodes[7].Name), nil); err != nil {
			t.Fatal(err)
		}
		idle(t, m, r, in)
		cancel()
		if err := <-done; err != nil && !strings.Contains(err.Error(), "canceled") {
			t.Error(err)
		}
	})
}

// idle: a tick that has nothing to do reads what the whole fleet says once, also where a
// node lacks the revision, and asks no more for a large fleet than for a small one.
func idle(t *testing.T, m *meter, r *runner.Runner, in runner.Input) {
	t.Helper()
	m.paths = nil
	out, err := r.Tick(t.Context(), in)
	if err == nil {
		_, _, err = r.DriftOf(t.Context(), out)
	}
	if err != nil || !out.Converged {
		t.Fatalf("%+v %v", out, err)
	}
	for _, part := range []string{prefix.ActualAll(config), "/service/" + runner.AgentService} {
		n := 0
		for _, p := range m.paths {
			if strings.Contains(p, part) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was read %d times: %s", part, n, out.Note)
		}
	}
	if len(m.paths) > 6 {
		t.Errorf("%d requests: %q", len(m.paths), m.paths)
	}
}

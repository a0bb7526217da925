package plugin

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// BenchmarkCall measures calls of a plugin in a process of its own against a bare
// gRPC call, which is the health check that go-plugin serves on the same connection.
func BenchmarkCall(b *testing.B) {
	gp := external(b, "all")
	c, err := Connect(b.Context(), gp)
	if err != nil {
		b.Fatal(err)
	}
	protocol, err := gp.Client()
	if err != nil {
		b.Fatal(err)
	}
	conn, err := protocol.Dispense(setName)
	if err != nil {
		b.Fatal(err)
	}
	bare := healthpb.NewHealthClient(conn.(*grpc.ClientConn))
	g, err := c.Gate(b.Context(), Config(`{"answer": "quiet"}`))
	if err != nil {
		b.Fatal(err)
	}
	e, err := c.Evidence(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	local, err := InProcess(everything(), nil)
	if err != nil {
		b.Fatal(err)
	}
	inside, err := local.Gate(b.Context(), Config(`{"answer": "quiet"}`))
	if err != nil {
		b.Fatal(err)
	}
	lock := Lock{Name: "aim_lock_config.conf", Key: "aimlock/locks/aim_lock_config.conf", Session: "0c2b0ee6-1ca5-4b1c-8b0a-2f3c0b6f6a51", Epoch: 1, Token: 4711, Holder: Holder{Host: "h", PID: 1}}
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("bare", func() error {
		_, err := bare.Check(ctx, &healthpb.HealthCheckRequest{Service: "plugin"})
		return err
	})
	run("gate", func() error { _, err := g.Ask(ctx, &Question{Gate: "g", Rollout: "r", Stage: "s"}); return err })
	run("evidence", func() error { _, err := e.Observe(ctx, &ObserveRequest{Lock: lock}); return err })
	// One after the other, so that what else the machine does meets both.
	b.Run("ratio", func(b *testing.B) {
		var calls, facts, bares []time.Duration
		for b.Loop() {
			t0 := time.Now()
			if _, err := bare.Check(ctx, &healthpb.HealthCheckRequest{Service: "plugin"}); err != nil {
				b.Fatal(err)
			}
			t1 := time.Now()
			if _, err := g.Ask(ctx, &Question{Gate: "g", Rollout: "r", Stage: "s"}); err != nil {
				b.Fatal(err)
			}
			t2 := time.Now()
			if _, err := e.Observe(ctx, &ObserveRequest{Lock: lock}); err != nil {
				b.Fatal(err)
			}
			bares, calls, facts = append(bares, t1.Sub(t0)), append(calls, t2.Sub(t1)), append(facts, time.Since(t2))
		}
		median := func(d []time.Duration) float64 {
			slices.Sort(d)
			return float64(d[len(d)/2])
		}
		b.ReportMetric(median(bares)/1e3, "µs-bare")
		b.ReportMetric(median(calls)/1e3, "µs-gate")
		b.ReportMetric(median(calls)/median(bares), "x-bare-gate")
		b.ReportMetric(median(facts)/1e3, "µs-evidence")
		b.ReportMetric(median(facts)/median(bares), "x-bare-evidence")
	})
	run("gate-in-process", func() error { _, err := inside.Ask(ctx, &Question{Gate: "g"}); return err })

	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	plain := healthpb.NewHealthClient(dial(b, s))
	run("bare-without-tls", func() error {
		_, err := plain.Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	})
}

// BenchmarkStart measures how long it takes until a plugin has said what it is, and
// what the same program takes to do nothing. What else the machine does makes it
// longer: ms-least is the fastest of all.
func BenchmarkStart(b *testing.B) {
	b.Run("process", func(b *testing.B) {
		least := time.Hour
		for b.Loop() {
			start := time.Now()
			cmd := exec.CommandContext(b.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), serveEnv+"=mute")
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			least = min(least, time.Since(start))
		}
		b.ReportMetric(float64(least)/1e6, "ms-least")
	})
	for name, start := range map[string]func(testing.TB) *goplugin.Client{
		"plugin": mutual,
		// The host's end as go-plugin makes it.
		"auto-mtls": func(b testing.TB) *goplugin.Client { return external(b, "all") },
	} {
		b.Run(name, func(b *testing.B) {
			least := time.Hour
			for b.Loop() {
				begun := time.Now()
				gp := start(b)
				if _, err := Connect(b.Context(), gp); err != nil {
					b.Fatal(err)
				}
				least = min(least, time.Since(begun))
				b.StopTimer()
				gp.Kill()
				b.StartTimer()
			}
			b.ReportMetric(float64(least)/1e6, "ms-least")
		})
	}
}

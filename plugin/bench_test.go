package plugin

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

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
// what the same program takes to do nothing.
func BenchmarkStart(b *testing.B) {
	b.Run("process", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), serveEnv+"=mute")
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("plugin", func(b *testing.B) {
		for b.Loop() {
			gp := external(b, "all")
			if _, err := Connect(b.Context(), gp); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			gp.Kill()
			b.StartTimer()
		}
	})
}

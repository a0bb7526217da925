package bench

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/orchestrator/agent"

	"github.com/hashicorp/consul/api"
)

const (
	daemonIdle  = time.Minute
	daemonTimes = 20
)

// daemonSpec has one node: each rollout is one order.
const daemonSpec = `rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/app.conf"
  }
  fleet {
    consul {
      service = "aimlock-agent"
    }
  }
  stage "all" {
    percent = 100
  }
}
`

// BenchmarkDaemons is what the processes take that always run, on one machine and one
// Consul: memory and processor time of a minute in which nothing happens, and then of
// twenty rollouts and as many locks taken and released, one after the other.
func BenchmarkDaemons(b *testing.B) {
	c := harness.StartConsul(b)
	dir := b.TempDir()
	write(b, filepath.Join(dir, "rollout.hcl"), daemonSpec)
	run := func(args ...string) harness.Spec {
		return harness.Spec{Path: harness.Aimlock.Path(b), Args: args, Env: c.Env(), Dir: dir}
	}
	daemons := []struct {
		name string
		*harness.Process
	}{
		{"agent", harness.Start(b, run("agent", "-node", "n1", "-state-dir", filepath.Join(dir, "state"), "-root", filepath.Join(dir, "root")))},
		{"agent-with-metrics", harness.Start(b, run("agent", "-node", "n2", "-state-dir", filepath.Join(dir, "state2"), "-root", filepath.Join(dir, "root2"), "-listen", "127.0.0.1:0"))},
		{"locksmith", harness.Start(b, run("locksmith"))},
		{"locksmith-with-metrics", harness.Start(b, run("locksmith", "-listen", "127.0.0.1:0"))},
		{"ui", harness.Start(b, run("ui", "-listen", "127.0.0.1:0"))},
	}
	harness.Eventually(b, limit, "the agents have checked in", func() bool {
		l, _, err := c.Client().Health().Service(agent.ServiceName, "", true, &api.QueryOptions{RequireConsistent: true})
		return err == nil && len(l) == 2
	})
	round := 0
	work := func() {
		round++
		write(b, filepath.Join(dir, "app.conf"), fmt.Sprintf("a = %d\n", round))
		harness.Output(b, limit, run("rollout", "start", "rollout.hcl"))
		harness.Output(b, limit, run("lock", "exec", "busy", "--", "true"))
	}
	work() // what is done once
	used := map[string]time.Duration{}
	figures := map[string]map[string]float64{}
	since := func(name string, pid int) float64 {
		now := processorTime(b, pid)
		d := now - used[name]
		used[name] = now
		return float64(d.Milliseconds())
	}
	for b.Loop() {
		for _, d := range daemons {
			figures[d.name] = map[string]float64{}
			since(d.name, d.Pid())
		}
		span := time.NewTimer(daemonIdle)
		<-span.C
		for _, d := range daemons {
			figures[d.name]["cpu-ms/idle-minute"] = since(d.name, d.Pid()) * float64(time.Minute) / float64(daemonIdle)
			figures[d.name]["MB-rss-idle"] = memory(b, d.Pid(), "VmRSS")
			figures[d.name]["MB-own-idle"] = memory(b, d.Pid(), "RssAnon")
		}
		for range daemonTimes {
			work()
		}
		for _, d := range daemons {
			figures[d.name]["cpu-ms/rollout-and-lock"] = since(d.name, d.Pid()) / daemonTimes
			figures[d.name]["MB-peak"] = memory(b, d.Pid(), "VmHWM")
		}
	}
	for _, d := range daemons {
		b.Run(d.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op")
			for unit, v := range figures[d.name] {
				b.ReportMetric(v, unit)
			}
		})
	}
}

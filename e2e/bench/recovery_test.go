package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

// limit bounds every wait; consul lock's recovery takes 40 s of it.
const limit = 2 * time.Minute

// BenchmarkRecoveryAfterKill is the time from kill -9 of a holder to its
// successor, which waits on the same host, holding the lock: for a command, to
// its start; for a rollout, to the lock's key being the successor's. The policy
// is the default one. ratio is by how much consul lock takes longer, and worst the
// longest of the recoveries.
func BenchmarkRecoveryAfterKill(b *testing.B) {
	c := harness.StartConsul(b)
	theirs := recovery(b, c, harness.Spec{Path: harness.ConsulBin.Path(b), Args: []string{"lock", "bench/theirs"}, Env: c.Env()}, "", 0)
	b.Run("consul-lock", func(b *testing.B) {
		// Measured above, once: each costs 40 s.
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(theirs.Seconds(), "s/recovery")
	})
	ours := func(name string, once func(i int) time.Duration) {
		b.Run(name, func(b *testing.B) {
			var sum, worst time.Duration
			for i := range kills {
				took := once(i)
				sum, worst = sum+took, max(worst, took)
			}
			mean := sum / kills
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(mean.Seconds(), "s/recovery")
			b.ReportMetric(worst.Seconds(), "s/worst")
			b.ReportMetric(theirs.Seconds()/mean.Seconds(), "ratio")
		})
	}
	aimlock := harness.Aimlock.Path(b)
	// A prefix for each try: the default policy breaks three locks an hour.
	ours("lock-exec", func(i int) time.Duration {
		return recovery(b, c, harness.Spec{
			Path: aimlock, Args: []string{"lock", "exec", "-prefix", fmt.Sprintf("exec%d-%d", time.Now().UnixNano(), i), "bench", "--"}, Env: c.Env(),
		}, "bench: HELD", i)
	})
	ours("rollout", func(i int) time.Duration {
		return rolloutRecovery(b, c, aimlock, fmt.Sprintf("rollout%d-%d", time.Now().UnixNano(), i), i)
	})
}

const (
	// kills is how often a holder is killed for one figure.
	kills = 10
	// looks is how often a waiting aimlock looks whether the holder lives: how soon it
	// sees the death depends on when between two looks that comes.
	looks = 250 * time.Millisecond
)

// spread lets the kills come at moments that are spread evenly between two looks.
func spread(b *testing.B, i int) {
	b.Helper()
	select {
	case <-time.After(looks * time.Duration(i) / kills):
	case <-b.Context().Done():
		b.Fatal(b.Context().Err())
	}
}

// recovery measures two calls of a command that holds a lock while another
// command runs. waits is what the second prints when it waits; "": it is seen by
// its session. i is which of the kills it is.
func recovery(b *testing.B, c *harness.Consul, spec harness.Spec, waits string, i int) time.Duration {
	b.Helper()
	dir := b.TempDir()
	call := func(name string) (*harness.Process, string) {
		file := filepath.Join(dir, name)
		s := spec
		s.Args = append(append([]string{}, spec.Args...), "sh", "-c", "touch "+file+" && exec sleep 600")
		if waits == "" { // consul lock runs its arguments in a shell itself
			s.Args = append(append([]string{}, spec.Args...), "touch "+file+" && exec sleep 600")
		}
		return harness.Start(b, s), file
	}
	first, held := call("first")
	harness.Eventually(b, limit, "the first one holds", func() bool { return exists(held) })
	second, held := call("second")
	harness.Eventually(b, limit, "the second one waits", func() bool {
		if waits != "" {
			return strings.Contains(second.Stderr(), waits)
		}
		all, _, err := c.Client().Session().List(nil)
		return err == nil && len(all) >= 2
	})
	spread(b, i)
	start := time.Now()
	first.Kill()
	await(b, "the second one holds", func() bool { return exists(held) })
	took := time.Since(start)
	first.KillGroup()
	second.KillGroup()
	return took
}

// rolloutRecovery is recovery for two orchestrators of a rollout to nodes whose
// agents never answer.
func rolloutRecovery(b *testing.B, c *harness.Consul, aimlock, prefix string, i int) time.Duration {
	b.Helper()
	dir := b.TempDir()
	for name, text := range map[string]string{
		"app.conf":    "revision = 1\n",
		"fleet.json":  `[{"node":"` + prefix + `"}]`,
		"rollout.hcl": rolloutSpec,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	// The node is there, and says nothing.
	service := &api.AgentServiceRegistration{ID: "aimlock-agent-" + prefix, Name: "aimlock-agent", Meta: map[string]string{"node": prefix}, Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}
	if err := c.Client().Agent().ServiceRegister(service); err != nil {
		b.Fatal(err)
	}
	kv := c.Client().KV()
	holder := func(p *harness.Process) func() bool {
		return func() bool {
			pair, _, err := kv.Get(prefix+"/locks/app.conf", nil)
			if err != nil || pair == nil || pair.Session == "" {
				return false
			}
			var rec struct {
				PID int `json:"pid"`
			}
			return json.Unmarshal(pair.Value, &rec) == nil && rec.PID == p.Pid()
		}
	}
	spec := harness.Spec{Path: aimlock, Args: []string{"rollout", "start", "-prefix", prefix, "rollout.hcl"}, Env: c.Env(), Dir: dir}
	first := harness.Start(b, spec)
	harness.Eventually(b, limit, "the order is given", func() bool {
		keys, _, err := kv.Keys(prefix+"/desired/", "", nil)
		return err == nil && len(keys) == 1
	})
	second := harness.Start(b, spec)
	harness.Eventually(b, limit, "the second one waits", func() bool { return strings.Contains(second.Stderr(), "app.conf: HELD") })
	spread(b, i)
	start := time.Now()
	first.Kill()
	await(b, "the second one holds", holder(second))
	took := time.Since(start)
	second.KillGroup()
	return took
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// await is harness.Eventually with a finer step, for what is measured.
func await(b *testing.B, what string, ok func() bool) {
	b.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			b.Fatalf("not within %v: %s", limit, what)
		}
	}
}

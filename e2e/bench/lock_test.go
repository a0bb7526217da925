package bench

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// BenchmarkAcquireRelease is one acquisition and one clean release of a free
// lock: by Consul's bare API, by aimlock in process, and by a whole call of a
// command that runs true under the lock.
func BenchmarkAcquireRelease(b *testing.B) {
	c := harness.StartConsul(b)
	b.Run("bare-api", func(b *testing.B) {
		client := c.Client()
		for b.Loop() {
			bare(b, client)
		}
	})
	b.Run("aimlock", func(b *testing.B) {
		client, err := consulkv.New(consulkv.Config{Address: c.Addr})
		if err != nil {
			b.Fatal(err)
		}
		locks, err := locksmith.New(locksmith.Config{Consul: client})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			h, err := locks.Acquire(b.Context(), locksmith.Request{Names: []string{"bench"}, Operation: "bench", Try: true})
			if err != nil {
				b.Fatal(err)
			}
			if err := h.Release(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	theirs := 0.0
	command := func(name string, spec harness.Spec) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				harness.Output(b, limit, spec)
			}
			each := b.Elapsed().Seconds() / float64(b.N)
			if theirs == 0 {
				theirs = each
			}
			b.ReportMetric(theirs/each, "ratio")
		})
	}
	command("consul-lock-true", harness.Spec{Path: harness.ConsulBin.Path(b), Args: []string{"lock", "bench/theirs", "true"}, Env: c.Env()})
	command("lock-exec-true", harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"lock", "exec", "bench", "--", "true"}, Env: c.Env()})
}

// bare is what a lock costs at least: a session, its acquisition, its release,
// and the session's end.
func bare(b *testing.B, c *api.Client) {
	b.Helper()
	id, _, err := c.Session().Create(&api.SessionEntry{TTL: "15s"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := &api.KVPair{Key: "bench/bare", Value: []byte("{}"), Session: id}
	if ok, _, err := c.KV().Acquire(p, nil); err != nil || !ok {
		b.Fatal(ok, err)
	}
	if ok, _, err := c.KV().Release(p, nil); err != nil || !ok {
		b.Fatal(ok, err)
	}
	if _, err := c.Session().Destroy(id, nil); err != nil {
		b.Fatal(err)
	}
}

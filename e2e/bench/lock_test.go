package bench

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// How often each is done in one round of a benchmark: a single one tells nothing.
const (
	lockRounds    = 100
	commandRounds = 20
)

// BenchmarkAcquireRelease is one acquisition and one clean release of a free
// lock: by Consul's bare API, by aimlock in process, and by a whole call of a
// command that runs true under the lock.
func BenchmarkAcquireRelease(b *testing.B) {
	c := harness.StartConsul(b)
	// Taken in turns, so that both meet the same machine.
	b.Run("in-process", func(b *testing.B) {
		var bareTimes, checkedTimes, first, whole, again []time.Duration
		client := c.Client()
		once, kept := locks(b, c, locksmith.Config{EndLater: true}), locks(b, c, locksmith.Config{Reuse: true})
		one := func() {
			bareTimes = append(bareTimes, timed(func() { bare(b, client) }))
			checkedTimes = append(checkedTimes, timed(func() { checked(b, client) }))
			// None meets what another put off.
			var released time.Duration
			whole = append(whole, timed(func() {
				released = timed(func() { acquireRelease(b, once) })
				if err := once.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}))
			first = append(first, released)
			again = append(again, timed(func() { acquireRelease(b, kept) }))
			noSessions(b, client)
		}
		for b.Loop() {
			for range lockRounds {
				one()
			}
		}
		base := median(bareTimes)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(base, "ms-bare-p50")
		b.ReportMetric(median(checkedTimes)/base, "ratio-bare-with-check")
		b.ReportMetric(median(first), "ms-once-p50")
		b.ReportMetric(median(again), "ms-again-p50")
		b.ReportMetric(median(first)/base, "ratio-once")
		b.ReportMetric(median(whole)/base, "ratio-once-till-all-is-gone")
		b.ReportMetric(median(again)/base, "ratio-again")
	})
	b.Run("lock-exec-true", func(b *testing.B) {
		theirs := harness.Spec{Path: harness.ConsulBin.Path(b), Args: []string{"lock", "bench/theirs", "true"}, Env: c.Env()}
		ours := harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"lock", "exec", "bench", "--", "true"}, Env: c.Env()}
		var theirTimes, ourTimes []time.Duration
		for b.Loop() {
			for range commandRounds {
				theirTimes = append(theirTimes, timed(func() { harness.Output(b, limit, theirs) }))
				ourTimes = append(ourTimes, timed(func() { harness.Output(b, limit, ours) }))
			}
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(median(theirTimes), "ms-consul-lock-p50")
		b.ReportMetric(median(ourTimes), "ms-p50")
		b.ReportMetric(median(theirTimes)/median(ourTimes), "ratio")
	})
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

// checked is bare with a session that is bound to a check of its own, which takes
// it along at its end.
func checked(b *testing.B, c *api.Client) {
	b.Helper()
	const service = "bench-holder"
	err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: service, Name: service, Check: &api.AgentServiceCheck{CheckID: service, TTL: "10s", Status: api.HealthPassing}})
	if err != nil {
		b.Fatal(err)
	}
	id, _, err := c.Session().Create(&api.SessionEntry{TTL: "15s", NodeChecks: []string{"serfHealth"}, ServiceChecks: []api.ServiceCheck{{ID: service}}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := &api.KVPair{Key: "bench/checked", Value: []byte("{}"), Session: id}
	if ok, _, err := c.KV().Acquire(p, nil); err != nil || !ok {
		b.Fatal(ok, err)
	}
	if ok, _, err := c.KV().Release(p, nil); err != nil || !ok {
		b.Fatal(ok, err)
	}
	if err := c.Agent().ServiceDeregister(service); err != nil {
		b.Fatal(err)
	}
}

// locks makes a client that takes the locks of a benchmark.
func locks(b *testing.B, c *harness.Consul, cfg locksmith.Config) *locksmith.Client {
	b.Helper()
	client, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		b.Fatal(err)
	}
	cfg.Consul = client
	l, err := locksmith.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return l
}

func acquireRelease(b *testing.B, l *locksmith.Client) {
	b.Helper()
	h, err := l.Acquire(b.Context(), locksmith.Request{Names: []string{"bench"}, Operation: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Release(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// noSessions waits until all sessions have ended.
func noSessions(b *testing.B, c *api.Client) {
	b.Helper()
	for {
		list, meta, err := c.Session().List(nil)
		if err != nil {
			b.Fatal(err)
		}
		if len(list) == 0 {
			return
		}
		if _, _, err := c.Session().List(&api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: limit}); err != nil {
			b.Fatal(err)
		}
	}
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// median in milliseconds.
func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

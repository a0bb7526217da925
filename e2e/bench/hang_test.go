package bench

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// hangWatch is for how long consul lock is watched not to free a lock. Nothing in it
// would ever do so: its holder renews the session as long as it runs.
const hangWatch = time.Minute

// hangPolicy breaks a lock that has been held for longer than its work can take.
const hangPolicy = `policy "bench" {
  locks = ["**"]
  hot "hangs" {
    when = lock.held_for > 5
  }
  break {
    approval = "auto"
    confirm {
      observations = 2
      every        = "500ms"
    }
    step "request" {
      wait = "2s"
    }
    step "take" {
    }
    budget {
      max = 1000
      per = "1h"
    }
  }
}
`

// BenchmarkHang is a holder that is alive and does nothing any more: the time from
// the start of its command to the start of the next one's. consul lock knows only
// whether the holder lives, and never frees it; aimlock judges by policy, here by one
// that calls a lock hot after 5 s.
func BenchmarkHang(b *testing.B) {
	c := harness.StartConsul(b)
	dir := b.TempDir()
	write(b, filepath.Join(dir, "policy.hcl"), hangPolicy)
	pair := func(spec func(script string) harness.Spec) (start time.Time, next string, stop func()) {
		first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
		p := harness.Start(b, spec("touch "+first+"; while :; do sleep 1; done"))
		await(b, "the first command runs", func() bool { return exists(first) })
		start = time.Now()
		q := harness.Start(b, spec("touch "+second+"; while :; do sleep 1; done"))
		return start, second, func() { q.KillGroup(); p.KillGroup() }
	}
	b.Run("lock-exec", func(b *testing.B) {
		for b.Loop() {
			start, next, stop := pair(func(script string) harness.Spec {
				return harness.Spec{Path: harness.Aimlock.Path(b), Args: []string{"lock", "exec", "-policy", filepath.Join(dir, "policy.hcl"), "hang", "--", "sh", "-c", script}, Env: c.Env(), Dir: dir}
			})
			await(b, "the next command runs", func() bool { return exists(next) })
			b.ReportMetric(time.Since(start).Seconds(), "s-to-next")
			stop()
		}
		b.ReportMetric(0, "ns/op")
	})
	dir = b.TempDir()
	b.Run("consul-lock", func(b *testing.B) {
		for b.Loop() {
			_, next, stop := pair(func(script string) harness.Spec {
				return harness.Spec{Path: harness.ConsulBin.Path(b), Args: []string{"lock", "hang", script}, Env: c.Env(), Dir: dir}
			})
			over := time.NewTimer(hangWatch)
			<-over.C
			held := 1.0
			if exists(next) {
				held = 0
			}
			b.ReportMetric(held, "held-after-a-minute")
			stop()
		}
		b.ReportMetric(0, "ns/op")
	})
}

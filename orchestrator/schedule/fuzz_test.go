package schedule_test

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/schedule"
)

// FuzzSchedule: a window is refused, or tells of any time whether it is open, and of
// a change that lies ahead, within a time that nobody notices.
func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"0 2 * * 1-5", "*/7 1-4 * * *", "* * * * *", "0 0 29 2 *", "0 0 31 2 *", "@daily", "TZ=UTC 0 0 * * *", "0 0 L * *", "1-60 * * * *", "0 0 * * 7", "*/0 * * * *"} {
		f.Add(s, "Europe/Berlin", int64(4*time.Hour), int64(1e9))
		f.Add(s, "", int64(7*24*time.Hour), int64(1_774_742_400))
	}
	f.Add("0 0 * * *", "../../etc/passwd", int64(time.Hour), int64(0))
	f.Fuzz(func(t *testing.T, text, zone string, duration, now int64) {
		start := time.Now()
		s, err := schedule.Parse(orchestrator.Window{Schedule: text, Timezone: zone, Duration: time.Duration(duration)})
		if err != nil {
			return
		}
		at := time.Unix(now%(1<<34), 0)
		_, change := s.At(at)
		if !change.IsZero() && !change.After(at) {
			t.Fatalf("%q at %s changes at %s", text, at, change)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("%q in %q took %s", text, zone, took)
		}
	})
}

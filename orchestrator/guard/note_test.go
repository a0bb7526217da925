package guard

import (
	"context"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// A lock that is UNKNOWN for a moment, as many are while their hold begins, is no
// line in the log; one that stays so is one, with what is missing.
func TestUnknownForAMoment(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n when = rollout.finished && rollout.finished_ago > 60\n }\n}\n")
		s.leads(10 * time.Second)
		begin := func(name, rollout string) {
			h, err := w.client(asElsewhere).Acquire(t.Context(), locksmith.Request{Names: []string{name}, Operation: "test", Try: true, RolloutID: rollout})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = h.Release(context.Background()) })
		}
		begin("app.conf", "r1")
		w.until(3*time.Second, "it is UNKNOWN", func() bool { return s.Health().States[locksmith.Unknown] == 1 })
		w.put(w.keys.Rollout("r1"), map[string]any{"version": 1, "state": "running"})
		w.until(3*time.Second, "it is HELD", func() bool { return s.Health().States[locksmith.Held] == 1 })
		w.stays(time.Minute, "nothing is said", func() bool { return !s.log.has("UNKNOWN") && !s.log.has("lock is HELD") })

		begin("web.conf", "r2")
		w.stays(4*time.Second, "nothing is said yet", func() bool { return !s.log.has("UNKNOWN") })
		w.until(4*time.Second, "it is said", func() bool {
			return s.log.has("lock is UNKNOWN: it is not broken on unknown evidence: lock=web.conf") && s.log.has("the rollout r2 has no record")
		})
		w.put(w.keys.Rollout("r2"), map[string]any{"version": 1, "state": "running"})
		w.until(3*time.Second, "its end is said", func() bool { return s.log.has("lock is HELD: lock=web.conf") && s.log.has("was=UNKNOWN") })
		w.stays(time.Minute, "once", func() bool { return s.log.count("lock is UNKNOWN") == 1 })
	})
}

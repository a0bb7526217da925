package runner_test

import (
	"context"
	"errors"
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// Whoever comes after a rollout through a target waits before it begins, unless the
// target refuses older orders itself: else what stands behind the agents may not check
// an order.
func TestTargetsAreOwedAPause(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in := f.input("one", rest)
	pause := locksmith.DefaultQuiesce.Seconds()
	for _, c := range []struct {
		target *orchestrator.Target
		want   float64
	}{{nil, 0}, {&orchestrator.Target{Name: "fenced"}, 0}, {&orchestrator.Target{Name: "unfenced"}, pause}, {&orchestrator.Target{Name: "not to be asked"}, pause}} {
		in.Spec.Configs[0].Target = c.target
		locks, err := locksmith.New(locksmith.Config{Consul: f.kv, Prefix: keys.DefaultPrefix})
		if err != nil {
			t.Fatal(err)
		}
		r := runner.New(runner.Config{Consul: f.kv, Prefix: keys.DefaultPrefix, Locks: runner.Locksmith(locks), By: "tester",
			Fenced: func(_ context.Context, name string) (bool, error) {
				if name == "not to be asked" {
					return true, errors.New("it does not start")
				}
				return name == "fenced", nil
			}})
		key := keys.Prefix(keys.DefaultPrefix).Lock(config)
		_, err = r.FillEvents(t.Context(), &in.Spec, func(func(orchestrator.Tell), func() error) error {
			p, err := f.kv.Get(t.Context(), key)
			if err != nil {
				return err
			}
			var h records.Holder
			if err := records.Decode(key, p.Value, &h); err != nil {
				return err
			}
			if h.Quiesce != c.want {
				t.Errorf("with the target %v a pause of %v s is owed, want %v", c.target, h.Quiesce, c.want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

package runner_test

import (
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Whoever comes after a rollout through a target waits before it begins, as what
// stands behind the agents may not check an order.
func TestTargetsAreOwedAPause(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	in := f.input("one", rest)
	for want, target := range map[float64]*orchestrator.Target{0: nil, locksmith.DefaultQuiesce.Seconds(): {Name: "router"}} {
		in.Spec.Configs[0].Target = target
		key := keys.Prefix(keys.DefaultPrefix).Lock(config)
		_, err := f.runner().FillEvents(t.Context(), &in.Spec, func(func(orchestrator.Tell), func() error) error {
			p, err := f.kv.Get(t.Context(), key)
			if err != nil {
				return err
			}
			var h records.Holder
			if err := records.Decode(key, p.Value, &h); err != nil {
				return err
			}
			if h.Quiesce != want {
				t.Errorf("with the target %v a pause of %v s is owed, want %v", target, h.Quiesce, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

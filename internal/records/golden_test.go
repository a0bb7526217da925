package records

import (
	"reflect"
	"testing"

	"github.com/aim-control/aimlock/internal/golden"
)

// Every record that stands in somebody's Consul is read by every later version.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, typ := range map[string]any{
		"holder": Holder{}, "progress": Progress{}, "fence": Fence{}, "request": Request{}, "break": Break{}, "budget": Budget{}, "policy_active": PolicyActive{},
		"policy_version": PolicyVersion{}, "policy_suspended": PolicySuspended{}, "silence": Silence{}, "desired": Desired{}, "actual": Actual{}, "observed": Observed{},
		"rollout_events": RolloutEvents{},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden.Check(t, golden.Record{
				Name: name, Version: Version, Type: typ,
				Decode: func(b []byte) (any, error) {
					v := reflect.New(reflect.TypeOf(typ)).Interface()
					return v, Decode("key", b, v)
				},
				Encode: func(v any) ([]byte, error) { return Encode(v), nil },
			})
		})
	}
}

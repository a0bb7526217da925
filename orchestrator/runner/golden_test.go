package runner

import (
	"reflect"
	"testing"

	"github.com/aim-control/aimlock/internal/golden"
	"github.com/aim-control/aimlock/internal/records"
)

// What the runner writes by itself is read by every later version.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, typ := range map[string]any{"command": commandRecord{}, "queued": queuedRecord{}} {
		golden.Check(t, golden.Record{
			Name: name, Version: records.Version, Type: typ,
			Decode: func(b []byte) (any, error) {
				v := reflect.New(reflect.TypeOf(typ)).Interface()
				return v, records.Decode("key", b, v)
			},
			Encode: func(v any) ([]byte, error) { return records.Encode(v), nil },
		})
	}
}

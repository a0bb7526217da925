package journal

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/aim-control/aimlock/internal/golden"
)

// Entries of journals that were kept are read by every later version.
func TestGolden(t *testing.T) {
	t.Parallel()
	golden.Check(t, golden.Record{
		Name: "entry", Version: Version, Field: "v", Type: Entry{},
		Decode: func(b []byte) (any, error) {
			e, problem := decode(b, false)
			if problem != "" {
				return nil, errors.New(problem)
			}
			return e, nil
		},
		Encode: json.Marshal,
	})
}

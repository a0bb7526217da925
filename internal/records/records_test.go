package records_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

// A record of this version begins as Decode expects, a newer one is told by
// name, and what is none is refused.
func TestDecode(t *testing.T) {
	t.Parallel()
	b := records.Encode(&records.Progress{Version: records.Version, Lock: "a", Done: 3})
	if !strings.HasPrefix(string(b), `{"version":1,`) {
		t.Errorf("a record begins otherwise: %.30s", b)
	}
	for name, in := range map[string]string{"as written": string(b), "by hand": ` { "done": 3, "version": 1 }`, "without": `{"done":3}`} {
		var p records.Progress
		if err := records.Decode("k", []byte(in), &p); err != nil || p.Done != 3 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	var p records.Progress
	if newer, ok := errors.AsType[*records.ErrNewer](records.Decode("k", []byte(`{"version":2,"done":"three"}`), &p)); !ok || newer.Version != 2 {
		t.Error("a newer record is not told by name")
	}
	for _, in := range []string{"", "[]", `{"version":1,`, `{"version":1,"done":"x"}`, strings.Repeat(" ", records.MaxSize+1)} {
		if err := records.Decode("k", []byte(in), &p); err == nil {
			t.Errorf("%.20q was taken for a record", in)
		}
	}
}

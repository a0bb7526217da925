package command

import (
	"encoding/json"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// A record may ask for any pause.
func TestShowSeconds(t *testing.T) {
	for s, want := range map[float64]string{0: "0s", 4.25: "4.3s", 61: "1m1s", 3 * 86400: "3 days", 1e308: "106751 days"} {
		if got := showSeconds(s); got != want {
			t.Errorf("showSeconds(%g) = %q, want %q", s, got, want)
		}
	}
}

func TestEvidenceHasEveryField(t *testing.T) {
	st := &locksmith.Status{Evidence: []records.Evidence{{Fact: "check.status", Value: json.RawMessage(`"passing"`), Known: true}}}
	out, err := json.Marshal(withEvidence(st))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Evidence []map[string]any `json:"evidence"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Evidence) != 1 {
		t.Fatalf("got %s", out)
	}
	for _, field := range []string{"fact", "value", "known", "why", "source", "observed_at"} {
		if _, ok := got.Evidence[0][field]; !ok {
			t.Errorf("a known fact has no field %q: %s", field, out)
		}
	}
}

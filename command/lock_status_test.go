package command

import (
	"encoding/json"
	"strings"
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

func TestProgressText(t *testing.T) {
	t.Parallel()
	n := func(i int64) *int64 { return &i }
	unit, age := "files", 7.2
	for want, p := range map[string]*locksmith.ProgressView{
		"1 of 2 files, last written 7.2s ago": {Done: n(1), Total: n(2), Unit: &unit, Age: &age},
		"1 of 2, last written 7.2s ago":       {Done: n(1), Total: n(2), Age: &age},
		"5, last written 7.2s ago":            {Done: n(5), Total: n(0), Age: &age},
	} {
		if got := progressText(p); got != want {
			t.Errorf("%q, and not %q", got, want)
		}
	}
}

// Who waits for a lock that nobody holds is told for how long.
func TestCoolingNoticeSaysHowLong(t *testing.T) {
	t.Parallel()
	var errs strings.Builder
	m := newMeta(t.Context(), IO{Stderr: &errs})
	m.notices()(locksmith.Notice{Kind: locksmith.NoticeWaiting, Lock: "a", Status: &locksmith.Status{Name: "a", State: locksmith.Cooling, Next: "Consul gives it out again in at most 15s (lock-delay)"}})
	if want := "a: COOLING; waiting: Consul gives it out again in at most 15s (lock-delay)\n"; errs.String() != want {
		t.Errorf("%q, and not %q", errs.String(), want)
	}
}

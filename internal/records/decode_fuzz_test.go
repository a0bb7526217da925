package records

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// Whatever stands in a key, it is decoded as encoding/json decodes it: what was
// written by other versions and by people's scripts keeps its meaning.
func FuzzDecode(f *testing.F) {
	f.Add(Encode(&Holder{
		Version: 1, Lock: "a", Locks: []string{"a", "b"}, Nonce: "n", Session: "s", Tool: "aimlock", Host: "h", PID: 4, StartTicks: 7,
		StartedAt: time.Unix(1e9, 5).UTC(), Processes: []Process{{PID: 5, StartTicks: 6}}, AcquiredBoot: 1.5, Quiesce: 15, Check: "c",
	}))
	f.Add(Encode(&Progress{Version: 1, Lock: "a", Session: "s", Token: 1 << 63, Done: 3, Total: 10, Unit: "hosts", At: time.Unix(1e9, 0).UTC()}))
	alive := false
	f.Add(Encode(&Observed{Version: 1, Kind: ObservedHost, Lock: "a", Alive: &alive, Remembers: []Remembered{{What: "hold", Age: 3}}}))
	f.Add(Encode(&Break{Version: 1, Lock: "a", Steps: []BreakStep{{Step: "take"}}, Evidence: []Evidence{{Fact: "holder.alive", Value: json.RawMessage("false")}}}))
	f.Add(Encode(&Desired{Version: 1, Revision: "r", Order: orchestrator.Order{Epoch: 1, Token: 2, Seq: 3}, Configs: []string{"a"}, Validate: &Command{Argv: []string{"x"}}, Target: &Target{Config: json.RawMessage(`{"a":1}`)}}))
	f.Add(Encode(&Actual{Version: 1, Node: "n", Refused: &orchestrator.Order{Token: 9}, Drift: &Drift{What: "w"}, Restored: &Restored{Times: 2}}))
	f.Add(Encode(&PolicyVersion{PolicyActive: PolicyActive{Version: 1, Who: Who{User: "u"}}, Policies: []PolicyOutline{{Parts: []PolicyPart{{Name: "p"}}}}, Values: map[string]string{"a": "b"}}))
	f.Add(Encode(&RolloutEvents{Version: 1, Events: []RolloutEvent{{N: 1, Counts: &orchestrator.Counts{}}}}))
	for _, s := range []string{
		`{"version":1,"LOCK":"folded","lock_":"no","l\u006fck":"escaped","pid":"4"}`, `{"version":1,"lock":"a","lock":"b","processes":[{"pid":1}],"processes":[{"start_ticks":2}]}`,
		`{"version":1,"lock":"\ud800\xff","boot-id":"x","Boot_ID":"y"}`, `{"version":1,"pid":1.0,"ttl":1e400}`, `{"version":1,"pid":1e2}`, `{"version":1,"lock":null,"pid":null,"processes":null,"at":null}`,
		`{"version":1,"at":"2020-01-01T00:00:00.5+24:00","started_at":"2020-1-1T0:00:00Z"}`, `{"version":1,"at":"2020-01-01T00:00:00,5Z"}`, ` {"version":1}` + "\n", `{"version":1} x`, `{"version":1,}`, `null`, `[]`, `{"version":1,"at":5}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []func() any{
			func() any { return &Holder{} }, func() any { return &Progress{} }, func() any { return &Observed{} }, func() any { return &Break{} }, func() any { return &Silence{} },
			func() any { return &Fence{} }, func() any { return &Request{} }, func() any { return &Budget{} }, func() any { return &PolicyActive{} }, func() any { return &PolicyVersion{} },
			func() any { return &PolicySuspended{} }, func() any { return &Desired{} }, func() any { return &Actual{} }, func() any { return &RolloutEvents{} },
		} {
			want, got := into(), into()
			wantErr := json.Unmarshal(b, want)
			var head struct {
				Version int `json:"version"`
			}
			if json.Unmarshal(b, &head) == nil && head.Version > Version {
				continue
			}
			err := Decode("k", b, got)
			if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
				t.Fatalf("%q is\n%+v (%v), and for encoding/json\n%+v (%v)", b, got, err, want, wantErr)
			}
		}
	})
}

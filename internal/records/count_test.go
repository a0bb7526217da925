package records

import (
	"testing"
	"time"
)

// BenchmarkCountDecode reads a holder and its progress, as a sweep does for each lock.
// Its counts are held to a baseline: make bench-check.
func BenchmarkCountDecode(b *testing.B) {
	at := time.Unix(1e9, 0).UTC()
	holder := Encode(&Holder{Version: 1, Lock: "job", Nonce: "n", Session: "s", Tool: "aimlock", Host: "h", PID: 4, StartTicks: 7, StartedAt: at, BootID: "b", PIDNS: "p", AcquiredAt: at, Quiesce: 15, TTL: 15})
	progress := Encode(&Progress{Version: 1, Lock: "job", Session: "s", Token: 5, Done: 3, Total: 10, Unit: "hosts", At: at})
	both := func() {
		for range 1000 {
			var h Holder
			var p Progress
			if err := Decode("k", holder, &h); err != nil {
				b.Fatal(err)
			}
			if err := Decode("k", progress, &p); err != nil {
				b.Fatal(err)
			}
		}
	}
	both() // what is made once
	b.ReportAllocs()
	for b.Loop() {
		both()
	}
}

package orchestrator

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A quantile of the answers is at least the true one, and at most a factor of
// the square root of 2 above it; merging loses nothing.
func TestAnswers(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ms := rapid.SliceOfN(rapid.IntRange(10, 3_000_000), 1, 60).Draw(t, "ms")
		var all, a, b Answers
		for i, m := range ms {
			d := time.Duration(m) * time.Millisecond
			all.Add(d)
			if i%2 == 0 {
				a.Add(d)
			} else {
				b.Add(d)
			}
		}
		raw, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var read Answers
		if err := json.Unmarshal(raw, &read); err != nil {
			t.Fatal(err)
		}
		read.Merge(b)
		q := rapid.Float64Range(0.01, 1).Draw(t, "q")
		got := all.Quantile(q)
		if m := read.Quantile(q); read.N != len(ms) || m != got {
			t.Fatalf("merged: %d answers, quantile %s, not %s", read.N, m, got)
		}
		within, near := 0, 0
		for _, m := range ms {
			d := time.Duration(m) * time.Millisecond
			if d <= got+time.Microsecond {
				within++
			}
			if float64(d) <= float64(got)/1.4143 {
				near++
			}
		}
		if float64(within) < q*float64(len(ms)) || float64(near) >= q*float64(len(ms)) {
			t.Fatalf("%s has %d of %d within, and %d well within, for %f", got, within, len(ms), near, q)
		}
		n := rapid.IntRange(1, 100000).Draw(t, "nodes")
		p := rapid.IntRange(0, 2000).Draw(t, "parallel")
		if est := all.Time(n, p); est < all.Quantile(0.95)-time.Microsecond || all.Time(n+1, p) < est-time.Microsecond {
			t.Fatalf("%d nodes by %d take %s", n, p, est)
		}
	})
	var none Answers
	if none.Mean() != 0 || none.Quantile(0.5) != 0 || none.Time(5, 1) != 0 {
		t.Error("nothing measured, and still an estimate")
	}
}

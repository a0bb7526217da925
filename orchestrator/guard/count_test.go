package guard

import (
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
)

// BenchmarkCountJudgement is the first verdict on each of 10,000 locks, and
// BenchmarkCountChange what one that changed costs. Their counts are held to a
// baseline: make bench-check.
func BenchmarkCountJudgement(b *testing.B) {
	c := crowd(b, nil)
	snaps, err := Sweeps(c.Reader())([]string{keys.DefaultPrefix + "locks/"}).Read(b.Context())
	if err != nil || len(snaps) != benchLocks {
		b.Fatalf("%d locks, %v", len(snaps), err)
	}
	g, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
	if err != nil {
		b.Fatal(err)
	}
	g.source = &feed{}
	b.Run("first", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fresh, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
			if err != nil {
				b.Fatal(err)
			}
			fresh.source = &feed{}
			fresh.update(batch{from: fresh.source, first: true, locks: snaps})
		}
	})
	g.update(batch{from: g.source, first: true, locks: snaps})
	b.Run("changes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for n := range 1000 {
				g.update(batch{from: g.source, locks: snaps[n : n+1]})
			}
		}
	})
}

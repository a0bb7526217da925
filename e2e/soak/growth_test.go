package soak

import (
	"math/rand/v2"
	"testing"
	"time"
)

// What is flat under noise is flat, whatever stands out; a leak of a little in each
// round is told.
func TestGrowth(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		flat, outliers, leak := series{slack: 2}, series{slack: 2}, series{slack: 2}
		for i := range 600 {
			at := time.Duration(i) * 3 * time.Second
			noise := 100 + rnd.NormFloat64()*5
			flat.add(at, noise)
			if rnd.IntN(5) == 0 {
				outliers.add(at, noise*3)
			} else {
				outliers.add(at, noise)
			}
			leak.add(at, noise+float64(i)*0.05)
		}
		for name, s := range map[string]series{"flat": flat.settled(), "outliers": outliers.settled()} {
			if g := s.growth(); g > s.allowed() {
				t.Errorf("seed %d: %s grew by %.1f of %.1f allowed", seed, name, g, s.allowed())
			}
		}
		if s := leak.settled(); s.growth() <= s.allowed() {
			t.Errorf("seed %d: a leak of 0.05 in each of 600 rounds grew by %.1f, and %.1f are allowed", seed, s.growth(), s.allowed())
		}
	}
}

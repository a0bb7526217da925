package soak

import (
	"math"
	"slices"
	"time"
)

// series is what one thing measured, over time.
type series struct {
	name, unit string
	at         []time.Duration
	values     []float64
	// slack is by how much it may have grown at the end of the run beyond a share
	// of what it was: what a garbage collector or a pool of connections does by
	// itself. Below 0: it is shown, and may grow.
	slack float64
}

// share of its median by which anything may have grown, or shrunk, over a run.
const share = 0.05

func (s *series) add(at time.Duration, v float64) {
	s.at, s.values = append(s.at, at), append(s.values, v)
}

// settled are the samples without the first part of the run, in which caches fill
// and what retention keeps is not there yet.
func (s *series) settled() series {
	from := len(s.at) * 2 / 5
	return series{name: s.name, unit: s.unit, at: s.at[from:], values: s.values[from:], slack: s.slack}
}

// slope is by how much it grew in a second: the median of the slopes between all
// pairs of samples (Theil–Sen), which up to 29 % of samples that stand out cannot
// change.
func (s *series) slope() float64 {
	var all []float64
	// At most some 150 samples, evenly: their pairs are enough.
	step := max(1, len(s.at)/150)
	for i := 0; i < len(s.at); i += step {
		for j := i + step; j < len(s.at); j += step {
			if d := (s.at[j] - s.at[i]).Seconds(); d > 0 {
				all = append(all, (s.values[j]-s.values[i])/d)
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	return median(all)
}

// growth is by how much it grew over its samples.
func (s *series) growth() float64 {
	if len(s.at) == 0 {
		return 0
	}
	return s.slope() * (s.at[len(s.at)-1] - s.at[0]).Seconds()
}

// allowed is the most that growth may be.
func (s *series) allowed() float64 {
	if len(s.values) == 0 || s.slack < 0 {
		return math.Inf(1)
	}
	return share*median(s.values) + s.slack
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

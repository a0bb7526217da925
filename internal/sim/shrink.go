package sim

import "testing"

// Shrink leaves out of a plan what the violation does not need: halves, then ever
// smaller parts of its events, down to single ones, for as long as the same
// invariant is still broken. It makes at most tries runs.
func Shrink(t *testing.T, r *Result, opts Options, tries int) *Result {
	t.Helper()
	best := r
	for size := max(1, len(best.Plan.Events)/2); size >= 1 && tries > 0; size /= 2 {
		for from := 0; from < len(best.Plan.Events) && tries > 0; {
			tries--
			to := min(from+size, len(best.Plan.Events))
			o := Run(t, r.Seed, best.Plan.Without(from, to), opts)
			if o.Violation != nil && o.Violation.Invariant == r.Violation.Invariant {
				best = o // what came after stands in its place now
				continue
			}
			from = to
		}
	}
	return best
}

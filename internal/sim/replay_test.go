//go:build simreplay

package sim

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
)

// replays: each twentieth seed of a run is run twice, too.
const replays = true

// One seed gives one history: the same in every run, whatever the garbage collector
// does, and on one processor as on several. It rests on the overlay of `make sim`: Go's
// own select takes a case by chance.
func TestReplay(t *testing.T) {
	opts := Options{Dir: memDir(t), Trace: true}
	for s := *from; s < *from+min(*seeds, 10); s++ {
		plan := NewPlan(s, *harder)
		procs := runtime.GOMAXPROCS(1)
		a := Run(t, s, plan, opts)
		runtime.GOMAXPROCS(max(2, procs))
		heap := debug.SetGCPercent(20)
		b := Run(t, s, plan, opts)
		debug.SetGCPercent(heap)
		runtime.GOMAXPROCS(procs)
		if a.Hash != b.Hash || a.Steps != b.Steps {
			t.Errorf("seed %d has two histories: %s", s, parting(a.Trace, b.Trace))
		}
	}
}

// parting is where two histories part.
func parting(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("line %d of %d and %d\n%s\n--- and\n%s\n--- after\n%s", i, len(a), len(b),
				strings.Join(a[i:min(i+6, len(a))], "\n"), strings.Join(b[i:min(i+6, len(b))], "\n"), strings.Join(a[max(0, i-2):i], "\n"))
		}
	}
	return fmt.Sprintf("one is %d lines long, the other %d", len(a), len(b))
}

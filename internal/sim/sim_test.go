package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What `make sim` sets.
var (
	seeds   = flag.Uint64("seeds", 0, "how many seeds")
	from    = flag.Uint64("from", 1, "the first seed")
	trace   = flag.Bool("trace", false, "print the whole history of each seed, not only what went wrong")
	shrink  = flag.Bool("shrink", true, "look for the shortest story of a violation")
	workers = flag.Int("workers", 2, "how many seeds run at the same time")
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A run is short and leaves little: the collector would be most of its cost.
	debug.SetGCPercent(800)
	m.Run()
}

// memDir is a folder in memory, where there is one: nothing in it is to survive.
func memDir(t *testing.T) string {
	t.Helper()
	if d, err := os.MkdirTemp("/dev/shm", "aimlock-sim-"); err == nil { //nolint:usetesting // t.TempDir is on a disk
		t.Cleanup(func() { _ = os.RemoveAll(d) })
		return d
	}
	return t.TempDir()
}

// TestQuiet: where nothing goes wrong everything comes right, and an event that is
// taken out does not happen.
func TestQuiet(t *testing.T) {
	plan := NewPlan(1)
	plan.Events = nil
	r := Run(t, 1, plan, Options{Dir: memDir(t)})
	if r.Violation != nil || r.Steps < 100 {
		t.Fatalf("%s\n%s", r, strings.Join(r.Story, "\n"))
	}
}

// TestSeeds runs the seeds until one breaks an invariant. Without the overlay of
// `make sim`, which has them replay, it is not run.
func TestSeeds(t *testing.T) {
	if *seeds == 0 {
		t.Skip("make sim runs it")
	}
	opts := Options{Dir: memDir(t), Trace: *trace}
	start := time.Now()
	var next, steps, done atomic.Uint64
	var found atomic.Pointer[Result]
	next.Store(*from)
	t.Run("run", func(t *testing.T) {
		for i := range *workers {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for found.Load() == nil {
					s := next.Add(1) - 1
					if s >= *from+*seeds {
						return
					}
					r := Run(t, s, NewPlan(s), opts)
					steps.Add(uint64(r.Steps))
					if n := done.Add(1); n%1000 == 0 {
						t.Logf("%d seeds, %s", n, time.Since(start).Round(time.Second))
					}
					switch {
					case r.Violation != nil:
						found.CompareAndSwap(nil, r)
					case *trace:
						t.Log("\n" + strings.Join(r.Trace, "\n"))
					}
				}
			})
		}
	})
	if r := found.Load(); r != nil {
		tell(t, r, opts)
		return
	}
	t.Logf("%d seeds from %d on, %d steps, no violation, %s", done.Load(), *from, steps.Load(), time.Since(start).Round(time.Second))
}

// tell tells of a violation: where it was found, the shortest story of it, and how
// to see it again.
func tell(t *testing.T, r *Result, opts Options) {
	t.Helper()
	t.Errorf("VIOLATION seed %d: %s", r.Seed, r.Violation.Invariant)
	if *trace {
		t.Log("\n" + strings.Join(r.Trace, "\n"))
	}
	short := r
	if *shrink {
		short = Shrink(t, r, opts, 40)
	}
	t.Logf("\n%s\n\nits story:\n%s\n\nsee it again:  make sim SEED=%d\nall of it:     make sim SEED=%d TRACE=1",
		short, strings.Join(short.Story, "\n"), r.Seed, r.Seed)
}

// The draws of one name do not depend on those of another, and spread over their
// whole range.
func TestDraw(t *testing.T) {
	t.Parallel()
	seen := map[uint64]bool{}
	low, high := 0, 0
	for n := range uint64(1000) {
		d := draw(7, "x", n)
		if seen[d] || d != draw(7, "x", n) || d == draw(8, "x", n) || d == draw(7, "y", n) {
			t.Fatalf("draw %d: %x", n, d)
		}
		seen[d] = true
		if d%100 < 50 {
			low++
		}
		if d>>63 == 1 {
			high++
		}
	}
	if low < 400 || low > 600 || high < 400 || high > 600 {
		t.Fatalf("%d of 1000 are below the middle, %d have the highest bit", low, high)
	}
}

// A plan depends on its seed alone, and leaving an event out leaves the others.
func TestPlan(t *testing.T) {
	t.Parallel()
	kinds := map[string]bool{}
	var once sync.Once
	for s := range uint64(500) {
		p, q := NewPlan(s), NewPlan(s)
		if a, b := strings.Join(p.Lines(), "\n"), strings.Join(q.Lines(), "\n"); a != b {
			t.Fatalf("seed %d has two plans:\n%s\n%s", s, a, b)
		}
		for i, e := range p.Events {
			kinds[e.Kind] = true
			if e.At < 0 || e.At > p.Length || i > 0 && e.At < p.Events[i-1].At {
				t.Fatalf("seed %d: %v of %s", s, e, p.Length)
			}
		}
		once.Do(func() {
			if len(p.Without(0, 1).Events) != len(p.Events)-1 || p.Without(0, 1).Events[0] != p.Events[1] {
				t.Fatal("another event went than the first")
			}
		})
	}
	if len(kinds) != 17 {
		t.Fatalf("%d kinds of events in 500 plans: %v", len(kinds), kinds)
	}
}

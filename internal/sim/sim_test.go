package sim

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strconv"
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
	workers = flag.Int("workers", runtime.NumCPU(), "how many processes run seeds at the same time")
	harder  = flag.Bool("harder", false, "breaks that are under way for long, crowds of hung locks, wrong clocks, rollouts of two configs too")
	stride  = flag.Uint64("stride", 0, "a worker's own: it runs every so many-th seed")
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
	plan := NewPlan(1, false)
	plan.Events = nil
	r := Run(t, 1, plan, Options{Dir: memDir(t)})
	if r.Violation != nil || r.Steps < 100 {
		t.Fatalf("%s\n%s", r, strings.Join(r.Story, "\n"))
	}
}

// TestSeeds runs the seeds until one breaks an invariant. Without the overlay of
// `make sim`, which has them replay, it is not run.
func TestSeeds(t *testing.T) {
	switch {
	case *seeds == 0:
		t.Skip("make sim runs it")
	case *stride > 0:
		go func() { // it ends with whoever started it
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
		work(t)
		return
	case *workers < 2 || *seeds < 2:
		*stride = 1
		work(t)
		return
	}
	start := time.Now()
	var done, steps atomic.Uint64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for i := range uint64(*workers) {
		wg.Go(func() {
			cmd := worker(ctx, *from+i, (*seeds+uint64(*workers)-1-i)/uint64(*workers))
			if _, err := cmd.StdinPipe(); err != nil {
				t.Error(err)
				return
			}
			out, err := cmd.Output()
			if m := summary.FindSubmatch(out); m != nil && err == nil {
				n, _ := strconv.ParseUint(string(m[1]), 10, 64)
				s, _ := strconv.ParseUint(string(m[2]), 10, 64)
				done.Add(n)
				steps.Add(s)
				return
			}
			if ctx.Err() == nil { // nobody else found anything before
				cancel()
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	if !t.Failed() {
		t.Logf("%d seeds from %d on, %d steps, no violation, %s", done.Load(), *from, steps.Load(), time.Since(start).Round(time.Second))
	}
}

var summary = regexp.MustCompile(`(\d+) seeds from \d+ on, (\d+) steps, no violation`)

// worker is a process that runs a share of the seeds. Nothing in a world happens at
// the same time, so a world has one processor; and nothing there is to be preempted.
func worker(ctx context.Context, first, n uint64) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestSeeds$", "-test.v", "-test.timeout=0",
		fmt.Sprint("-from=", first), fmt.Sprint("-seeds=", n), fmt.Sprint("-stride=", *workers), fmt.Sprint("-shrink=", *shrink), fmt.Sprint("-trace=", *trace), fmt.Sprint("-harder=", *harder))
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1,adaptivestackstart=1")
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	return cmd
}

// again is every how many-th seed is run twice: more at the beginning, which is what
// each change runs.
func again(seed uint64) uint64 {
	if seed <= 1000 {
		return 20
	}
	return 100
}

// work runs seeds in this process.
func work(t *testing.T) {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // as the workers have it
	opts := Options{Dir: memDir(t), Trace: *trace}
	start, steps := time.Now(), 0
	for i := range *seeds {
		s := *from + i**stride
		plan := NewPlan(s, *harder)
		r := Run(t, s, plan, opts)
		if r.Violation != nil {
			tell(t, r, opts)
			return
		}
		steps += r.Steps
		if replays && s%again(s) == 0 {
			if o := Run(t, s, NewPlan(s, *harder), opts); o.Hash != r.Hash {
				t.Errorf("seed %d has two histories: of %d steps and of %d; see where they part:  make sim SEED=%d", s, r.Steps, o.Steps, s)
				return
			}
		}
		if *trace {
			t.Log("\n" + strings.Join(r.Trace, "\n"))
		}
		if *from == 1 && (i+1)*max(1, *stride)%1000 == 0 {
			fmt.Fprintf(os.Stderr, "%d seeds, %s\n", (i+1)**stride, time.Since(start).Round(time.Second))
		}
	}
	t.Logf("%d seeds from %d on, %d steps, no violation, %s", *seeds, *from, steps, time.Since(start).Round(time.Second))
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
		p, q := NewPlan(s, true), NewPlan(s, true)
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
	if len(kinds) != 24 {
		t.Fatalf("%d kinds of events in 500 plans: %v", len(kinds), kinds)
	}
}

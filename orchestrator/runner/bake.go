package runner

import (
	"maps"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/orchestrator"
)

// A bake ends by clocks that cannot be set: the core counts the time under each
// hold by that hold's own monotonic clock, and the header carries the sum. What
// passes between two holds (the ticks of a periodic job, a crash and the next
// start) is counted too where both are on one host: its clock since boot is
// noted in the header when a bake is first seen there. Time between holds on
// different hosts does not count, because only their wall clocks could tell it,
// and those may be hours apart. So a bake may last longer than it should where
// ticks come from ever new hosts, and never ends early.

const (
	// bakeNoted is how often the header is written while a stage bakes: what a
	// holder that is killed loses of a bake, for a successor on another host.
	bakeNoted = 20 * time.Second
	// maxBakeMarks bounds the hosts that a header remembers.
	maxBakeMarks = 32
)

// Clock reads a clock that cannot be set and goes on while the host sleeps, in
// seconds, and names what it belongs to: a host between two boots. An empty name
// means that there is none.
type Clock func() (name string, seconds float64)

// bootClock is the Clock of this host. A container can have a time namespace,
// whose clock differs from its host's.
var bootClock = func() Clock {
	name := sync.OnceValue(func() string {
		self, err := hostproc.Self()
		if err != nil || self.BootID == "" {
			return ""
		}
		// Where there are no time namespaces, all processes are in one.
		ns, _ := os.Readlink("/proc/self/ns/time")
		return self.BootID + " " + ns
	})
	return func() (string, float64) {
		if name() == "" {
			return "", 0
		}
		return name(), hostproc.BootSeconds()
	}
}()

// bakedBy is how long the present stage of a header has baked: what is noted
// there, or more where this host's clock proves it.
func bakedBy(h *orchestrator.Header, clock Clock) time.Duration {
	name, at := clock()
	mark, ok := h.BakeMarks[name]
	if h.BakingSince == nil || name == "" || !ok {
		return h.Baked
	}
	// A mark that is nonsense proves nothing: the longest bake is bounded far
	// below this.
	since := at - mark
	if !(since > 0 && since < float64(math.MaxInt64)/float64(time.Second)/2) {
		return h.Baked
	}
	return max(h.Baked, time.Duration(since*float64(time.Second)))
}

// mark notes in a header that is about to be written when its bake would have
// begun by this host's clock. before is the header written last.
func mark(h, before *orchestrator.Header, clock Clock) {
	h.BakeMarks = nil
	if h.BakingSince == nil {
		return
	}
	marks := map[string]float64{}
	if before.BakingSince != nil && before.BakingSince.Equal(*h.BakingSince) && before.StageIndex == h.StageIndex {
		marks = maps.Clone(before.BakeMarks)
	}
	name, at := clock()
	if name != "" {
		begun := at - h.Baked.Seconds()
		if old, ok := marks[name]; ok {
			begun = min(begun, old)
		} else if len(marks) >= maxBakeMarks {
			delete(marks, slices.Min(slices.Collect(maps.Keys(marks))))
		}
		if marks == nil {
			marks = map[string]float64{}
		}
		marks[name] = begun
	}
	h.BakeMarks = marks
}

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

// A bake, and the deadline of a rollout likewise, ends by clocks that cannot be set: the core counts the time under each
// hold by that hold's own monotonic clock, and the header carries the sum. What
// passes between two holds (the ticks of a periodic job, a crash and the next
// start) is counted too where both are on one host: its clock since boot is
// noted in the header when a bake is first seen there. Time between holds on
// different hosts does not count, because only their wall clocks could tell it,
// and those may be hours apart. So a bake may last longer than it should where
// ticks come from ever new hosts, and never ends early.

const (
	// bakeNoted is how often the header is written while a stage bakes or a
	// deadline runs: what a holder that is killed loses of either, for a
	// successor on another host.
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
func bootClock() Clock {
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
}

// bakedBy is how long the present stage of a header has baked: what is noted
// there, or more where this host's clock proves it.
func bakedBy(h *orchestrator.Header, clock Clock) time.Duration {
	if h.BakingSince == nil {
		return h.Baked
	}
	return proved(h.Baked, h.BakeMarks, clock)
}

// elapsedBy is how much of the deadline of a header's rollout is used: what is
// noted there, or more where this host's clock proves it.
func elapsedBy(h *orchestrator.Header, clock Clock) time.Duration {
	if !h.Ticking() {
		return h.Elapsed
	}
	return proved(h.Elapsed, h.ElapsedMarks, clock)
}

// proved is a time that was noted, or a longer one that has passed by this
// host's clock since its mark.
func proved(noted time.Duration, marks map[string]float64, clock Clock) time.Duration {
	name, at := clock()
	begun, ok := marks[name]
	if name == "" || !ok {
		return noted
	}
	// A mark that is nonsense proves nothing: the longest bake and the longest
	// deadline are bounded far below this.
	since := at - begun
	if !(since > 0 && since < float64(math.MaxInt64)/float64(time.Second)/2) {
		return noted
	}
	return max(noted, time.Duration(since*float64(time.Second)))
}

// mark notes in a header that is about to be written when its bake would have
// begun by this host's clock, and with limited, which is for a rollout with a
// deadline, the used part of that. before is the header written last.
func mark(h, before *orchestrator.Header, limited bool, clock Clock) {
	same := before.BakingSince != nil && h.BakingSince != nil && before.BakingSince.Equal(*h.BakingSince) && before.StageIndex == h.StageIndex
	h.BakeMarks = marked(h.BakingSince != nil, h.Baked, before.BakeMarks, same, clock)
	h.ElapsedMarks = marked(limited && h.Ticking(), h.Elapsed, before.ElapsedMarks, before.Ticking() && before.Elapsed <= h.Elapsed, clock)
}

// marked are the marks of a time that runs, with those of before where it has
// run since.
func marked(runs bool, passed time.Duration, before map[string]float64, same bool, clock Clock) map[string]float64 {
	if !runs {
		return nil
	}
	var marks map[string]float64
	if same {
		marks = maps.Clone(before)
	}
	name, at := clock()
	if name == "" {
		return marks
	}
	begun := at - passed.Seconds()
	if old, ok := marks[name]; ok {
		begun = min(begun, old)
	} else if len(marks) >= maxBakeMarks {
		delete(marks, slices.Min(slices.Collect(maps.Keys(marks))))
	}
	if marks == nil {
		marks = map[string]float64{}
	}
	marks[name] = begun
	return marks
}

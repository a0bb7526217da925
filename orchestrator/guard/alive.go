package guard

import (
	"maps"
	"slices"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
)

// aliveEvery is how often the processes of local holders are looked at: Consul
// does not tell that one ended. aliveShare bounds what that costs, as a part of
// one processor: each look waits for so many times what the last one took.
const (
	aliveEvery = time.Second
	aliveShare = 50
)

// living follows the processes of holders on this host. It belongs to the loop.
// One process that holds a thousand locks is looked at once.
type living struct {
	procs map[records.Process]*process
	look  func(pid int, startTicks uint64) (hostproc.Tri, string)
}

type process struct {
	alive hostproc.Tri
	locks map[*lock]struct{}
}

func newLiving() *living {
	return &living{procs: map[records.Process]*process{}, look: hostproc.Alive}
}

// follow sets which processes a lock's holder has; nil: none here.
func (a *living) follow(l *lock, procs []records.Process) {
	if slices.Equal(l.procs, procs) {
		return
	}
	for _, id := range l.procs {
		if p := a.procs[id]; p != nil {
			delete(p.locks, l)
			if len(p.locks) == 0 {
				delete(a.procs, id)
			}
		}
	}
	l.procs = slices.Clone(procs)
	for _, id := range l.procs {
		p := a.procs[id]
		if p == nil {
			// What the judgement that comes next sees, or sooner.
			alive, _ := a.look(id.PID, id.StartTicks)
			p = &process{alive: alive, locks: map[*lock]struct{}{}}
			a.procs[id] = p
		}
		p.locks[l] = struct{}{}
	}
}

// changed looks at every process, and returns the locks whose holders' have
// changed, and when to look again; ok is false while there are none to look at.
func (a *living) changed() []*lock {
	found := map[*lock]struct{}{}
	for id, p := range a.procs {
		if alive, _ := a.look(id.PID, id.StartTicks); alive != p.alive {
			p.alive = alive
			maps.Copy(found, p.locks)
		}
	}
	return slices.Collect(maps.Keys(found))
}

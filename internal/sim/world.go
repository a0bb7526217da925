package sim

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/devconsul/state"
	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/policies"
)

// World is one run: a Consul, the actors, and what goes wrong. It lives in a bubble
// of testing/synctest, whose time is virtual, and its goroutine is the scheduler.
type World struct {
	seed  uint64
	opts  Options
	plan  *Plan
	start time.Time
	dir   string

	srv        *devconsul.Server
	handlers   sync.WaitGroup
	leaderless atomic.Bool
	policies   *policies.Set
	keys       keys.Prefix
	ids        atomic.Uint64

	sched  *scheduler
	actors []*actor
	check  *checker
	// later are the world's own deeds, such as a fault or a restart.
	deeds []*deed
	// snaps are the pictures that restores go back to.
	snaps map[Event]*state.Snapshot
	// held are locks of which a break will be held up, and for how long.
	held map[string]time.Duration
	// over: everything is being brought to its end.
	over bool
	// goal is the content that shall be everywhere.
	goal atomic.Int64
	// calm is when the faults are over; zero: they are not yet.
	calm time.Time

	hash  uint64
	lines []string
	steps int

	mu      sync.Mutex
	commits []state.Commit
	current *exchange
	// meddled: the world itself has done something since the last look.
	meddled   bool
	violation *Violation
	story     []string
}

// Violation is an invariant that did not hold.
type Violation struct {
	Invariant string
	What      string
	At        time.Duration
}

func (v *Violation) String() string {
	return fmt.Sprintf("%s violated at %s: %s", v.Invariant, v.At.Round(time.Millisecond), v.What)
}

type deed struct {
	at   time.Time
	what string
	do   func()
}

// after has something done in d, by the world.
func (w *World) after(d time.Duration, what string, do func()) {
	w.deeds = append(w.deeds, &deed{time.Now().Add(d), what, do})
}

// nextDeed is the first that is due; of two at the same moment the older.
func (w *World) nextDeed() *deed {
	var first *deed
	for _, d := range w.deeds {
		if first == nil || d.at.Before(first.at) {
			first = d
		}
	}
	return first
}

// fail notes the first violation.
func (w *World) fail(invariant, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.violation == nil {
		w.violation = &Violation{Invariant: invariant, What: fmt.Sprintf(format, args...), At: time.Since(w.start)}
		w.story = append(w.story, w.stamp()+"VIOLATION "+invariant+": "+w.violation.What)
	}
}

func (w *World) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.violation != nil
}

func (w *World) stamp() string { return fmt.Sprintf("%10.6f  ", time.Since(w.start).Seconds()) }

// note writes a line of the history that people want to read.
func (w *World) note(format string, args ...any) {
	line := w.stamp() + fmt.Sprintf(format, args...)
	w.mu.Lock()
	w.story = append(w.story, line)
	w.mu.Unlock()
}

// record writes a line of the whole history, of which the hash is kept.
func (w *World) record(what string) {
	w.steps++
	h := fnv.New64a()
	var b [16]byte
	ns := uint64(time.Since(w.start))
	for i := range 8 {
		b[i], b[8+i] = byte(w.hash>>(8*i)), byte(ns>>(8*i))
	}
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(what))
	w.hash = h.Sum64()
	if w.opts.Trace {
		w.lines = append(w.lines, w.stamp()+what)
	}
}

// serving notes whose request is being served, until the next look.
func (w *World) serving(x *exchange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = x
}

func (w *World) committed(c state.Commit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commits = append(w.commits, c)
}

// settle waits until everything stands still, and checks what was written.
func (w *World) settle() {
	synctest.Wait()
	w.mu.Lock()
	list, x, meddled := w.commits, w.current, w.meddled
	w.commits, w.current, w.meddled = nil, nil, false
	w.mu.Unlock()
	for _, c := range list {
		w.check.committed(c, x, meddled)
		if w.opts.Trace {
			for _, k := range c.KV {
				w.lines = append(w.lines, fmt.Sprintf("%s    index %d: %s %s", w.stamp(), c.Index, k.Key(), valueOf(k.After)))
			}
		}
	}
}

func valueOf(e *state.KVEntry) string {
	if e == nil {
		return "deleted"
	}
	return fmt.Sprintf("session %q lockindex %d %.400s", e.Session, e.LockIndex, e.Value)
}

// run lets the world go on until a moment, or until done says so.
func (w *World) run(until time.Time, done func() bool) {
	for !w.failed() {
		w.settle()
		if w.failed() || done != nil && done() {
			return
		}
		now := time.Now()
		w.sched.collect(now)
		if d := w.nextDeed(); d != nil && !d.at.After(now) {
			w.did(d)
			continue
		}
		if len(w.sched.queue) > 0 && !w.sched.queue[0].at.After(now) {
			w.release(heap.Pop(&w.sched.queue).(*effect), now)
			continue
		}
		if !now.Before(until) {
			return
		}
		next := until
		if d := w.nextDeed(); d != nil && d.at.Before(next) {
			next = d.at
		}
		if len(w.sched.queue) > 0 && w.sched.queue[0].at.Before(next) {
			next = w.sched.queue[0].at
		}
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-w.sched.wake:
			t.Stop()
		}
	}
}

func (w *World) did(d *deed) {
	for i, o := range w.deeds {
		if o == d {
			w.deeds = append(w.deeds[:i], w.deeds[i+1:]...)
			break
		}
	}
	w.record(d.what)
	w.mu.Lock()
	w.meddled = true
	w.mu.Unlock()
	d.do()
}

// release lets one effect happen.
func (w *World) release(e *effect, now time.Time) {
	if e.gone != nil && e.gone() {
		return
	}
	if e.inc != nil && e.inc.stopped(now) && !e.inc.gone() {
		e.at = e.inc.until.Add(w.sched.latency(e))
		heap.Push(&w.sched.queue, e)
		return
	}
	if e.inc != nil && e.inc.doom != nil && e.inc.cur == e.inc {
		if e.inc.doom.N--; e.inc.doom.N <= 0 {
			w.record("dies before " + e.what)
			w.crash(e.inc.actor)
			if !e.leaves {
				return
			}
		}
	}
	w.record(e.what)
	e.do()
}

// end brings everything to its end: no goroutine may be left in the bubble.
func (w *World) end() {
	w.over = true
	for _, a := range w.actors {
		a.kill()
		if a.twin != nil {
			a.twin.kill()
		}
	}
	_ = w.srv.Close()
	w.handlers.Wait()
	// What still runs of the dead is cleaning up in vain, each within its bounds.
	time.Sleep(15 * time.Minute) //nolint:forbidigo // the time of a bubble
	synctest.Wait()
}

// newWorld makes a world in which nothing has happened yet.
func newWorld(seed uint64, plan *Plan, opts Options) (*World, error) {
	w := &World{seed: seed, opts: opts, plan: plan, start: time.Now(), keys: keys.DefaultPrefix, sched: newScheduler(seed), snaps: map[Event]*state.Snapshot{}, held: map[string]time.Duration{}}
	var err error
	read := plainPolicies
	switch {
	case plan.Freeze:
		read = freezePolicies
	case plan.Manual:
		read = manualPolicies
	}
	if w.policies, err = read(); err != nil {
		return nil, err
	}
	if w.dir, err = os.MkdirTemp(opts.Dir, "w"); err != nil {
		return nil, err
	}
	w.check = newChecker(w)
	w.srv, err = devconsul.New(devconsul.Config{
		NodeName: "node-1", Committed: w.committed,
		UUID: func() string {
			n := w.ids.Add(1)
			r := draw(seed, "id", n)
			return fmt.Sprintf("%08x-%04x-4000-8000-%012x", r>>32, r&0xffff, n)
		},
		Spread: func(d time.Duration) time.Duration {
			return time.Duration(draw(seed, "spread", w.ids.Add(1)) % uint64(d))
		},
	})
	return w, err
}

func (w *World) actor(name string) *actor {
	for _, a := range w.actors {
		if a.name == name {
			return a
		}
	}
	return nil
}

func (w *World) add(name string, main func(a *actor) *actor) {
	w.actors = append(w.actors, main(&actor{w: w, name: name}))
}

// worlds finds the world that a path belongs to: an fsync knows its file and no
// more, and tests run several worlds side by side.
//
//nolint:gochecknoglobals // see above
var (
	worldsMu sync.Mutex
	worlds   = map[string]*World{}
	simulate sync.Once
)

// enroll has the fsyncs of this world's nodes come to it.
func enroll(w *World) {
	simulate.Do(func() { durable.Simulate(syncFile) })
	worldsMu.Lock()
	defer worldsMu.Unlock()
	worlds[w.dir] = w
}

func leave(w *World) {
	worldsMu.Lock()
	defer worldsMu.Unlock()
	delete(worlds, w.dir)
}

// syncFile is every fsync of this process: that of a node of a simulated world is
// noted there.
func syncFile(f *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return f.Sync()
	}
	worldsMu.Lock()
	var d *disk
	for dir, w := range worlds {
		if rest, ok := strings.CutPrefix(path, dir+string(filepath.Separator)); ok {
			node, _, _ := strings.Cut(rest, string(filepath.Separator))
			if a := w.actor(node); a != nil {
				d = a.disk
			}
			break
		}
	}
	worldsMu.Unlock()
	if d == nil {
		return f.Sync()
	}
	return d.sync(path)
}

package sim

import (
	"context"
	"encoding/base32"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// actor is one part of the world, on a host of its own: an agent, an orchestrator,
// a locksmith, a holder, an operator. Its process may die and be started again.
type actor struct {
	w    *World
	name string
	// main is the process. It returns when ctx ends.
	main func(ctx context.Context, inc *incarnation)
	// cur is the process that runs; nil: none.
	cur  *incarnation
	born int
	// until is when a stopped process goes on.
	until time.Time
	// doom is how its process will die; nil: it is not to.
	doom *Event
	// net is what becomes of its requests.
	net weather
	// skew is how far its wall clock is ahead.
	skew time.Duration
	// disk of an agent; nil: it has none. twin is another actor on the same one.
	disk *disk
	twin *actor
}

// incarnation is one process of an actor.
type incarnation struct {
	*actor
	n      int
	ctx    context.Context //nolint:containedctx // the life of a process is a context, by design
	cancel context.CancelFunc
	// dead is closed when the process was killed: nothing that it does from then on
	// reaches the world, and nothing of the world reaches it.
	dead chan struct{}
	kv   *consulkv.Client

	mu    sync.Mutex
	drawn map[string]uint64
	// leases are what this process may know of its sessions, and holds those that
	// it believes in.
	leases map[string]*lease
	checks map[string]time.Time
	holds  map[string]*locksmith.Hold
}

var (
	_ fate.Source       = (*incarnation)(nil)
	_ http.RoundTripper = (*incarnation)(nil)
)

// start begins a process, unless one runs.
func (a *actor) start() {
	if a.cur != nil {
		return
	}
	a.born++
	inc := &incarnation{
		actor: a, n: a.born, dead: make(chan struct{}), drawn: map[string]uint64{},
		leases: map[string]*lease{}, checks: map[string]time.Time{}, holds: map[string]*locksmith.Hold{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	inc.ctx, inc.cancel = fate.With(ctx, inc), cancel
	kv, err := consulkv.New(consulkv.Config{Address: "consul.sim:8500", Token: "", Wrap: func(http.RoundTripper) http.RoundTripper { return inc }})
	if err != nil {
		a.w.fail("set-up", "%s: %v", a.name, err)
		cancel()
		return
	}
	inc.kv = kv
	a.cur, a.until = inc, time.Time{}
	a.w.note("%s starts", inc)
	go func() {
		a.main(inc.ctx, inc)
		// Whoever ends by itself is started again by what looks after it.
		a.w.sched.park(&effect{what: inc.String() + " ended", do: func() { a.ended(inc) }})
	}()
}

// ended is for a process that came to its end.
func (a *actor) ended(inc *incarnation) {
	if a.cur != inc || a.w.over {
		return
	}
	a.cur = nil
	if a.disk == nil || a.disk.node == a.name {
		a.w.after(2*time.Second, a.name+" is started again", a.start)
	}
}

// kill ends the process at once, wherever it is.
func (a *actor) kill() {
	inc := a.cur
	if inc == nil {
		return
	}
	a.cur = nil
	close(inc.dead)
	inc.cancel()
}

func (inc *incarnation) String() string { return inc.name + "#" + strconv.Itoa(inc.n) }

func (inc *incarnation) gone() bool {
	select {
	case <-inc.dead:
		return true
	default:
		return false
	}
}

// stopped reports whether the process is alive and gets no steps.
func (a *actor) stopped(now time.Time) bool { return a.until.After(now) }

func (inc *incarnation) next(what string) uint64 {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	n := inc.drawn[what]
	inc.drawn[what]++
	return n
}

// Int64N draws by the name of what is drawn for.
func (inc *incarnation) Int64N(what string, n int64) int64 {
	return int64(draw(inc.w.seed, inc.String()+" draws "+what, inc.next(what)) % uint64(n))
}

// Text makes names that are never made twice.
func (inc *incarnation) Text(what string) string {
	n := inc.next("text " + what)
	var b [20]byte
	for i := range 2 {
		r := draw(inc.w.seed, inc.String()+" names "+what+strconv.Itoa(i), n)
		for j := range 8 {
			b[8*i+j] = byte(r >> (8 * j))
		}
	}
	return base32.StdEncoding.EncodeToString(b[:])[:26]
}

// Turn waits for the turn of this process after a timer.
func (inc *incarnation) Turn(_ context.Context, what string) {
	inc.await(inc.String() + " turn " + what)
}

// await waits until the scheduler lets the process go on, or it is dead.
func (inc *incarnation) await(what string) {
	if inc.gone() {
		return
	}
	ch := make(chan struct{})
	inc.w.sched.park(&effect{what: what, inc: inc, do: func() { close(ch) }, gone: inc.gone})
	select {
	case <-ch:
	case <-inc.dead:
	}
}

// step is between any two writes to a disk: whoever died there writes no more.
func (inc *incarnation) step(what string) {
	// After the last look at the mark and before the rename nobody can look again:
	// only a lock file that is still there keeps others out then.
	if what != "before rename" {
		inc.await(inc.String() + " disk " + what)
	}
	if inc.gone() {
		runtime.Goexit()
	}
	inc.w.check.stepped(inc, what)
}

// self is the identity of the process: each stands on a host of its own, which boots
// anew with it, so that what is proved of the processes before it is true.
func (inc *incarnation) self() hostproc.Identity {
	return hostproc.Identity{Host: inc.name, PID: 100 + inc.n, BootID: "boot-" + inc.String(), PIDNS: "pid:[1]", User: "sim", StartTicks: uint64(inc.n), StartedAt: inc.w.start}
}

// clock counts seconds since the world began.
func (w *World) clock() float64 { return time.Since(w.start).Seconds() }

// locks makes a locksmith client of this process.
func (inc *incarnation) locks(as string) (*locksmith.Client, error) {
	c, err := locksmith.New(locksmith.Config{
		Consul: inc.kv, Prefix: keys.DefaultPrefix, Policies: inc.w.policies, Self: inc.self(), By: fmt.Sprintf("%s %s", as, inc.name), LeaseClock: inc.w.clock, BootClock: inc.w.clock,
	})
	if err != nil {
		return nil, fmt.Errorf("locksmith client of %s: %w", inc, err)
	}
	return c, nil
}

// believe notes a hold that this process thinks it has.
func (inc *incarnation) believe(h *locksmith.Hold) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	inc.holds[h.Session()] = h
}

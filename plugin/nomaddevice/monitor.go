package nomaddevice

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

const (
	// firstWait bounds the wait for the first answers: Nomad's client starts up
	// no sooner than its plugins have told of their devices.
	firstWait = 3 * time.Second
	// stateEvery is the least time between two tellings that differ only in the
	// states of locks. Each costs Nomad's servers a write for every client, and a
	// lock is taken and released on all of them at once.
	stateEvery = 10 * time.Second
)

// monitor knows all devices of this machine, from when it is started.
type monitor struct {
	set Settings
	acc Access
	log hclog.Logger
	// stopped is closed when others' settings have taken the place of set.
	stopped chan struct{}

	mu      sync.Mutex
	devices []device
	ready   bool
	// changed is closed, and made anew, when devices change.
	changed chan struct{}

	// What follows belongs to run.
	events   chan func()
	state    nodeState
	presence graced[presence]
	locks    map[string]*followed
	told     time.Time
	wg       sync.WaitGroup
}

func newMonitor(set Settings, acc Access, log hclog.Logger) *monitor {
	return &monitor{
		set: set, acc: acc, log: log, stopped: make(chan struct{}), changed: make(chan struct{}), events: make(chan func()),
		locks: map[string]*followed{},
	}
}

// current are the devices as they are now, and what is closed when they change.
// They are not ready until all parts have answered, or firstWait is over.
func (m *monitor) current() (all []device, ready bool, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices, m.ready, m.changed
}

func (m *monitor) send(ctx context.Context, apply func()) {
	select {
	case m.events <- apply:
	case <-ctx.Done():
	}
}

// followed is the lock of one config.
type followed struct {
	stop context.CancelFunc
	view graced[lockView]
	read bool
	// since is when it began to be followed. Until it was read, or firstWait is
	// over, its config is no device yet, rather than one that is unhealthy.
	since time.Time
}

// run keeps the devices current until ctx ends.
func (m *monitor) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer m.wg.Wait()
	defer cancel()
	p := &presenceOf{m: m}
	defer p.stop()
	stateRead := false
	m.wg.Go(func() {
		followState(ctx, m.set.StateDir, m.log, func(s nodeState) {
			m.send(ctx, func() {
				stateRead = true
				m.takeState(s)
				m.followLocks(ctx)
				if m.set.RequireAgent {
					p.follow(ctx, m.state.Node)
				}
			})
		})
	})
	opening := time.NewTimer(firstWait)
	defer opening.Stop()
	again := time.NewTimer(firstWait)
	defer again.Stop()
	open := false
	for {
		select {
		case <-ctx.Done():
			return
		case apply := <-m.events:
			apply()
		case <-opening.C:
			open = true
		case <-again.C:
		}
		open = open || stateRead && p.settled() && m.locksRead()
		if open {
			again.Reset(m.publish(time.Now()))
		}
	}
}

// takeState takes in what the state folder says. Of one that cannot be read any
// more, what it said before is kept.
func (m *monitor) takeState(s nodeState) {
	before := m.state
	if s.Err != "" && len(s.Configs) == 0 {
		s.Configs = before.Configs
	}
	s.Node = cmp.Or(s.Node, before.Node, m.set.Node)
	if m.set.Node != "" && s.Node != m.set.Node {
		s.Err = fmt.Sprintf("the state folder %s is that of node %s, and the settings say %s", m.set.StateDir, s.Node, m.set.Node)
	}
	if s.Err != before.Err && s.Err != "" {
		m.log.Warn("what the agent has applied is not known", "error", s.Err)
	}
	m.state = s
}

func (m *monitor) locksRead() bool {
	for _, l := range m.locks {
		if !l.read {
			return false
		}
	}
	return true
}

// presenceOf follows whether the agent of one node runs.
type presenceOf struct {
	m      *monitor
	node   string
	cancel context.CancelFunc
	read   bool
}

func (p *presenceOf) follow(ctx context.Context, node string) {
	if node == p.node {
		return
	}
	p.stop()
	p.node, p.read = node, false
	ctx, p.cancel = context.WithCancel(ctx)
	p.m.wg.Go(func() {
		followPresence(ctx, p.m.acc.Consul, node, func(v presence) {
			p.m.send(ctx, func() {
				if ctx.Err() == nil {
					p.read = true
					p.m.presence.take(v, v.Err != "", time.Now())
				}
			})
		})
	})
}

func (p *presenceOf) stop() {
	if p.cancel != nil {
		p.cancel()
	}
}

// settled: there is nothing more to be waited for.
func (p *presenceOf) settled() bool { return p.node == "" || p.read }

// followLocks follows the locks of all configs that are shown, and no others.
func (m *monitor) followLocks(ctx context.Context) {
	wanted := shown(m.state.Configs, &m.set)
	for name, l := range m.locks {
		if !slices.Contains(wanted, name) {
			l.stop()
			delete(m.locks, name)
		}
	}
	for _, name := range wanted {
		if m.locks[name] != nil {
			continue
		}
		lctx, cancel := context.WithCancel(ctx)
		l := &followed{stop: cancel, since: time.Now()}
		l.view.take(lockView{State: locksmith.Unknown, Err: "Consul has not answered yet"}, true, l.since)
		m.locks[name] = l
		w := &lockWatch{name: name, prefix: m.acc.Prefix, consul: m.acc.Consul, locks: m.acc.Locks, interval: m.set.LockInterval}
		w.tell = func(v lockView) {
			m.send(lctx, func() {
				l.read = true
				l.view.take(v, v.State == locksmith.Unknown, time.Now())
			})
		}
		m.wg.Go(func() { w.run(lctx) })
	}
}

// publish makes the devices of what is known, and returns when that is to be done
// again though nothing more becomes known.
func (m *monitor) publish(now time.Time) time.Duration {
	wait := time.Hour
	sooner := func(d time.Duration) {
		if d > 0 {
			wait = min(wait, d)
		}
	}
	w := world{state: m.state, locks: map[string]lockView{}}
	var d time.Duration
	w.presence, d = m.presence.at(now)
	sooner(d)
	for name, l := range m.locks {
		w.locks[name], d = l.view.at(now)
		sooner(d)
	}
	all := slices.DeleteFunc(devicesOf(&w, &m.set), func(d device) bool {
		l := m.locks[d.Config]
		if l.read {
			return false
		}
		left := firstWait - now.Sub(l.since)
		sooner(left)
		return left > 0
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	news := compare(m.devices, all)
	if !m.ready {
		news = newsUrgent
	}
	switch left := stateEvery - now.Sub(m.told); {
	case news == newsNone:
		// What statistics tell of is current all the same.
		m.devices = all
		return wait
	case news == newsState && left > 0:
		sooner(left)
		return wait
	}
	for i := range all {
		if old := find(m.devices, all[i].Config); old == nil || old.Healthy != all[i].Healthy {
			m.log.Info("device", "config", all[i].Config, "healthy", all[i].Healthy, "why", all[i].Why)
		}
	}
	m.devices, m.ready, m.told = all, true, now
	close(m.changed)
	m.changed = make(chan struct{})
	return wait
}

func find(all []device, config string) *device {
	for i := range all {
		if all[i].Config == config {
			return &all[i]
		}
	}
	return nil
}

// What is new in devices, for Nomad.
const (
	newsNone   = iota
	newsState  // no more than the state of a lock, which steers nothing
	newsUrgent // a job may be placed otherwise
)

func compare(old, now []device) int {
	if len(old) != len(now) {
		return newsUrgent
	}
	news := newsNone
	for i := range now {
		a, b := old[i], now[i]
		if a.Config != b.Config || a.Healthy != b.Healthy || a.Why != b.Why {
			return newsUrgent
		}
		if maps.Equal(a.Attributes, b.Attributes) {
			continue
		}
		news = newsState
		x, y := maps.Clone(a.Attributes), maps.Clone(b.Attributes)
		delete(x, AttrState)
		delete(y, AttrState)
		if !maps.Equal(x, y) {
			return newsUrgent
		}
	}
	return news
}

package chaos

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/e2e/lab"
)

// fault is one thing that befalls the cluster.
type fault struct {
	name string
	// lab: it needs namespaces.
	lab bool
	// from, to: for how long it lasts; 0: nothing is to be healed.
	from, to time.Duration
	// do begins it. The function returned ends it, and may be nil.
	do func(w *world) (heal func())
}

const sec = time.Second

// faults are all that can happen. Each is dealt before any comes twice.
var faults = []fault{
	// Servers.
	{"leader: kill -9", false, sec / 2, 6 * sec, func(w *world) func() { return w.killServer(w.leader()) }},
	{"follower: kill -9", false, sec / 2, 6 * sec, func(w *world) func() { return w.killServer(w.follower()) }},
	{"leader: SIGSTOP", false, sec, 14 * sec, func(w *world) func() { return w.freezeConsul(w.leader()) }},
	{"follower: SIGSTOP", false, sec, 10 * sec, func(w *world) func() { return w.freezeConsul(w.follower()) }},
	{"all servers: kill -9", false, sec / 2, 8 * sec, (*world).killServers},
	{"servers: restarted one after the other", false, 0, 0, (*world).rollingRestart},
	{"leader: cut off", true, 2 * sec, 14 * sec, func(w *world) func() { return w.cut(w.leader(), w.servers, both) }},
	{"leader: cut off, with its clients", true, 2 * sec, 14 * sec, func(w *world) func() { return w.cut(w.leader(), w.all(), both) }},
	{"leader: hears nobody", true, 2 * sec, 14 * sec, func(w *world) func() { return w.cut(w.leader(), w.all(), in) }},
	{"leader: heard by nobody", true, 2 * sec, 14 * sec, func(w *world) func() { return w.cut(w.leader(), w.all(), out) }},
	{"follower: hears nobody", true, 2 * sec, 14 * sec, func(w *world) func() { return w.cut(w.follower(), w.all(), in) }},
	{"all servers: cut off from each other", true, 2 * sec, 14 * sec, (*world).cutServers},
	{"all servers: slow links that lose", true, 4 * sec, 12 * sec, func(w *world) func() { return w.slow(w.servers, w.all()) }},
	// Machines.
	{"holder's machine: cut off", true, 2 * sec, 32 * sec, func(w *world) func() { return w.cut(w.awaitHolder().on, w.all(), both) }},
	{"holder's machine: hears nobody", true, 2 * sec, 32 * sec, func(w *world) func() { return w.cut(w.awaitHolder().on, w.all(), in) }},
	{"holder's machine: heard by nobody", true, 2 * sec, 32 * sec, func(w *world) func() { return w.cut(w.awaitHolder().on, w.all(), out) }},
	{"holder's machine: slow links that lose", true, 4 * sec, 12 * sec, func(w *world) func() { return w.slow([]*machine{w.awaitHolder().on}, w.all()) }},
	{"holder's machine: power off", true, sec, 6 * sec, func(w *world) func() { return w.powerOff(w.awaitHolder().on) }},
	{"holder's machine: paused, for less than the pause owed", true, 7 * sec, 13 * sec, func(w *world) func() { return w.pauseMachine(w.awaitHolder().on, false) }},
	{"holder's machine: paused, for longer", true, 25 * sec, 35 * sec, func(w *world) func() { return w.pauseMachine(w.awaitHolder().on, true) }},
	{"orchestrator's machine: cut off", true, 2 * sec, 20 * sec, func(w *world) func() { return w.cut(w.awaitDriver().on, w.all(), both) }},
	// Processes on them.
	{"holder: kill -9", false, 0, 0, func(w *world) func() { w.kill(w.awaitHolder()); return nil }},
	{"holder: SIGSTOP", false, sec, 16 * sec, (*world).stopHolder},
	{"orchestrator: kill -9", false, 0, 0, func(w *world) func() { return w.killDriver() }},
	{"orchestrator: SIGSTOP", false, sec, 16 * sec, (*world).stopDriver},
	{"holder's Consul client: kill -9", false, sec / 2, 6 * sec, func(w *world) func() { return w.killClient(w.awaitHolder().on) }},
	{"holder's Consul client: SIGSTOP", false, sec, 16 * sec, func(w *world) func() { return w.freezeConsul(w.awaitHolder().on) }},
	{"agents: kill -9", false, 0, 0, (*world).killAgents},
	{"agents: SIGSTOP", false, sec, 14 * sec, (*world).stopAgents},
	{"locksmiths: kill -9", false, 0, 0, (*world).killSmiths},
	// Operators in a hurry.
	{"holder's session: destroyed", false, 0, 0, (*world).destroySession},
	{"lock's key: deleted", false, 0, 0, (*world).deleteKey},
	// Two at once.
	{"leader: kill -9; holder: SIGSTOP", false, sec, 14 * sec, func(w *world) func() {
		holder := w.stopHolder()
		server := w.killServer(w.leader())
		return func() { server(); holder() }
	}},
	{"leader: cut off; orchestrator: kill -9", true, 2 * sec, 14 * sec, func(w *world) func() {
		heal := w.cut(w.leader(), w.all(), both)
		w.killDriver()
		return heal
	}},
	{"leader: kill -9; holder's machine: cut off", true, 2 * sec, 14 * sec, func(w *world) func() {
		cut := w.cut(w.awaitHolder().on, w.all(), both)
		server := w.killServer(w.leader())
		return func() { server(); cut() }
	}},
	// The rare day.
	{"snapshot of some seconds ago: restored", false, 0, 0, (*world).restoreSnapshot},
}

func (w *world) all() []*machine { return append(append([]*machine{}, w.servers...), w.clients...) }

func (w *world) leader() *machine {
	l := w.cluster.Leader()
	for _, m := range w.servers {
		if m.consul == l {
			return m
		}
	}
	w.t.Fatalf("%s is no server", l.Name)
	return nil
}

func (w *world) follower() *machine {
	leader := w.leader()
	for {
		if m := pick(w, w.servers); m != leader {
			return m
		}
	}
}

func (w *world) killServer(m *machine) func() {
	w.note("consul of %s is killed", m.name)
	m.consulDown = true
	m.consul.Kill()
	return func() {
		w.note("consul of %s starts", m.name)
		m.consul.Relaunch()
		m.consulDown = false
	}
}

func (w *world) killClient(m *machine) func() { return w.killServer(m) }

func (w *world) killServers() func() {
	var heals []func()
	for _, m := range w.servers {
		heals = append(heals, w.killServer(m))
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

// stopTimeout is how long a server may take to end before it is killed, as systemd does
// it. Consul 1.14.11, told to end within a second of its start, can wait for its Raft
// for ever.
const stopTimeout = 20 * time.Second

// rollingRestart is what an upgrade does: each server is told to end, and the next one
// follows when it is back.
func (w *world) rollingRestart() func() {
	for _, m := range w.servers {
		w.note("consul of %s is restarted", m.name)
		m.consulDown = true
		m.consul.Signal(syscall.SIGTERM)
		kill := time.Now().Add(stopTimeout)
		w.until(recovery, "consul of "+m.name+" ends", func() bool {
			if !ended(m.consul.Process) && time.Now().After(kill) {
				w.note("consul of %s does not end, and is killed", m.name)
				m.consul.Kill()
			}
			return ended(m.consul.Process)
		})
		m.consul.Relaunch()
		m.consulDown = false
		w.until(recovery, "the servers are well", w.serversWell)
	}
	return nil
}

func (w *world) freezeConsul(m *machine) func() {
	w.note("consul of %s is stopped", m.name)
	m.consul.Freeze()
	return func() {
		w.note("consul of %s is woken", m.name)
		m.consul.Thaw()
	}
}

// direction is of a cut, as the one cut off sees it.
type direction string

const (
	both = direction("both ways")
	in   = direction("what comes to it")
	out  = direction("what it sends")
)

// cut cuts a machine off from others. Programs on it reach its own Consul agent.
func (w *world) cut(m *machine, from []*machine, dir direction) func() {
	w.note("%s is cut off, %s", m.name, dir)
	for _, o := range from {
		if o == m {
			continue
		}
		if dir != out {
			w.net.Set(o.host, m.host, lab.Link{Cut: true})
		}
		if dir != in {
			w.net.Set(m.host, o.host, lab.Link{Cut: true})
		}
	}
	return w.heal
}

func (w *world) heal() {
	w.note("the network is whole")
	w.net.Heal()
}

func (w *world) cutServers() func() {
	for _, m := range w.servers {
		w.cut(m, w.servers, both)
	}
	return w.heal
}

// slow makes the links between some and others slow, each its own way.
func (w *world) slow(some, others []*machine) func() {
	for _, a := range some {
		for _, b := range others {
			for _, p := range [][2]*machine{{a, b}, {b, a}} {
				l := lab.Link{Delay: w.between(20*time.Millisecond, 200*time.Millisecond), Jitter: w.between(time.Millisecond, 200*time.Millisecond), Loss: w.rng.Float64() * 0.1}
				if p[0] != p[1] {
					w.net.Set(p[0].host, p[1].host, l)
				}
			}
		}
		w.note("the links of %s are slow", a.name)
	}
	return w.heal
}

func (w *world) onMachine(m *machine, sig syscall.Signal) {
	pids, err := m.host.Pids()
	if err != nil {
		w.t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		// Children first: a supervisor that sees its parent stopped ends the
		// command, which it could not on a machine that stops as a whole.
		slices.SortFunc(pids, func(a, b int) int { return b - a })
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			w.t.Errorf("%s to %d on %s: %v", sig, pid, m.name, err)
		}
	}
}

// powerOff ends all that runs on a machine at once, and starts it again.
func (w *world) powerOff(m *machine) func() {
	w.note("%s is off", m.name)
	m.down = true
	w.disturb(m, true)
	// A second time for what was just being started.
	w.onMachine(m, syscall.SIGKILL)
	w.onMachine(m, syscall.SIGKILL)
	return func() {
		w.note("%s is on", m.name)
		m.consul.Relaunch()
		m.again(&m.agent, w.startAgent)
		m.again(&m.smith, w.startSmith)
		m.down = false
	}
}

func (w *world) disturb(m *machine, gone bool) {
	for _, c := range w.live {
		if c.on == m {
			c.disturbed, c.gone = true, c.gone || gone
		}
	}
}

// pauseMachine stops all that runs on a machine at once, what its holders started
// included, as a paused virtual machine does. After long, the lock can be
// another's when they wake, and only the order tells.
func (w *world) pauseMachine(m *machine, long bool) func() {
	w.note("%s is paused", m.name)
	m.down = true
	w.disturb(m, false)
	for _, c := range w.live {
		if c.on == m && long {
			w.late[c.id] = true
		}
	}
	w.onMachine(m, syscall.SIGSTOP)
	w.onMachine(m, syscall.SIGSTOP)
	for _, d := range w.drivers {
		d.stopped = d.stopped || d.on == m
	}
	return func() {
		w.note("%s goes on", m.name)
		w.onMachine(m, syscall.SIGCONT)
		for _, d := range w.drivers {
			d.stopped = d.stopped && d.on != m
		}
		m.down = false
	}
}

func (w *world) stopHolder() func() {
	c := w.awaitHolder()
	w.stop(c)
	return func() { w.wake(c) }
}

func (w *world) killDriver() func() {
	d := w.awaitDriver()
	w.note("the rollout of revision %d on %s is killed", d.revision, d.on.name)
	d.Signal(syscall.SIGKILL)
	return nil
}

func (w *world) stopDriver() func() {
	d := w.awaitDriver()
	w.note("the rollout of revision %d on %s is stopped", d.revision, d.on.name)
	d.Freeze()
	d.stopped = true
	return func() {
		w.note("the rollout of revision %d on %s is woken", d.revision, d.on.name)
		d.Thaw()
		d.stopped = false
	}
}

func (w *world) killAgents() func() {
	for _, m := range w.clients {
		if w.rng.IntN(2) == 0 {
			w.note("the agent of %s is killed and starts again", m.name)
			m.again(&m.agent, w.startAgent)
		}
	}
	return nil
}

func (w *world) stopAgents() func() {
	var stopped []*harness.Process
	for _, m := range w.clients {
		if w.rng.IntN(2) == 0 {
			w.note("the agent of %s is stopped", m.name)
			m.agent.Freeze()
			stopped = append(stopped, m.agent)
		}
	}
	return func() {
		w.note("the agents are woken")
		for _, p := range stopped {
			p.Thaw()
		}
	}
}

func (w *world) killSmiths() func() {
	for _, m := range w.clients {
		w.note("the locksmith of %s is killed and starts again", m.name)
		m.again(&m.smith, w.startSmith)
	}
	return nil
}

func (w *world) destroySession() func() {
	c := w.awaitHolder()
	p, _, err := w.client(c.on).KV().Get(prefix.Lock("work"), consistent)
	if err != nil || p == nil || p.Session == "" {
		w.note("nobody holds the lock at this moment: %v", err)
		return nil
	}
	w.note("session %s is destroyed", p.Session)
	c.gone = true
	if _, err := w.client(c.on).Session().Destroy(p.Session, nil); err != nil {
		w.note("%v", err)
	}
	return nil
}

func (w *world) deleteKey() func() {
	c := w.awaitHolder()
	w.note("the key of the lock is deleted")
	c.gone = true
	if _, err := w.client(c.on).KV().Delete(prefix.Lock("work"), nil); err != nil {
		w.note("%v", err)
	}
	return nil
}

// restoreSnapshot brings Consul back to what it was some seconds ago, under
// rollouts and locksmiths that run, and recovers as docs/operations.md says.
// Commands under locks are stopped before, as it says too: what checks no order
// has nothing that protects it until the recovery.
func (w *world) restoreSnapshot() func() {
	server := w.leader()
	// What is acknowledged before it is taken is in it.
	breaks, acked, before := w.judge.audits(w), len(w.acked), w.epoch
	snapshot := w.snapshot(server)
	w.note("a snapshot is taken")
	w.run(w.between(2*sec, 8*sec))
	w.rest = true
	w.unhang()
	w.until(recovery, "the commands under the lock end", func() bool { return len(w.live) == 0 })
	w.restore(server, snapshot)
	w.note("the snapshot is restored")
	// What was acknowledged since is lost in Consul, by the operator's will.
	w.judge.breaks, w.acked = breaks, w.acked[:acked]
	for _, d := range w.drivers {
		d.doubtful = true
	}
	w.run(w.between(0, 3*sec))
	w.recover(before)
	w.rest = false
	return nil
}

func (w *world) recover(before uint64) {
	m := pick(w, w.clients)
	// By the manual it can be repeated.
	for try := 1; ; try++ {
		r := w.call(recovery, m, "recover", "-yes", "-json")
		if r.Code == 0 {
			w.epoch = epochOf(w, r.Stdout)
			if w.epoch <= before {
				w.violation("recovered to epoch %d after %d", w.epoch, before)
			}
			return
		}
		if try == 5 {
			w.violation("recover fails: exit %d: %s", r.Code, r.Stderr)
			w.t.FailNow()
		}
		w.note("recover: %s", lastLine(r.Stderr))
	}
}

func (w *world) serversWell() bool {
	for _, m := range w.servers {
		_, meta, err := w.client(m).KV().Get(prefix.Epoch(), stale)
		if err != nil || !meta.KnownLeader || meta.LastContact > time.Second {
			return false
		}
	}
	return true
}

// wellAgain tells whether all Consul agents serve.
func (w *world) wellAgain() bool {
	if !w.serversWell() {
		return false
	}
	for _, m := range w.clients {
		if _, _, err := w.client(m).KV().Get(prefix.Epoch(), consistent); err != nil {
			return false
		}
	}
	return true
}

func (f fault) String() string { return fmt.Sprintf("%s (%s to %s)", f.name, f.from, f.to) }

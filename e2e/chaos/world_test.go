package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/e2e/lab"
	"github.com/aim-control/aimlock/internal/keys"
)

const (
	prefix = keys.Prefix("chaos/")
	// tick is how often the world looks at its processes.
	tick = 20 * time.Millisecond
	// startLimit bounds the start of all.
	startLimit = 2 * time.Minute
	// callLimit bounds one question to Consul while nothing is broken.
	callLimit = 5 * time.Second
)

// policy breaks the dead on proof, and the living when they say nothing any more.
const policy = `policy "chaos" {
  locks = ["**"]
  hot "dead" {
    when  = holder.alive == false
    proof = true
  }
  hot "silent" {
    when = lock.name == "work" && progress.age > 4
  }
  break {
    approval = "auto"
    confirm {
      observations = 2
      every        = "200ms"
    }
    step "request" {
      when = holder.alive
      wait = "500ms"
    }
    step "take" {
    }
    budget {
      max = 1000000
      per = "1h"
    }
  }
}
`

// machine is a host: a Consul agent, and on those that are no server an agent of
// aimlock and a locksmith.
type machine struct {
	name   string
	host   *lab.Host // nil without namespaces
	consul *harness.Consul
	agent  *harness.Process
	smith  *harness.Process
	dir    string
	// down: nothing is started on it. consulDown: its Consul was killed.
	down, consulDown bool
}

func (m *machine) enter() func() error {
	if m.host == nil {
		return nil
	}
	return m.host.Enter
}

// world is the cluster, its machines, and what runs on them. One goroutine plays
// it, by tick; nothing of it may be used by another.
type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	dir  string
	net  *lab.Network // nil without namespaces
	self *lab.Host

	cluster *harness.Cluster
	servers []*machine
	clients []*machine

	contenders
	rollouts
	judge
	story
	probes
}

func newWorld(t *testing.T, seed uint64, number, clients int) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("chaos-%d-%d-", seed, number)) //nolint:usetesting // it stays where the test fails
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, uint64(number))), dir: dir}
	w.story.open(t, filepath.Join(dir, "story"))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d; logs, operations and Consul's data are in %s\n%s", seed, dir, w.story.tail(80))
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Logf("%v", err)
		}
	})
	w.write("policy.hcl", policy)
	w.judge.init(w)
	w.late = map[int]bool{}
	w.startConsul(clients)
	w.startRollouts()
	w.startProbes()
	for _, m := range w.clients {
		m.agent, m.smith = w.startAgent(m), w.startSmith(m)
	}
	return w
}

func (w *world) write(name, text string) string {
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) machine(name string) *machine {
	m := &machine{name: name, dir: filepath.Join(w.dir, name)}
	if w.net != nil {
		m.host = w.net.Host(w.t, name)
	}
	return m
}

func (w *world) startConsul(clients int) {
	w.t.Helper()
	if lab.Why() == "" {
		w.net = lab.New(w.t, w.seed)
		w.self = w.net.Self(w.t)
	}
	var join []string
	for i := range 3 {
		m := w.machine(fmt.Sprintf("server-%d", i+1))
		w.servers = append(w.servers, m)
		if m.host != nil {
			join = append(join, m.host.IP+":8301")
		}
	}
	options := func(m *machine, ip string) []harness.Option {
		opts := []harness.Option{harness.WithName(m.name), harness.InDir(filepath.Join(m.dir, "consul")), harness.WithHCL("limits { http_max_conns_per_client = 3000 }")}
		if m.host != nil {
			return append(opts, harness.On(m.host.IP, m.host.Enter), harness.WithJoin(join...))
		}
		return append(opts, harness.OnAddress(ip))
	}
	w.cluster = harness.StartClusterOf(w.t, func(i int) []harness.Option {
		return options(w.servers[i], fmt.Sprintf("127.0.0.%d", i+1))
	})
	for i, m := range w.servers {
		m.consul = w.cluster.Servers[i]
	}
	for i := range clients {
		m := w.machine(fmt.Sprintf("client-%d", i+1))
		m.consul = harness.StartClient(w.t, w.servers[0].consul, options(m, fmt.Sprintf("127.0.0.%d", i+11))...)
		w.clients = append(w.clients, m)
	}
}

// aimlock is a call of aimlock on a machine. logs is the folder for what it says.
func (w *world) aimlock(m *machine, logs string, args ...string) harness.Spec {
	return harness.Spec{
		Path: harness.Aimlock.Path(w.t), Args: args, Name: fmt.Sprintf("aimlock %s on %s", strings.Join(args[:min(2, len(args))], " "), m.name),
		Env: append(m.consul.Env(), "AIMLOCK_PREFIX="+string(prefix)), Enter: m.enter(), Logs: filepath.Join(m.dir, logs), Dir: w.dir,
	}
}

func (w *world) startAgent(m *machine) *harness.Process {
	return harness.Start(w.t, w.aimlock(m, "agent", "agent", "-node", m.name, "-state-dir", filepath.Join(m.dir, "state"), "-root", filepath.Join(m.dir, "root")))
}

func (w *world) startSmith(m *machine) *harness.Process {
	return harness.Start(w.t, w.aimlock(m, "locksmith", "locksmith", "-policy", filepath.Join(w.dir, "policy.hcl")))
}

// again starts a process of a machine anew.
func (m *machine) again(p **harness.Process, start func(*machine) *harness.Process) {
	(*p).Kill()
	(*p).Release()
	*p = start(m)
}

func (w *world) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

func pick[T any](w *world, list []T) T { return list[w.rng.IntN(len(list))] }

// up are the machines on which something can be started.
func (w *world) up() []*machine {
	var out []*machine
	for _, m := range w.clients {
		if !m.down {
			out = append(out, m)
		}
	}
	return out
}

// supervise is what a service manager does: it starts again what ended. No agent
// and no locksmith ends by itself; what else runs on this machine may kill one.
func (w *world) supervise() {
	for _, m := range w.all() {
		if m.down || m.consulDown {
			continue
		}
		if ended(m.consul.Process) {
			w.note("consul of %s ended by %d, which is not of this test, and starts again", m.name, m.consul.Wait(time.Second))
			m.consul.Relaunch()
		}
		for what, p := range map[string]struct {
			p     **harness.Process
			start func(*machine) *harness.Process
		}{"agent": {&m.agent, w.startAgent}, "locksmith": {&m.smith, w.startSmith}} {
			if *p.p == nil || !ended(*p.p) {
				continue
			}
			if code := (*p.p).Wait(time.Second); code != 128+int(syscall.SIGKILL) {
				w.violation("the %s of %s ended by itself with %d: %s", what, m.name, code, lastLine((*p.p).Stderr()))
			}
			m.again(p.p, p.start)
		}
	}
}

// step is one look at everything.
func (w *world) step() {
	w.supervise()
	w.contenders.step(w)
	w.rollouts.step(w)
	w.judge.follow(w)
}

// run plays for so long.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end := time.Now().Add(d)
	w.until(d+time.Minute, "time passes", func() bool { return time.Now().After(end) })
}

// until plays until something holds. It is a violation if that takes longer than
// the limit.
func (w *world) until(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	t := time.NewTicker(tick)
	defer t.Stop()
	end := time.Now().Add(limit)
	for {
		w.step()
		if ok() {
			return
		}
		if w.t.Failed() {
			w.t.FailNow()
		}
		if time.Now().After(end) {
			w.violation("not within %s: %s", limit, what)
			w.t.FailNow()
		}
		<-t.C
	}
}

// call runs a command of aimlock to its end, while the world goes on.
func (w *world) call(limit time.Duration, m *machine, args ...string) harness.Result {
	w.t.Helper()
	spec := w.aimlock(m, fmt.Sprintf("call-%d", monotonic()), args...)
	p := harness.Start(w.t, spec)
	w.until(limit, strings.Join(args, " ")+" ends", func() bool { return ended(p) })
	r := harness.Result{Code: p.Wait(limit), Stdout: p.Stdout(), Stderr: p.Stderr()}
	p.Release()
	w.note("%s on %s: exit %d", strings.Join(args, " "), m.name, r.Code)
	return r
}

func ended(p *harness.Process) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

// consistent reads from the leader, by whichever server answers.
var consistent = &api.QueryOptions{RequireConsistent: true}

// list reads what stands under a key, while nothing is broken any more.
func (w *world) list(under string) api.KVPairs {
	w.t.Helper()
	var out api.KVPairs
	w.until(recovery, "Consul tells what stands under "+under, func() bool {
		for _, s := range w.servers {
			pairs, _, err := w.client(s).KV().List(under, consistent)
			if err == nil {
				out = pairs
				return true
			}
			w.note("list %s by %s: %v", under, s.name, err)
		}
		return false
	})
	return out
}

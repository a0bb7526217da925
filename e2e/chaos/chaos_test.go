package chaos

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/lab"
)

var (
	rounds = flag.Int("rounds", 0, "how many rounds; 0: a short run")
	seed   = flag.Uint64("seed", 0, "the seed of the faults; 0: one by the clock")
	worlds = flag.Int("worlds", 1, "how many clusters at once, which share the rounds")
	only   = flag.String("faults", "", "only faults whose name matches this")
)

const (
	machines = 3
	// recovery bounds each wait for something to go on after a fault.
	recovery = 2 * time.Minute
	// promise is what docs/chaos.md promises, from the moment when Consul serves
	// again, on a machine whose processors are not wanted by others.
	promise = 60 * time.Second
	// crowded is from how many runnable processes for each processor on that is not
	// so: then recovery is the bound.
	crowded = 4
)

// short are the faults of a run of all tests, which has no time for more.
var short = regexp.MustCompile(`^(leader: kill -9|holder: kill -9|orchestrator: kill -9|leader: cut off)$`)

func TestChaos(t *testing.T) {
	which, n := short, *rounds
	if *only != "" || n > 0 {
		which = regexp.MustCompile(*only)
	}
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000
	}
	var list []fault
	for _, f := range faults {
		switch {
		case !which.MatchString(f.name):
		case f.lab && lab.Why() != "":
			t.Logf("NOT RUN: %s: it needs namespaces, which cannot be had here: %s", f.name, lab.Why())
		default:
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		t.Fatalf("no fault matches -faults %q", *only)
	}
	if n == 0 {
		n = len(list)
	}
	t.Logf("seed %d: %d rounds of %d faults in %d worlds; to run them again: make chaos ROUNDS=%d SEED=%d WORLDS=%d", s, n, len(list), *worlds, n, s, *worlds)
	rounds := deal(s, list, n)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []measured
	for i := range *worlds {
		wg.Go(func() {
			t.Run(fmt.Sprintf("world %d", i+1), func(t *testing.T) {
				w := newWorld(t, s, i+1, machines)
				w.begin()
				for n := i; n < len(rounds) && !t.Failed(); n += *worlds {
					m := w.round(n+1, rounds[n])
					mu.Lock()
					all = append(all, m)
					mu.Unlock()
				}
				w.end()
			})
		})
	}
	wg.Wait()
	t.Logf("seed %d: %d of %d rounds\n%s", s, len(all), n, table(all))
}

// deal says which faults come, in which order: all of them before any comes twice.
func deal(seed uint64, list []fault, n int) []fault {
	rng := rand.New(rand.NewPCG(seed, 7))
	var out []fault
	for len(out) < n {
		for _, i := range rng.Perm(len(list)) {
			out = append(out, list[i])
		}
	}
	return out[:n]
}

// begin waits until everything goes its way.
func (w *world) begin() {
	w.t.Helper()
	w.until(startLimit, "all goes its way", func() bool {
		return w.judge.begunAt > 0 && len(w.acked) > 0 && w.acked[len(w.acked)-1].full()
	})
}

// promised judges how long something took.
func (w *world) promised(what string, took time.Duration) {
	w.t.Helper()
	if took <= promise {
		return
	}
	if load := loadOf(w.t); load > crowded*float64(runtime.NumCPU()) {
		w.t.Logf("%s %s after Consul served again, more than %s: %.0f processes want the processors of this machine", what, took, promise, load)
		return
	}
	w.violation("%s %s after Consul served again: more than %s", what, took, promise)
}

// loadOf is the load of this machine over the last minute.
func loadOf(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	var load float64
	if _, err := fmt.Sscan(string(b), &load); err != nil {
		t.Fatalf("/proc/loadavg: %v", err)
	}
	return load
}

// end judges the whole.
func (w *world) end() {
	w.t.Helper()
	w.judge.history(w)
	w.t.Logf("%d holds of the lock, %d pieces of work, %d late ones refused by their order, %d rollouts succeeded, %d breaks",
		len(w.judge.holds)/2, w.judge.work, w.judge.stale, len(w.acked), len(w.judge.breaks))
}

// round is one fault, and what comes after it.
func (w *world) round(n int, f fault) measured {
	w.t.Helper()
	w.note("ROUND %d: %s", n, f.name)
	m := measured{fault: f.name}
	w.judge.reset(w)
	if w.rng.IntN(2) == 0 {
		w.hang(w.holder())
	}
	heal := f.do(w)
	if f.to > 0 {
		w.run(w.between(f.from, f.to))
	}
	if heal != nil {
		heal()
	}
	w.unhang()
	healed := monotonic()
	since := func() time.Duration { return time.Duration(monotonic() - healed) }
	w.note("round %d: it is over", n)
	w.until(recovery, f.name+": the lock passes on, and a rollout reaches every node", func() bool {
		if m.consul == 0 && w.probes.answered(healed) {
			m.consul = since()
		}
		if m.lock == 0 && w.judge.begunAt > healed {
			m.lock, m.gap = since(), w.judge.gap
		}
		if m.rollout == 0 && len(w.acked) > 0 {
			if last := w.acked[len(w.acked)-1]; last.at > healed && last.full() {
				m.rollout = since()
			}
		}
		return m.consul > 0 && m.lock > 0 && m.rollout > 0
	})
	w.until(recovery, f.name+": Consul is well", w.wellAgain)
	w.judge.audit(w)
	w.t.Logf("round %d: %s: no work for %.1f s; after it Consul %.1f s, the lock %.1f s, a rollout %.1f s", n, m.fault, m.gap.Seconds(), m.consul.Seconds(), m.lock.Seconds(), m.rollout.Seconds())
	w.promised("the lock passed on", m.lock-m.consul)
	w.promised("a rollout reached every node", m.rollout-m.consul)
	return m
}

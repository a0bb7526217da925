package history

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

var (
	forTime = flag.Duration("for", 0, "make histories for so long; 0: one of each lock")
	first   = flag.Uint64("seed", 1, "the first seed")
)

const (
	// side is how many histories are made beside each other.
	side = 6
	// contenders of one lock at a time.
	contenders = 3
	// span is for how long a lock is disturbed.
	span = 15 * time.Second
	// limit bounds the end of a history: TTL, lock-delay and quiesce are served
	// one after the other by those that still wait.
	limit = 3 * time.Minute
)

// policy breaks the dead on proof, and the living when they hold the lock for
// longer than they should.
const policy = `policy "history" {
  locks = ["**"]
  hot "dead" {
    when  = holder.alive == false
    proof = true
  }
  hot "held" {
    when = lock.held_for > 2
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
      max = 100000
      per = "1h"
    }
  }
}
`

func TestHistory(t *testing.T) {
	c := harness.StartConsul(t, harness.WithHCL("limits { http_max_conns_per_client = 3000 }"))
	path := filepath.Join(t.TempDir(), "policy.hcl")
	if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(*forTime)
	var seed, made, began, worked atomic.Uint64
	seed.Store(*first - 1)
	var wg sync.WaitGroup
	for range side {
		wg.Go(func() {
			for {
				n := seed.Add(1)
				t.Run(fmt.Sprintf("seed %d", n), func(t *testing.T) {
					b, w := newRun(t, c, path, n).play()
					made.Add(1)
					began.Add(b)
					worked.Add(w)
				})
				if t.Failed() || !time.Now().Before(deadline) {
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d histories, %d commands began, %d pieces of work", made.Load(), began.Load(), worked.Load())
	if n := made.Load(); !t.Failed() && (began.Load() < 3*n || worked.Load() < 100*n) {
		t.Errorf("%d commands and %d pieces of work in %d histories: the test tests nothing", began.Load(), worked.Load(), n)
	}
}

// run is one history: one lock, those who want it, and what befalls them. The
// seed fixes what befalls them, not when it does.
type run struct {
	t      *testing.T
	consul *harness.Consul
	api    *api.Client
	rng    *rand.Rand
	dir    string
	prefix string
	policy string

	clients int
	live    []*contender
	story   []string
}

// contender is one `lock exec`.
type contender struct {
	*harness.Process
	id int
	// wakes is when a stopped one is woken; zero: it runs.
	wakes time.Time
}

func newRun(t *testing.T, c *harness.Consul, policy string, seed uint64) *run {
	return &run{
		t: t, consul: c, api: c.Client(), rng: rand.New(rand.NewPCG(seed, 2)),
		dir: t.TempDir(), prefix: "history-" + strconv.FormatUint(seed, 10), policy: policy,
	}
}

func (r *run) between(from, to time.Duration) time.Duration {
	return from + time.Duration(r.rng.Int64N(int64(to-from)))
}

func (r *run) note(format string, args ...any) {
	r.story = append(r.story, fmt.Sprintf("%d ", monotonic())+fmt.Sprintf(format, args...))
}

func (r *run) start() {
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	r.clients++
	d := r.between(50*time.Millisecond, 4*time.Second)
	p := harness.Start(r.t, harness.Spec{
		Path: harness.Aimlock.Path(r.t), Name: fmt.Sprintf("contender %d", r.clients),
		Args: []string{"lock", "exec", "-prefix", r.prefix, "-policy", r.policy, "-grace", "200ms", "a", "--", self},
		Env:  append(r.consul.Env(), fmt.Sprintf("%s=%d %d %d %s", workerVar, r.clients, monotonic(), d, r.dir)),
	})
	r.note("contender %d (pid %d) starts, to work for %s", r.clients, p.Pid(), d)
	r.live = append(r.live, &contender{Process: p, id: r.clients})
}

func (r *run) play() (began, worked uint64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	next := time.Now()
	for end := time.Now().Add(span); time.Now().Before(end); <-tick.C {
		r.reap()
		for len(r.live) < contenders {
			r.start()
		}
		if time.Now().After(next) {
			r.disturb()
			next = time.Now().Add(r.between(0, 1500*time.Millisecond))
		}
	}
	for end := time.Now().Add(limit); len(r.live) > 0; <-tick.C {
		r.reap()
		if time.Now().After(end) {
			r.t.Fatalf("%d contenders have not ended %s after the last fault\n%s", len(r.live), limit, strings.Join(r.story, "\n"))
		}
	}
	return r.judge()
}

// reap takes those that ended out, and wakes those whose time has come.
func (r *run) reap() {
	r.live = slices.DeleteFunc(r.live, func(c *contender) bool {
		select {
		case <-c.Done():
			r.note("contender %d ended: %s", c.id, strings.TrimSpace(c.Stderr()))
			return true
		default:
		}
		if !c.wakes.IsZero() && time.Now().After(c.wakes) {
			r.note("contender %d is woken", c.id)
			c.Thaw()
			c.wakes = time.Time{}
		}
		return false
	})
}

func (r *run) disturb() {
	c := r.live[r.rng.IntN(len(r.live))]
	switch n := r.rng.IntN(10); {
	case n < 3:
		r.note("contender %d is killed", c.id)
		c.Kill()
	case n < 5:
		r.note("contender %d is stopped", c.id)
		c.Freeze()
		c.wakes = time.Now().Add(r.between(500*time.Millisecond, 14*time.Second))
	case n == 5:
		r.signalBelow(c, syscall.SIGKILL)
	case n == 6:
		r.signalBelow(c, syscall.SIGSTOP)
	case n == 7:
		r.meddle()
	}
}

// signalBelow signals the supervisor or the command of a contender.
func (r *run) signalBelow(c *contender, sig syscall.Signal) {
	pid := child(c.Pid())
	if below := child(pid); below != 0 && r.rng.IntN(2) == 0 {
		pid = below
	}
	if pid == 0 {
		return
	}
	r.note("process %d of contender %d gets %s", pid, c.id, sig)
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		r.t.Error(err)
	}
}

// child is a child of a process, 0 if it has none.
func child(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for f := range bytes.FieldsSeq(b) {
		n, err := strconv.Atoi(string(f))
		if err == nil {
			return n
		}
	}
	return 0
}

// meddle is what an operator does in a hurry.
func (r *run) meddle() {
	p, _, err := r.api.KV().Get(r.prefix+"/locks/a", nil)
	if err != nil {
		r.t.Error(err)
		return
	}
	if p == nil || p.Session == "" {
		return
	}
	if r.rng.IntN(2) == 0 {
		r.note("the key is deleted")
		if _, err := r.api.KV().Delete(p.Key, nil); err != nil {
			r.t.Error(err)
		}
		return
	}
	r.note("session %s is destroyed", p.Session)
	if _, err := r.api.Session().Destroy(p.Session, nil); err != nil {
		r.t.Error(err)
	}
}

// model is a lock: each holder's token is newer than every one before, and
// nothing is done but by the last one that began.
var model = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, in, _ any) (bool, any) {
		held, op := state.(uint64), in.(operation)
		if op.Kind == "b" {
			return op.Token > held, op.Token
		}
		return op.Token == held, held
	},
	Equal: func(a, b any) bool { return a == b },
}

func (r *run) judge() (began, worked uint64) {
	var ops []porcupine.Operation
	for _, o := range operations(r.t, r.dir) {
		if o.Kind == "b" {
			began++
		} else {
			worked++
		}
		ops = append(ops, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Output: nil, Return: o.Return})
	}
	if res := porcupine.CheckOperationsTimeout(model, ops, time.Minute); res != porcupine.Ok {
		r.t.Errorf("porcupine: %s: this is no history of one lock\n%s\n%s", res, strings.Join(r.story, "\n"), overlaps(ops))
	}
	return began, worked
}

// overlaps tells where commands worked beside each other, for people.
func overlaps(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
	out, last := "", uint64(0)
	for _, p := range ops {
		if o := p.Input.(operation); o.Kind == "b" || o.Token != last {
			out += fmt.Sprintf("%d %+v\n", o.Return, o)
			last = o.Token
		}
	}
	return out
}

package guard

import (
	"context"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// world is one Consul in this process on virtual time, and locksmiths of it.
type world struct {
	t      *testing.T
	srv    *devconsul.Server
	faults *devconsul.Faults
	kv     *consulkv.Client
	keys   keys.Prefix
}

func run(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		faults := &devconsul.Faults{}
		srv, err := devconsul.New(devconsul.Config{Intercept: faults.Intercept, NodeName: "node-1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = srv.Close() })
		w := &world{t: t, srv: srv, faults: faults, keys: keys.DefaultPrefix}
		w.kv = w.connect(nil)
		f(t, w)
	})
}

// connect makes a client; wrap may stand between it and the Consul.
func (w *world) connect(wrap func(http.RoundTripper) http.RoundTripper) *consulkv.Client {
	w.t.Helper()
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		rt = consulkvtest.InProcess(w.srv.Handler())(rt)
		if wrap != nil {
			rt = wrap(rt)
		}
		return rt
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return kv
}

var self1 = sync.OnceValues(hostproc.Self)

// shipped is what a client without policies judges by.
var shipped = sync.OnceValues(func() (*policies.Set, error) { return policies.Builtin(policies.BuiltinDefault) })

// corpse is a process of this host that has ended and was reaped.
var corpse = sync.OnceValues(func() (hostproc.Process, error) {
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		return hostproc.Process{}, err
	}
	p, err := hostproc.Lookup(cmd.Process.Pid)
	if err != nil {
		return p, err
	}
	if err := cmd.Process.Kill(); err != nil {
		return p, err
	}
	_ = cmd.Wait()
	return p, nil
})

// TestMain makes what is made once outside of every bubble.
func TestMain(m *testing.M) {
	if _, err := corpse(); err != nil {
		panic(err)
	}
	if _, err := shipped(); err != nil {
		panic(err)
	}
	if _, err := self1(); err != nil {
		panic(err)
	}
	m.Run()
}

func asDead(c *locksmith.Config) {
	c.Self, _ = self1()
	p, _ := corpse()
	c.Self.PID, c.Self.StartTicks = p.PID, p.StartTicks
}

func asElsewhere(c *locksmith.Config) {
	c.Self, _ = self1()
	c.Self.Host, c.Self.BootID = "elsewhere", "another-boot"
}

func parse(t *testing.T, src string) *policies.Set {
	t.Helper()
	set, diags := policies.Parse("test.hcl", []byte(src))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return set
}

func (w *world) client(mod ...func(*locksmith.Config)) *locksmith.Client {
	w.t.Helper()
	cfg := locksmith.Config{Consul: w.kv, Prefix: w.keys, By: "tester", LeaseClock: bubbleTime}
	for _, m := range mod {
		m(&cfg)
	}
	if cfg.Policies == nil {
		cfg.Policies, _ = shipped()
	}
	c, err := locksmith.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) hold(c *locksmith.Client, name string) *locksmith.Hold {
	w.t.Helper()
	h, err := c.Acquire(w.t.Context(), locksmith.Request{Names: []string{name}, Operation: "test", Try: true})
	if err != nil {
		w.t.Fatalf("acquire %s: %v", name, err)
	}
	w.t.Cleanup(func() { _ = h.Release(context.Background()) })
	return h
}

// smith is a locksmith under way.
type smith struct {
	*Guard
	w      *world
	reload chan struct{}
	load   func() (*policies.Set, error)
	log    *logBook
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// logBook keeps what was logged.
type logBook struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(p)
}

func (l *logBook) has(text string) bool { return l.count(text) > 0 }

func (l *logBook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.lines.String(), text)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

// make makes a locksmith that does not run yet.
func (w *world) make(policy string, mod ...func(*Config)) *smith {
	w.t.Helper()
	s := &smith{w: w, reload: make(chan struct{}, 1), log: &logBook{}, done: make(chan struct{})}
	c := w.client(func(c *locksmith.Config) {
		if policy != "" {
			c.Policies = parse(w.t, policy)
		}
	})
	cfg := Config{
		Client: c, Source: Sweeps(c.Reader()), Reload: s.reload,
		Load: func() (*policies.Set, error) { return s.load() },
		Log:  hclog.New(&hclog.LoggerOptions{Output: s.log, Level: hclog.Debug}),
	}
	for _, m := range mod {
		m(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Guard = g
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("log:\n%s", s.log)
		}
	})
	return s
}

// start makes a locksmith and runs it until the test ends.
func (w *world) start(policy string, mod ...func(*Config)) *smith {
	w.t.Helper()
	s := w.make(policy, mod...)
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(s.done)
		s.err = s.Run(ctx)
	}()
	w.t.Cleanup(s.stop)
	return s
}

func (s *smith) stop() {
	s.cancel()
	<-s.done
	if s.err != nil {
		s.w.t.Errorf("it ended with %v", s.err)
	}
}

// until waits for something to become true in virtual time, and returns when.
func (w *world) until(within time.Duration, what string, is func() bool) time.Duration {
	w.t.Helper()
	start := time.Now()
	for !is() {
		if time.Since(start) > within {
			w.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(start)
}

func (s *smith) leads(within time.Duration) time.Duration {
	s.w.t.Helper()
	return s.w.until(within, "it leads", func() bool { return s.Health().Role == RoleLeader })
}

// pair is a lock's key as it stands.
func (w *world) pair(name string) *api.KVPair {
	w.t.Helper()
	p, err := w.kv.Get(w.t.Context(), w.keys.Lock(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) held(name string) bool {
	p := w.pair(name)
	return p != nil && p.Session != ""
}

func (w *world) freed(name string, within time.Duration) time.Duration {
	w.t.Helper()
	return w.until(within, name+" is free", func() bool { return !w.held(name) })
}

// stays fails if something does not hold all the time for d.
func (w *world) stays(d time.Duration, what string, is func() bool) {
	w.t.Helper()
	for start := time.Now(); time.Since(start) < d; time.Sleep(500 * time.Millisecond) {
		if synctest.Wait(); !is() {
			w.t.Fatalf("after %s no longer: %s", time.Since(start), what)
		}
	}
}

func (w *world) put(key string, v any) {
	w.t.Helper()
	b, ok := v.([]byte)
	if !ok {
		b = records.Encode(v)
	}
	if err := w.kv.Put(w.t.Context(), key, b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.kv.Txn(w.t.Context(), consulkv.Delete(key)); err != nil {
		w.t.Fatal(err)
	}
}

// always is HOT for whoever holds a lock, but for the leader's.
const always = `policy "p" {
	locks = ["job-*"]
	hot "always" {
		when = session.exists
	}
	break {
		approval = "auto"
		confirm {
			observations = 1
		}
	}
}
`

// bubbleTime is the time of a test's bubble. The machine's own clock goes on while
// the machine has no time for the test, and leases in the bubble would end.
func bubbleTime() float64 { return float64(time.Now().UnixNano()) / 1e9 }

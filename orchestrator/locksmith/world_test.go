package locksmith

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

// world is one Consul in this process, and the clients of it. Its time is
// virtual: TTLs, leases and pauses have their real length and take none.
type world struct {
	t      *testing.T
	srv    *devconsul.Server
	faults *devconsul.Faults
	late   *consulkvtest.Late
	net    *network
	kv     *consulkv.Client
	keys   keys.Prefix
}

// run runs f in a world of its own.
func run(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func newWorld(t *testing.T) *world {
	t.Helper()
	faults := &devconsul.Faults{}
	srv, err := devconsul.New(devconsul.Config{Intercept: faults.Intercept, NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	w := &world{t: t, srv: srv, faults: faults, late: &consulkvtest.Late{}, net: &network{}, keys: keys.DefaultPrefix}
	w.kv = w.connect()
	return w
}

// connect makes a client of the world's Consul by the world's network.
func (w *world) connect() *consulkv.Client {
	w.t.Helper()
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		w.net.to(w.late.Wrap(consulkvtest.InProcess(w.srv.Handler())(rt)))
		return w.net
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return kv
}

// network counts what is sent, and lets a test act just before a request.
type network struct {
	sent  atomic.Int64
	mu    sync.Mutex
	next  http.RoundTripper
	hooks []*hook
}

// to sends all further requests by rt.
func (n *network) to(rt http.RoundTripper) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next = rt
}

type hook struct {
	match func(*http.Request) bool
	do    func()
}

// before runs do once, before the next request that match picks is sent.
func (n *network) before(match func(*http.Request) bool, do func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hooks = append(n.hooks, &hook{match, do})
}

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	n.sent.Add(1)
	if do := n.take(req); do != nil {
		do()
	}
	n.mu.Lock()
	next := n.next
	n.mu.Unlock()
	return next.RoundTrip(req)
}

func (n *network) take(req *http.Request) func() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, h := range n.hooks {
		if h.match(req) {
			n.hooks = slices.Delete(n.hooks, i, i+1)
			return h.do
		}
	}
	return nil
}

func (w *world) client(mod ...func(*Config)) *Client {
	w.t.Helper()
	cfg := Config{Consul: w.kv, Prefix: w.keys, By: "tester", LeaseClock: bubbleTime}
	for _, m := range mod {
		m(&cfg)
	}
	if cfg.Policies == nil {
		cfg.Policies, _ = shipped()
	}
	c, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// shipped is what a client without policies judges by: a parse takes longer than many
// a test.
var shipped = sync.OnceValues(func() (*policies.Set, error) { return policies.Builtin(policies.BuiltinDefault) })

// withPolicy judges by the policies in src.
func withPolicy(t *testing.T, src string) func(*Config) {
	t.Helper()
	set, diags := policies.Parse("test.hcl", []byte(src))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return func(c *Config) { c.Policies = set }
}

func named(by string) func(*Config) { return func(c *Config) { c.By = by } }

var self = sync.OnceValues(hostproc.Self)

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
	// Each check is a whole story. More of them: -args -rapid.checks=1000
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	if _, err := corpse(); err != nil {
		panic(err)
	}
	if _, err := self(); err != nil {
		panic(err)
	}
	if _, err := shipped(); err != nil {
		panic(err)
	}
	m.Run()
}

// asDead makes a client whose records name a process of this host that is dead:
// what a kill -9 leaves behind. The holds that it makes go on all the same.
func asDead(c *Config) {
	c.Self, _ = self()
	p, _ := corpse()
	c.Self.PID, c.Self.StartTicks = p.PID, p.StartTicks
}

// asElsewhere makes a client that says it runs on another host.
func asElsewhere(c *Config) {
	c.Self, _ = self()
	c.Self.Host, c.Self.BootID = "elsewhere", "another-boot"
}

func (w *world) acquire(c *Client, req Request) *Hold {
	w.t.Helper()
	h, err := c.Acquire(w.t.Context(), req)
	if err != nil {
		w.t.Fatalf("acquire: %v", err)
	}
	w.t.Cleanup(func() { _ = h.Release(context.Background()) })
	return h
}

// pending is an Acquire under way.
type pending struct {
	w       *world
	done    chan struct{}
	hold    *Hold
	err     error
	took    time.Duration
	mu      sync.Mutex
	notices []Notice
	cancel  context.CancelFunc
}

// acquiring begins an Acquire that other things happen beside.
func (w *world) acquiring(c *Client, req Request) *pending {
	w.t.Helper()
	return w.pend(req, c.Acquire)
}

func (w *world) pend(req Request, acquire func(context.Context, Request) (*Hold, error)) *pending {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	p := &pending{w: w, done: make(chan struct{}), cancel: cancel}
	tell := req.Notify
	req.Notify = func(n Notice) {
		p.mu.Lock()
		p.notices = append(p.notices, n)
		p.mu.Unlock()
		if tell != nil {
			tell(n)
		}
	}
	start := time.Now()
	go func() {
		defer close(p.done)
		p.hold, p.err = acquire(ctx, req)
		p.took = time.Since(start)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-p.done
		if p.hold != nil {
			_ = p.hold.Release(context.Background())
		}
	})
	return p
}

// wait waits for the hold.
func (p *pending) wait(within time.Duration) *Hold {
	p.w.t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		p.w.t.Fatalf("nothing came of it within %s; it was told %v", within, p.kinds())
	}
	if p.err != nil {
		p.w.t.Fatalf("acquire: %v", p.err)
	}
	return p.hold
}

// waits fails unless it still waits after d.
func (p *pending) waits(d time.Duration) {
	p.w.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	select {
	case <-p.done:
		p.w.t.Fatalf("it does not wait any more: %v, %v", p.hold, p.err)
	default:
	}
}

func (p *pending) kinds() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, n := range p.notices {
		text := n.Kind
		if n.Status != nil {
			text += " " + n.Status.State
		}
		if n.Text != "" {
			text += ": " + n.Text
		}
		out = append(out, text)
	}
	return out
}

func (p *pending) told(kind string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.notices, func(n Notice) bool { return n.Kind == kind })
}

func (w *world) get(key string) *api.KVPair {
	w.t.Helper()
	p, err := w.kv.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) value(key string) string {
	w.t.Helper()
	if p := w.get(key); p != nil {
		return string(p.Value)
	}
	return ""
}

func (w *world) holder(name string) (*api.KVPair, records.Holder) {
	w.t.Helper()
	p := w.get(w.keys.Lock(name))
	if p == nil {
		w.t.Fatalf("lock %s has no key", name)
	}
	var h records.Holder
	if err := records.Decode(p.Key, p.Value, &h); err != nil {
		w.t.Fatal(err)
	}
	return p, h
}

// fence is what stands in fence/<name>; its zero value if nothing does.
func (w *world) fence(name string) records.Fence {
	w.t.Helper()
	var f records.Fence
	if p := w.get(w.keys.Fence(name)); p != nil {
		if err := records.Decode(p.Key, p.Value, &f); err != nil {
			w.t.Fatal(err)
		}
	}
	return f
}

func (w *world) put(key string, v any) {
	w.t.Helper()
	var b []byte
	switch v := v.(type) {
	case []byte:
		b = v
	case string:
		b = []byte(v)
	default:
		b = records.Encode(v)
	}
	if err := w.kv.Put(w.t.Context(), key, b); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.kv.API().KV().Delete(key, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) destroy(session string) {
	w.t.Helper()
	if _, err := w.kv.API().Session().Destroy(session, nil); err != nil {
		w.t.Fatal(err)
	}
}

// foreign takes a key as consul lock does.
func (w *world) foreign(key, behavior string) string {
	w.t.Helper()
	id, _, err := w.kv.API().Session().Create(&api.SessionEntry{Behavior: behavior}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.lockKey(key, id)
	return id
}

func (w *world) lockKey(key, session string) {
	w.t.Helper()
	p := &api.KVPair{Key: key, Flags: api.LockFlagValue, Session: session}
	if ok, _, err := w.kv.API().KV().Acquire(p, nil); err != nil || !ok {
		w.t.Fatalf("acquire %s: %v, %v", key, ok, err)
	}
}

// apply puts the client's policies in force.
func (w *world) apply(c *Client) {
	w.t.Helper()
	w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: c.set.Hash, Serial: 1, By: "tester", At: time.Now()})
}

func (w *world) breaks(name string) []records.Break {
	w.t.Helper()
	list, err := w.kv.List(w.t.Context(), w.keys.Breaks(name))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []records.Break
	for _, p := range list {
		var b records.Break
		if err := json.Unmarshal(p.Value, &b); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b records.Break) int { return a.Attempt - b.Attempt })
	return out
}

// outcomes are those of a lock's breaks, in order.
func (w *world) outcomes(name string) string {
	w.t.Helper()
	var out []string
	for _, b := range w.breaks(name) {
		out = append(out, b.Outcome)
	}
	return strings.Join(out, " ")
}

// spent is how many breaks the budget of a policy counts.
func (w *world) spent(policy string) int {
	w.t.Helper()
	p := w.get(w.keys.Budget(policy))
	if p == nil {
		return 0
	}
	var b records.Budget
	if err := records.Decode(p.Key, p.Value, &b); err != nil {
		w.t.Fatal(err)
	}
	return len(b.Breaks)
}

// stillHolds fails unless the lock stands as h took it, and h can write.
func (w *world) stillHolds(h *Hold) {
	w.t.Helper()
	for _, n := range h.Names() {
		if p, _ := w.holder(n); p.Session != h.Session() || p.ModifyIndex != h.Token() {
			w.t.Fatalf("lock %s is held by %q at %d, not by %s at %d", n, p.Session, p.ModifyIndex, h.Session(), h.Token())
		}
	}
	if _, err := h.Txn(w.t.Context(), consulkv.Set("probe", []byte(NewNonce(w.t.Context())))); err != nil {
		w.t.Fatalf("the holder cannot write: %v", err)
	}
}

// waitDone waits for a context to end and returns its cause.
func waitDone(t *testing.T, ctx context.Context, within time.Duration) error {
	t.Helper()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(within):
		t.Fatalf("nothing ended it within %s", within)
		return nil
	}
}

func one(name string) Request { return Request{Names: []string{name}, Operation: "test"} }

// unfenced is a request whose participants cannot check an order.
func unfenced(names ...string) Request {
	return Request{Names: names, Operation: "test", Quiesce: DefaultQuiesce}
}

// Pickers of requests.

func path(prefix string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, prefix) }
}

func bodyOf(r *http.Request) string {
	if r.Body == nil {
		return ""
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return ""
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return string(body)
}

// txnWith picks transactions with all of these verbs, or texts.
func txnWith(parts ...string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if r.URL.Path != "/v1/txn" {
			return false
		}
		body := bodyOf(r)
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(body, `"`+p+`"`) })
	}
}

// intentOf picks the transaction that begins a break of a lock.
func (w *world) intentOf(name string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return txnWith("cas")(r) && !txnWith("unlock")(r) && strings.Contains(bodyOf(r), w.keys.Breaks(name))
	}
}

// bubbleTime is the time of a test's bubble. The machine's own clock goes on while
// the machine has no time for the test, and leases in the bubble would end.
func bubbleTime() float64 { return float64(time.Now().UnixNano()) / 1e9 }

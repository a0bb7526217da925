package locksmith

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/policies"
)

// world is one Consul and the clients of it.
type world struct {
	t      *testing.T
	srv    *devconsul.Server
	faults *devconsul.Faults
	kv     *consulkv.Client
	keys   keys.Prefix
}

func newWorld(t *testing.T) *world {
	t.Helper()
	f := &devconsul.Faults{}
	srv, err := devconsul.Start(devconsul.Config{Intercept: f.Intercept})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, srv: srv, faults: f, kv: kv, keys: keys.DefaultPrefix}
}

func (w *world) client(mod ...func(*Config)) *Client {
	w.t.Helper()
	cfg := Config{Consul: w.kv, Prefix: w.keys, By: "tester"}
	for _, m := range mod {
		m(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func withPolicy(t *testing.T, src string) func(*Config) {
	t.Helper()
	set, diags := policies.Parse("test.hcl", []byte(src))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return func(c *Config) { c.Policies = set }
}

// asDead makes a client whose records name a process of this host that is
// dead: what a kill -9 leaves behind.
func asDead(t *testing.T) func(*Config) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	self.PID = cmd.Process.Pid
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return func(c *Config) { c.Self = self }
}

// asElsewhere makes a client that says it runs on another host.
func asElsewhere(t *testing.T) func(*Config) {
	t.Helper()
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	self.Host, self.BootID = "elsewhere", "another-boot"
	return func(c *Config) { c.Self = self }
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

func (w *world) get(key string) *api.KVPair {
	w.t.Helper()
	p, err := w.kv.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
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

func TestAcquireRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client()
	h := w.acquire(c, one("a"))
	p, rec := w.holder("a")
	if p.Session != h.Session() || p.ModifyIndex != h.Token() {
		t.Fatalf("key has session %s index %d, hold %s token %d", p.Session, p.ModifyIndex, h.Session(), h.Token())
	}
	if rec.Lock != "a" || rec.Nonce == "" || rec.Tool != "aimlock" || rec.Released {
		t.Fatalf("record %+v", rec)
	}
	if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("1"))); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cause := context.Cause(h.Context()); !errors.Is(cause, ErrReleased) {
		t.Fatalf("cause %v", cause)
	}
	p, rec = w.holder("a")
	if p.Session != "" || !rec.Released {
		t.Fatalf("after release: session %q, released %v", p.Session, rec.Released)
	}
	if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("2"))); err == nil {
		t.Fatal("a released hold still writes")
	}
	next := w.acquire(c, one("a"))
	if next.Token() <= h.Token() {
		t.Fatalf("token went from %d to %d", h.Token(), next.Token())
	}
	services, err := w.kv.API().Agent().Services()
	if err != nil || len(services) != 1 {
		t.Fatalf("services of the agent: %d, %v; only the present holder's may stand", len(services), err)
	}
}

func TestFencedWriteRefusedAfterForeignWrites(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(w *world, h *Hold){
		"put on the held key": func(w *world, _ *Hold) { w.put(w.keys.Lock("a"), "mine") },
		"key deleted": func(w *world, _ *Hold) {
			if _, err := w.kv.API().KV().Delete(w.keys.Lock("a"), nil); err != nil {
				w.t.Fatal(err)
			}
		},
		"session destroyed": func(w *world, h *Hold) {
			if _, err := w.kv.API().Session().Destroy(h.Session(), nil); err != nil {
				w.t.Fatal(err)
			}
		},
		"service deregistered": func(w *world, h *Hold) {
			if err := w.kv.API().Agent().ServiceDeregister(h.sess.service); err != nil {
				w.t.Fatal(err)
			}
		},
		"check critical": func(w *world, h *Hold) {
			if err := w.kv.API().Agent().UpdateTTL(h.sess.service, "", api.HealthCritical); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			h := w.acquire(w.client(), one("a"))
			harm(w, h)
			_, err := h.Txn(t.Context(), consulkv.Set("work", []byte("x")))
			if !errors.Is(err, ErrLost) {
				t.Fatalf("write after %s: %v", name, err)
			}
			if cause := waitDone(t, h.Context(), 5*time.Second); !errors.Is(cause, ErrLost) {
				t.Fatalf("cause %v", cause)
			}
			if w.get("work") != nil {
				t.Fatal("the write went through")
			}
		})
	}
}

func TestLossIsNoticedWithoutWriting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.acquire(w.client(), one("a"))
	if _, err := w.kv.API().Session().Destroy(h.Session(), nil); err != nil {
		t.Fatal(err)
	}
	if cause := waitDone(t, h.Context(), 5*time.Second); !errors.Is(cause, ErrLost) {
		t.Fatalf("cause %v", cause)
	}
}

// A holder that hears nothing from Consul stops before its lease is over.
func TestSelfFencing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.acquire(w.client(), one("a"))
	start := time.Now()
	w.faults.Add(devconsul.Fault{Drop: true})
	cause := waitDone(t, h.Context(), CheckTTL+time.Second)
	if !errors.Is(cause, ErrLost) {
		t.Fatalf("cause %v", cause)
	}
	if took := time.Since(start); took > CheckTTL {
		t.Fatalf("stopped after %s, later than the check's TTL", took)
	}
	w.faults.Clear()
	if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("x"))); !errors.Is(err, ErrLost) {
		t.Fatalf("a holder whose lease was over writes again: %v", err)
	}
	if w.get("work") != nil {
		t.Fatal("the write went through")
	}
}

func txnWith(verb string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if r.URL.Path != "/v1/txn" {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		return strings.Contains(string(body), `"`+verb+`"`)
	}
}

// The answer to the acquiring transaction is lost, but it stands.
func TestAmbiguousAcquireStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, DropAfter: true})
	h := w.acquire(w.client(), one("a"))
	p, _ := w.holder("a")
	if p.Session != h.Session() || p.ModifyIndex != h.Token() {
		t.Fatalf("token %d, key %d", h.Token(), p.ModifyIndex)
	}
	if p.LockIndex != 1 {
		t.Fatalf("LockIndex %d: it was locked again blindly", p.LockIndex)
	}
}

// The acquiring transaction never arrived: another session tries again.
func TestAmbiguousAcquireDoesNotStand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.faults.Add(devconsul.Fault{Match: txnWith("lock"), Times: 1, Drop: true})
	h := w.acquire(w.client(), one("a"))
	sessions, _, err := w.kv.API().Session().List(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(sessions) != 1 || sessions[0].ID != h.Session() {
		t.Fatalf("%d sessions are left; the doubtful one must be destroyed", len(sessions))
	}
}

func TestAmbiguousRelease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.acquire(w.client(), one("a"))
	w.faults.Add(devconsul.Fault{Match: txnWith("unlock"), Times: 1, DropAfter: true})
	if err := h.Release(t.Context()); err != nil {
		t.Fatalf("release: %v", err)
	}
	if _, rec := w.holder("a"); !rec.Released {
		t.Fatal("not released")
	}
}

func TestSeveralLocksAreOneAcquisition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.client()
	other := w.acquire(c, one("b"))
	_, err := c.Acquire(t.Context(), Request{Names: []string{"a", "b"}, Try: true})
	var ref *RefusedError
	if !errors.As(err, &ref) || ref.Status.Name != "b" || ref.Status.State != Held {
		t.Fatalf("got %v", err)
	}
	if w.get(w.keys.Lock("a")) != nil {
		t.Fatal("a was taken alone")
	}
	if err := other.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := w.acquire(c, Request{Names: []string{"a", "b"}})
	pa, _ := w.holder("a")
	pb, _ := w.holder("b")
	if pa.ModifyIndex != h.Token() || pb.ModifyIndex != h.Token() {
		t.Fatalf("token %d, keys %d and %d", h.Token(), pa.ModifyIndex, pb.ModifyIndex)
	}
	w.put(w.keys.Lock("b"), "x")
	if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
		t.Fatalf("one of two locks is lost, and: %v", err)
	}
}

func TestPlainKeyIsNotOverwritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(w.keys.Lock("a"), "somebody's data")
	_, err := w.client().Acquire(t.Context(), one("a"))
	if !errors.Is(err, ErrPlainKey) || !strings.Contains(err.Error(), w.keys.Lock("a")) {
		t.Fatalf("got %v", err)
	}
	if string(w.get(w.keys.Lock("a")).Value) != "somebody's data" {
		t.Fatal("it was overwritten")
	}
}

// A successor on the same host takes over from a holder whose process is dead
// long before Consul would give the lock away, and owes nothing.
func TestBreakAndTakeOnProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	req := one("a")
	req.Quiesce = DefaultQuiesce
	old := w.acquire(w.client(asDead(t)), req)
	if err := old.Progress(t.Context(), 3, 10, "nodes", ""); err != nil {
		t.Fatal(err)
	}
	var hot *Status
	start := time.Now()
	req.Notify = func(n Notice) {
		if n.Status != nil && n.Status.State == Hot {
			hot = n.Status
		}
	}
	h := w.acquire(w.client(), req)
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("took %s", took)
	}
	if hot == nil || hot.Rule != "holder-dead" || *hot.Token != old.Token() || hot.Progress == nil || *hot.Progress.Done != 3 {
		t.Fatalf("was told %+v", hot)
	}
	if h.Token() <= old.Token() {
		t.Fatalf("token %d after %d", h.Token(), old.Token())
	}
	if p := w.get(w.keys.Fence("a")); p != nil {
		t.Fatalf("a proved-dead holder left %s", p.Value)
	}
	if _, err := old.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
		t.Fatalf("the old holder writes: %v", err)
	}
	b := w.breaks("a")
	if len(b) != 1 || b[0].Outcome != records.OutcomeTaken || b[0].Session != old.Session() || b[0].NewSession != h.Session() || !b[0].Proof || b[0].EndedAt == nil {
		t.Fatalf("breaks %+v", b)
	}
	if e, _, _ := w.kv.API().Session().Info(old.Session(), nil); e != nil {
		t.Fatal("the old session still stands")
	}
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
	return out
}

package witness_test

import (
	"context"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/witness"
)

const prefix = keys.Prefix(keys.DefaultPrefix)

// host is a Consul, a witness of this host, and a process that holds a lock.
type host struct {
	t    *testing.T
	kv   *consulkv.Client
	self hostproc.Identity
	cmd  *exec.Cmd
}

func newHost(t *testing.T) *host {
	t.Helper()
	return newHostVia(t, func(next http.Handler) http.Handler { return next }, nil)
}

// newHostVia has via stand before Consul, and what is logged written to log.
func newHostVia(t *testing.T, via func(http.Handler) http.Handler, log hclog.Logger) *host {
	t.Helper()
	srv, err := devconsul.New(devconsul.Config{NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Token: "t", Wrap: consulkvtest.InProcess(via(srv.Handler()))})
	if err != nil {
		t.Fatal(err)
	}
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, kv: kv, self: self}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		witness.New(witness.Config{Consul: kv, Prefix: prefix, Self: self, Agent: "aimlock-agent-node-1", Log: log}).Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

// hold makes a process the holder of lock a, as a holder does it.
func (h *host) hold(mod func(*records.Holder)) records.Holder {
	h.t.Helper()
	h.cmd = exec.CommandContext(h.t.Context(), "sleep", "600")
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = h.cmd.Process.Kill(); _ = h.cmd.Wait() })
	p, err := hostproc.Lookup(h.cmd.Process.Pid)
	if err != nil {
		h.t.Fatal(err)
	}
	id, _, err := h.kv.API().Session().Create(nil, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	rec := records.Holder{
		Version: 1, Lock: "a", Nonce: "nonce-of-" + id, Session: id, Tool: "aimlock", Host: h.self.Host, Node: "node-1", PID: p.PID, StartTicks: p.StartTicks,
		BootID: h.self.BootID, PIDNS: h.self.PIDNS, Check: "aimlock-holder-x",
	}
	mod(&rec)
	meta, _ := records.HolderMeta(string(prefix), []string{"a"}, nil)
	err = h.kv.API().Agent().ServiceRegister(&api.AgentServiceRegistration{ID: "aimlock-holder-x", Name: records.HolderService, Meta: meta})
	if err != nil {
		h.t.Fatal(err)
	}
	if ok, _, err := h.kv.API().KV().Acquire(&api.KVPair{Key: prefix.Lock("a"), Session: id, Value: records.Encode(&rec)}, nil); err != nil || !ok {
		h.t.Fatal(ok, err)
	}
	return rec
}

// until waits for what stands at observed/ to be as is says; nil: nothing.
func (h *host) until(what string, is func(*records.Observed) bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	key := prefix.Observed("a", "node-1")
	w := consulkv.NewWatcher(h.kv, consulkv.WatchOptions{Name: key, MinInterval: 10 * time.Millisecond}, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
		return h.kv.API().KV().Get(key, q)
	})
	for {
		p, err := w.Next(ctx)
		if err != nil {
			h.t.Fatalf("%s: %v", what, err)
		}
		var o *records.Observed
		if p != nil {
			o = &records.Observed{}
			if err := records.Decode(key, p.Value, o); err != nil {
				h.t.Fatal(err)
			}
		}
		if is(o) {
			return
		}
	}
}

// A holder is seen alive, then dead, and what was said goes with the hold.
func TestWitness(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	rec := h.hold(func(*records.Holder) {})
	ours := func(o *records.Observed) bool {
		return o != nil && o.Session == rec.Session && o.Nonce == rec.Nonce && o.BootID == rec.BootID && o.Agent == "aimlock-agent-node-1"
	}
	h.until("alive", func(o *records.Observed) bool { return ours(o) && o.Alive != nil && *o.Alive && !o.Gone })
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.until("dead, and nothing is left", func(o *records.Observed) bool { return ours(o) && o.Alive != nil && !*o.Alive && o.Gone })
	if err := h.kv.API().Agent().ServiceDeregister("aimlock-holder-x"); err != nil {
		t.Fatal(err)
	}
	rec.Released = true
	if ok, _, err := h.kv.API().KV().Release(&api.KVPair{Key: prefix.Lock("a"), Session: rec.Session, Value: records.Encode(&rec)}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	h.until("what was said is gone", func(o *records.Observed) bool { return o == nil })
}

// Of a holder in another pid namespace nothing is said but that it cannot be
// told: its pid means another process here.
func TestWitnessOfAContainer(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.hold(func(r *records.Holder) { r.PIDNS, r.PID = "pid:[1]", 1<<22 })
	h.until("unknown", func(o *records.Observed) bool { return o != nil && o.Alive == nil && !o.Gone && o.Why != "" })
}

package evidence_test

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// world is a Consul in this process, and a reader of it.
type world struct {
	t       *testing.T
	faults  *devconsul.Faults
	handler http.Handler
	kv      *consulkv.Client
	reader  *evidence.Reader
	self    hostproc.Identity
}

const prefix = keys.Prefix(keys.DefaultPrefix)

func newWorld(t *testing.T) *world {
	t.Helper()
	f := &devconsul.Faults{}
	srv, err := devconsul.New(devconsul.Config{Intercept: f.Intercept, NodeName: "node-1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: consulkvtest.InProcess(srv.Handler()), RetryFor: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, faults: f, handler: srv.Handler(), kv: kv, self: self, reader: &evidence.Reader{Consul: kv, Keys: prefix, Self: self}}
}

// record is the holder record of this process for the lock a.
func (w *world) record(session string, mod ...func(*records.Holder)) records.Holder {
	h := records.Holder{
		Version: records.Version, Lock: "a", Nonce: "nonce", Session: session, Tool: "aimlock", Host: w.self.Host, Node: "node-1",
		PID: w.self.PID, StartTicks: w.self.StartTicks, StartedAt: w.self.StartedAt, BootID: w.self.BootID, PIDNS: w.self.PIDNS,
		CGroup: w.self.CGroup, User: "tester", AcquiredAt: time.Now(),
	}
	for _, m := range mod {
		m(&h)
	}
	return h
}

func (w *world) session() string {
	w.t.Helper()
	id, _, err := w.kv.API().Session().Create(&api.SessionEntry{TTL: "15s", LockDelay: time.Millisecond}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// hold takes a key for a new session with a value that may need its id.
func (w *world) hold(key string, flags uint64, value func(session string) []byte) string {
	w.t.Helper()
	id := w.session()
	p := &api.KVPair{Key: key, Flags: flags, Session: id, Value: value(id)}
	if ok, _, err := w.kv.API().KV().Acquire(p, nil); err != nil || !ok {
		w.t.Fatalf("hold %s: %v, %v", key, ok, err)
	}
	return id
}

func (w *world) holdOwn(mod ...func(*records.Holder)) string {
	w.t.Helper()
	return w.hold(prefix.Lock("a"), 0, func(id string) []byte { h := w.record(id, mod...); return records.Encode(&h) })
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

func (w *world) read(name string) *evidence.Snapshot {
	w.t.Helper()
	s, err := w.reader.Read(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) facts(s *evidence.Snapshot) policies.Facts {
	return w.reader.Facts(s, nil, nil, time.Now())
}

func path(prefix string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, prefix) }
}

// deadProcess is one of this host that has ended and was reaped.
func deadProcess(t *testing.T) hostproc.Process {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := hostproc.Lookup(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return p
}

// What a test expects of a fact: a value, nothing ("null"), or that it is
// unknown for a reason that contains a text ("?text").
type want map[string]any

func (w want) check(t *testing.T, f policies.Facts) {
	t.Helper()
	for name, exp := range w {
		got, ok := f.Lookup(name)
		if !ok {
			t.Errorf("%s is not there", name)
			continue
		}
		if got.Source == "" || got.ObservedAt.IsZero() {
			t.Errorf("%s has no source or time: %+v", name, got)
		}
		text, isText := exp.(string)
		switch {
		case isText && strings.HasPrefix(text, "?"):
			if got.Value.IsKnown() || got.Why == "" || !strings.Contains(got.Why, text[1:]) {
				t.Errorf("%s is %#v (%q), want it unknown for %q", name, got.Value, got.Why, text[1:])
			}
		case !got.Value.IsKnown():
			t.Errorf("%s is unknown: %s", name, got.Why)
		case isText && text == "null":
			if !got.Value.IsNull() {
				t.Errorf("%s is %#v, want null", name, got.Value)
			}
		default:
			if !got.Value.RawEquals(ctyOf(exp)) {
				t.Errorf("%s is %#v, want %v", name, got.Value, exp)
			}
		}
	}
}

func ctyOf(v any) cty.Value {
	switch v := v.(type) {
	case string:
		return cty.StringVal(v)
	case bool:
		return cty.BoolVal(v)
	case int:
		return cty.NumberIntVal(int64(v))
	case uint64:
		return cty.NumberUIntVal(v)
	case float64:
		return cty.NumberFloatVal(v)
	}
	panic("no value of cty for it")
}

func devFault(prefix string, status int) devconsul.Fault {
	return devconsul.Fault{Match: path(prefix), Status: status, Body: "[]"}
}

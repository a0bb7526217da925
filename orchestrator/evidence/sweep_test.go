package evidence_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// holdNamed takes one of aimlock's locks with progress beside it.
func (w *world) holdNamed(name string, mod ...func(*records.Holder)) string {
	w.t.Helper()
	id := w.hold(prefix.Lock(name), 0, func(id string) []byte {
		h := w.record(id, append(mod, func(h *records.Holder) { h.Lock = name })...)
		return records.Encode(&h)
	})
	w.progress(name, id, 1)
	return id
}

func (w *world) progress(name, session string, done int64) {
	w.t.Helper()
	w.put(prefix.Progress(name), &records.Progress{Version: 1, Lock: name, Session: session, Done: done, Total: 10, Unit: "nodes"})
}

// asRead is how snapshots are compared: but for when they were read.
var asRead = cmp.Options{
	cmpopts.IgnoreFields(evidence.Snapshot{}, "ReadAt", "Checks"),
	cmpopts.EquateEmpty(),
}

func byName(list []*evidence.Snapshot) map[string]*evidence.Snapshot {
	out := map[string]*evidence.Snapshot{}
	for _, s := range list {
		out[s.Name] = s
	}
	return out
}

// partsOfFacts checks that the facts that a policy asks for are those that there
// are without being asked for.
func (w *world) partsOfFacts(s *evidence.Snapshot) {
	w.t.Helper()
	now := time.Now()
	all := w.reader.Facts(s, nil, nil, now)
	for _, builtin := range policies.BuiltinNames() {
		set, err := policies.Builtin(builtin)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range set.Policies {
			some := w.reader.FactsOf(s, nil, nil, now, p.Judging())
			for _, r := range p.Rules() {
				for _, name := range r.Used() {
					want, _ := all.Lookup(name)
					got, ok := some.Lookup(name)
					if !ok || got.Value.GoString() != want.Value.GoString() || got.Why != want.Why || got.Source != want.Source || !got.ObservedAt.Equal(want.ObservedAt) {
						w.t.Errorf("%s of %s is %+v, and for policy %s it is %+v", name, s.Name, want, p.Name, got)
					}
				}
			}
		}
	}
}

// A snapshot of a sweep says what one that was read alone says.
func TestSweepSaysWhatReadSays(t *testing.T) {
	w := newWorld(t)
	w.holdNamed("held")
	w.holdNamed("of a rollout", func(h *records.Holder) { h.RolloutID = "r1" })
	w.put(prefix.Rollout("r1"), []byte(`{"id":"r1","state":"running"}`))
	w.put(prefix.RolloutPart("r1", "plan", 0), []byte(`[]`))
	w.holdNamed("of a lost rollout", func(h *records.Holder) { h.RolloutID = "r2" })
	free := w.holdNamed("free")
	if _, err := w.kv.API().Session().Destroy(free, nil); err != nil {
		t.Fatal(err)
	}
	w.put(prefix.Fence("free"), &records.Fence{Version: 1, Owed: 15, Why: "test"})
	w.put(prefix.Fence("held"), []byte("no record"))
	w.put(prefix.Request("held"), &records.Request{Version: 1, Session: "x", By: "me"})
	w.put(prefix.Approval("held"), &records.Request{Version: 1, Session: "x", By: "me"})
	w.hold("ops/a/.lock", api.LockFlagValue, func(string) []byte { return nil })
	w.hold("tf/state/.lock", api.LockFlagValue, func(string) []byte { return []byte("uuid") })
	w.put("tf/state/.lockinfo", []byte(`{"ID":"1","Who":"me@host"}`))
	w.hold("odd/lock", 7, func(string) []byte { return []byte(`{"tool":"aimlock","lock":"held"}`) })
	w.put("app/config", []byte("no lock"))

	list, err := w.reader.NewSweep([]string{""}).Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := byName(list)
	names := []string{"held", "of a rollout", "of a lost rollout", "free", "ops/a/.lock", "tf/state/.lock", "odd/lock"}
	if len(got) != len(names) {
		t.Errorf("%d locks, want %d: %v", len(got), len(names), slices.Collect(maps.Keys(got)))
	}
	for _, name := range names {
		want, s := w.read(name), got[name]
		if s == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if d := cmp.Diff(want, s, asRead, cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) })); d != "" {
			t.Errorf("%s (-read alone +of the sweep):\n%s", name, d)
		}
		if want.Held() != (len(s.Checks) > 0) {
			t.Errorf("%s: held is %v, and its checks are %v", name, want.Held(), s.Checks)
		}
		w.partsOfFacts(s)
	}
}

// counted is a client of the world's that counts its requests by path.
func (w *world) counted() (*evidence.Reader, func() map[string]int) {
	w.t.Helper()
	var mu sync.Mutex
	n := map[string]int{}
	srv := w.handler
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", RetryFor: time.Nanosecond,
		Wrap: consulkvtest.InProcess(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			mu.Lock()
			n[r.URL.Path]++
			mu.Unlock()
			srv.ServeHTTP(rw, r)
		}))})
	if err != nil {
		w.t.Fatal(err)
	}
	return &evidence.Reader{Consul: kv, Keys: prefix, Self: w.self}, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(n)
	}
}

func TestSweepRequests(t *testing.T) {
	for _, locks := range []int{1, 200} {
		w := newWorld(t)
		for i := range locks {
			w.holdNamed(fmt.Sprintf("lock-%03d", i))
		}
		for _, tc := range []struct {
			roots []string
			want  int
		}{
			{[]string{""}, 3},
			{[]string{"aimlock/locks/"}, 10},
			{[]string{"aimlock/locks/", "ops/"}, 11},
			{[]string{"aimlock/locks/", "aimlock/"}, 3},
		} {
			r, count := w.counted()
			list, err := r.NewSweep(tc.roots).Read(t.Context())
			if err != nil || len(list) != locks {
				t.Fatalf("%d locks, %v", len(list), err)
			}
			n := 0
			for _, c := range count() {
				n += c
			}
			if n != tc.want {
				t.Errorf("%d locks under %q took %d requests, want %d: %v", locks, tc.roots, n, tc.want, count())
			}
			for path := range count() {
				if strings.Contains(path, "/configs") || strings.Contains(path, "/actual") || strings.Contains(path, "/desired") {
					t.Errorf("it read %s", path)
				}
			}
		}
	}
}

// Where nobody holds anything, KV is not read over.
func TestSweepWithoutSessions(t *testing.T) {
	w := newWorld(t)
	w.put("app/config", []byte("no lock"))
	r, count := w.counted()
	s := r.NewSweep([]string{""})
	s.HeldOnly = true
	list, err := s.Read(t.Context())
	if err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	if n := count(); n["/v1/kv/"] != 0 || n["/v1/session/list"] != 1 {
		t.Errorf("requests: %v", n)
	}
}

// running is a sweep under way, and what it told last of each lock.
type running struct {
	t    *testing.T
	mu   sync.Mutex
	told map[string]*evidence.Snapshot
	// times is how often each lock was told of.
	times map[string]int
	fails map[string]error
	news  chan struct{}
}

func (w *world) follow(roots ...string) *running {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{t: w.t, told: map[string]*evidence.Snapshot{}, times: map[string]int{}, fails: map[string]error{}, news: make(chan struct{}, 1)}
	notify := func() {
		select {
		case run.news <- struct{}{}:
		default:
		}
	}
	s := w.reader.NewSweep(roots)
	s.Every = time.Millisecond
	s.Failed = func(part string, err error) {
		run.mu.Lock()
		defer run.mu.Unlock()
		run.fails[part] = err
		notify()
	}
	done := make(chan error)
	go func() {
		done <- s.Run(ctx, func(batch []*evidence.Snapshot) {
			run.mu.Lock()
			defer run.mu.Unlock()
			for _, s := range batch {
				run.told[s.Name] = s
				run.times[s.Name]++
			}
			notify()
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err == nil {
			w.t.Error("Run ended without an error")
		}
	})
	return run
}

// until waits for what the sweep tells.
func (run *running) until(what string, cond func(map[string]*evidence.Snapshot) bool) {
	run.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		run.mu.Lock()
		ok := cond(run.told)
		run.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-run.news:
		case <-limit:
			run.t.Fatalf("not seen: %s", what)
		}
	}
}

func (run *running) count(name string) int {
	run.mu.Lock()
	defer run.mu.Unlock()
	return run.times[name]
}

func TestSweepFollows(t *testing.T) {
	w := newWorld(t)
	a := w.holdNamed("a", func(h *records.Holder) { h.RolloutID = "r1" })
	w.holdNamed("b")
	run := w.follow("aimlock/locks/", "ops/")
	lock := func(name string, cond func(*evidence.Snapshot) bool) func(map[string]*evidence.Snapshot) bool {
		return func(m map[string]*evidence.Snapshot) bool { return m[name] != nil && cond(m[name]) }
	}
	run.until("both locks", func(m map[string]*evidence.Snapshot) bool {
		return len(m) == 2 && m["a"].Session != nil && m["b"].Session != nil && m["a"].Checks != nil
	})
	before := run.count("b")

	w.progress("a", a, 2)
	run.until("progress", lock("a", func(s *evidence.Snapshot) bool { return s.Progress != nil && s.Progress.Done == 2 }))
	w.put(prefix.Fence("a"), &records.Fence{Version: 1, Owed: 3})
	run.until("the fence", lock("a", func(s *evidence.Snapshot) bool { return s.Fence != nil && s.Fence.Owed == 3 }))
	w.put(prefix.Request("a"), &records.Request{Version: 1, Reason: "please"})
	run.until("a request", lock("a", func(s *evidence.Snapshot) bool { return s.Request != nil && s.Request.Reason == "please" }))
	w.put(prefix.Approval("a"), &records.Request{Version: 1, Reason: "go"})
	run.until("an approval", lock("a", func(s *evidence.Snapshot) bool { return s.Approval != nil }))
	w.put(prefix.Rollout("r1"), []byte(`{"id":"r1","state":"paused"}`))
	run.until("the rollout", lock("a", func(s *evidence.Snapshot) bool { return s.Rollout != nil && s.Rollout.State == "paused" }))
	told := run.count("a")
	w.put(prefix.Observed("a", "o1"), []byte(`{}`))
	run.until("an observer", func(map[string]*evidence.Snapshot) bool { return run.times["a"] > told })
	if n := run.count("b"); n != before {
		t.Errorf("b was told of %d times more, and nothing of it changed", n-before)
	}

	w.hold("ops/x/.lock", api.LockFlagValue, func(string) []byte { return nil })
	run.until("a new lock with its session", lock("ops/x/.lock", func(s *evidence.Snapshot) bool { return s.Held() && s.Session != nil }))
	if _, err := w.kv.API().KV().DeleteTree("ops/", nil); err != nil {
		t.Fatal(err)
	}
	run.until("the deleted lock", lock("ops/x/.lock", func(s *evidence.Snapshot) bool { return s.Pair == nil }))

	if _, err := w.kv.API().Catalog().Register(&api.CatalogRegistration{Node: "node-1", Address: "127.0.0.1",
		Checks: api.HealthChecks{{Node: "node-1", CheckID: "serfHealth", Name: "serf", Status: api.HealthCritical}}}, nil); err != nil {
		t.Fatal(err)
	}
	run.until("the freed locks", func(m map[string]*evidence.Snapshot) bool { return !m["a"].Held() && !m["b"].Held() })
}

// While sessions cannot be read, a lock's session is unknown, and says why.
func TestSweepWithoutAnswers(t *testing.T) {
	w := newWorld(t)
	w.holdNamed("a")
	mend := w.faults.Add(devconsul.Fault{Match: path("/v1/session/list"), Status: http.StatusInternalServerError})
	run := w.follow("aimlock/locks/")
	run.until("a, with no session", func(m map[string]*evidence.Snapshot) bool {
		return m["a"] != nil && m["a"].Session == nil && m["a"].SessionWhy != ""
	})
	if run.fails[evidence.PartSessions] == nil {
		t.Errorf("Failed was not told: %v", run.fails)
	}
	mend()
	run.until("its session", func(m map[string]*evidence.Snapshot) bool { return m["a"].Session != nil })
}

// A Consul that takes connections and answers nothing is an error after the tries of
// one operation, and the reads that may take minutes are not begun.
func TestSweepOfAConsulThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		mute := func(http.RoundTripper) http.RoundTripper {
			return roundTripper(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				return nil, req.Context().Err()
			})
		}
		kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: mute})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = (&evidence.Reader{Consul: kv, Keys: prefix}).NewSweep([]string{""}).Read(t.Context())
		if took := time.Since(start); !consulkv.Silent(err) || took > 30*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Locks are said to be hidden where Consul left keys out, and not where there are
// none.
func TestSweepHidden(t *testing.T) {
	for name, tc := range map[string]struct {
		token    string
		filtered bool // Consul says so, which it does to a token alone
		denied   bool // a read of one key
		root     string
		want     bool
	}{
		"a management token, and no key":     {token: "boss"},
		"a token that may not read all":      {token: "t", filtered: true, want: true},
		"no token, and it may not read":      {denied: true, want: true},
		"no token, and it may read":          {},
		"no token, a root and no right":      {denied: true, root: "ops/", want: true},
		"what is hidden is beside the locks": {token: "t", filtered: true, root: "ops/"},
	} {
		w := newWorld(t)
		srv := w.handler
		kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Token: tc.token, RetryFor: time.Nanosecond,
			Wrap: consulkvtest.InProcess(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				key, isKV := strings.CutPrefix(req.URL.Path, "/v1/kv/")
				list := req.URL.Query().Has("recurse") || req.URL.Query().Has("keys")
				switch {
				case req.URL.Path == "/v1/acl/token/self":
					_, _ = rw.Write([]byte("{}")) // ACLs are on
					return
				case isKV && !list && tc.denied:
					http.Error(rw, "Permission denied", http.StatusForbidden)
					return
				case isKV && list && tc.filtered && (tc.root == "" || !strings.HasPrefix(key, tc.root)):
					rw.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
				}
				srv.ServeHTTP(rw, req)
			}))})
		if err != nil {
			t.Fatal(err)
		}
		for _, held := range []bool{true, false} {
			r := &evidence.Reader{Consul: kv, Keys: prefix, Self: w.self}
			s := r.NewSweep([]string{tc.root})
			s.HeldOnly = held
			if list, err := s.Read(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("%s: %d locks, %v", name, len(list), err)
			}
			if s.Hidden != tc.want {
				t.Errorf("%s, held only %t: hidden %t", name, held, s.Hidden)
			}
		}
	}
}

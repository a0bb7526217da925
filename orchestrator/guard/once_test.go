package guard

import (
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func (s *smith) once() (*Report, []string) {
	s.w.t.Helper()
	var said []string
	rep, err := s.Once(s.w.t.Context(), func(line string) { said = append(said, line) })
	if err != nil {
		s.w.t.Fatal(err)
	}
	return rep, said
}

func (r *Report) lock(name string) Swept {
	for _, l := range r.Locks {
		if l.Status.Name == name {
			return l
		}
	}
	return Swept{}
}

// One sweep breaks what is HOT, says why it left the rest, and lets go.
func TestOnce(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		c := w.client(asElsewhere)
		for _, n := range []string{"job-a", "job-b", "man-a", "free-x", "cold-a"} {
			w.hold(c, n)
		}
		policy := always + strings.NewReplacer(`"p"`, `"q"`, "job-*", "man-*", `"auto"`, `"manual"`).Replace(always) +
			strings.NewReplacer(`"p"`, `"r"`, "job-*", "cold-*", "session.exists", "!session.exists").Replace(always)
		rep, _ := w.make(policy).once()
		if !rep.Acting || rep.Failed() != 0 || len(rep.Locks) != 4 {
			t.Fatalf("%+v", rep)
		}
		for name, want := range map[string]string{"job-a": ActBroken, "job-b": ActBroken, "man-a": ActRefused, "cold-a": ""} {
			l := rep.lock(name)
			if l.Action != want || w.held(name) != (want != ActBroken) {
				t.Errorf("%s: %q, held %t", name, l.Action, w.held(name))
			}
		}
		if l := rep.lock("man-a"); !strings.Contains(l.Detail, "approval") || !strings.Contains(l.Status.Next, "lock approve man-a") {
			t.Errorf("%+v, %+v", l, l.Status)
		}
		if w.held(LeaderLock) {
			t.Error("the leadership was not let go")
		}
	})
}

// It watches for as long as a rule's `for` asks, and for a minute where a freeze
// asks for the past of the cluster.
func TestOnceWatches(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.hold(w.client(asElsewhere), "job-a")
		policy := strings.Replace(always, "session.exists", "session.exists\nfor = \"30s\"", 1)
		policy = strings.Replace(policy, `approval = "auto"`, "approval = \"auto\"\nfreeze {\n when = cluster.sessions_lost > 10\n }", 1)
		start := time.Now()
		rep, said := w.make(policy).once()
		if l := rep.lock("job-a"); l.Action != ActBroken || w.held("job-a") {
			t.Errorf("%+v", l)
		}
		if took := time.Since(start); took < time.Minute || took > 2*time.Minute {
			t.Errorf("it took %s", took)
		}
		if all := strings.Join(said, "\n"); !strings.Contains(all, "watching for 30s") || !strings.Contains(all, "watching the cluster") {
			t.Errorf("it said %q", all)
		}
	})
}

// It does not act where another locksmith leads, or with other policies than
// those applied, and says so; a dry run changes nothing.
func TestOnceDoesNotAct(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		manual := strings.Replace(always, `"auto"`, `"manual"`, 1)
		w.hold(w.client(asElsewhere), "job-a")
		rep, _ := w.make(always, func(c *Config) { c.DryRun = true }).once()
		if l := rep.lock("job-a"); l.Action != ActWould || !rep.DryRun {
			t.Errorf("%+v", rep)
		}
		if w.pair(LeaderLock) != nil {
			t.Error("a dry run stood for election")
		}
		s := w.start(manual)
		s.leads(10 * time.Second)
		rep, _ = w.make(always).once()
		if rep.Acting || !strings.Contains(rep.NotActing, "another locksmith leads: pid ") || rep.lock("job-a").Action != "" {
			t.Errorf("%+v", rep)
		}
		s.stop()
		w.put(w.keys.PolicyActive(), &records.PolicyActive{Version: 1, Hash: "other"})
		rep, _ = w.make(always).once()
		if rep.Acting || !strings.Contains(rep.NotActing, "not the ones applied") {
			t.Errorf("%+v", rep)
		}
		if !w.held("job-a") {
			t.Error("the lock was broken")
		}
	})
}

// A sweep of a Consul that cannot be reached ends after one operation was tried
// long enough, and not after each of many was.
func TestOnceUnreachable(t *testing.T) {
	t.Parallel()
	asked := map[string]bool{}
	refused := roundTrip(func(r *http.Request) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/v1/kv/") { // the cluster's past is watched beside it
			asked[r.URL.Path] = true
		}
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	})
	kv, err := consulkv.New(consulkv.Config{Address: "127.0.0.1:1", RetryFor: 300 * time.Millisecond, Wrap: func(http.RoundTripper) http.RoundTripper { return refused }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := locksmith.New(locksmith.Config{Consul: kv})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{Client: c, Source: Sweeps(c.Reader())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Once(t.Context(), func(string) {}); consulkv.KindOf(err) != consulkv.Unreachable || len(asked) != 1 {
		t.Errorf("%v, after asking for %v", err, asked)
	}
}

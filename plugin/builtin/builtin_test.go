package builtin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gofrs/flock"
	goplugin "github.com/hashicorp/go-plugin"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/builtin"
)

// serveEnv makes the test binary the built-in plugin that it names.
const serveEnv = "AIMLOCK_TEST_BUILTIN"

func TestMain(m *testing.M) {
	if name := os.Getenv(serveEnv); name != "" {
		if several := strings.Split(name, "+"); len(several) > 1 {
			serveSeveral(several)
			return
		}
		builtin.Serve(name)
		return
	}
	// The race detector waits a second at the exit of each program.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func inProcess(t *testing.T, name string) *plugin.Client {
	t.Helper()
	p, ok := builtin.Lookup(name)
	if !ok {
		t.Fatalf("there is no %s", name)
	}
	c, err := plugin.InProcess(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func external(t *testing.T, name string) *plugin.Client {
	t.Helper()
	cfg := plugin.ClientConfig(nil)
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"="+name)
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	c, err := plugin.Connect(t.Context(), gp)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func config(t *testing.T, values map[string]any) plugin.Config {
	t.Helper()
	c, err := plugin.NewConfig(values)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func consul(t *testing.T) (*api.Client, string) {
	t.Helper()
	srv, err := devconsul.Start(devconsul.Config{NodeName: "server"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	c, err := api.NewClient(&api.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	return c, srv.Addr()
}

// TestAll: each plugin describes itself, and no two have one name.
func TestAll(t *testing.T) {
	t.Parallel()
	want := []string{
		"http", "prometheus", "exec", "consul_checks", "nomad_deployment", "consul", "nomad", "file",
		"file_locks", "process", "cluster", "nomad_alloc", "destroy_session", "nomad_stop", "signal", "file_target",
	}
	var got []string
	for _, p := range builtin.All() {
		got = append(got, p.Name)
		c := inProcess(t, p.Name)
		if len(c.Info().Kinds) != 1 || c.Info().Version == "" || c.Info().Doc == "" {
			t.Errorf("%s: %+v", p.Name, c.Info())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, ok := builtin.Lookup("toaster"); ok {
		t.Error("there is a toaster")
	}
}

// TestHTTP asks the same in this process and by a program of its own.
func TestHTTP(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer hunter2" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		fmt.Fprint(w, `{"ok": true}`)
	}))
	t.Cleanup(srv.Close)
	for name, c := range map[string]*plugin.Client{"in process": inProcess(t, "http"), "external": external(t, "http")} {
		g, err := c.Gate(t.Context(), config(t, map[string]any{"url": srv.URL, "headers": map[string]string{"Authorization": "Bearer hunter2"}, "body": "json.ok"}))
		if err != nil {
			t.Fatal(name, err)
		}
		if a, err := g.Ask(t.Context(), &plugin.Question{Gate: "g"}); err != nil || a.Verdict != plugin.Pass {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		g, err = c.Gate(t.Context(), config(t, map[string]any{"url": srv.URL, "headers": map[string]string{"Authorization": "Bearer hunter2"}, "status": []int{204}}))
		if err != nil {
			t.Fatal(name, err)
		}
		if a, err := g.Ask(t.Context(), &plugin.Question{Gate: "g"}); err != nil || a.Verdict != plugin.Fail || !strings.Contains(a.Value+a.Why, "200") {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		err = c.Validate(t.Context(), plugin.KindGate, config(t, map[string]any{"url": "ftp://x", "method": "BREW", "status": []int{9}, "body": "jsn.ok"}))
		var problems plugin.Problems
		if errors.As(err, &problems); len(problems) != 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	c := inProcess(t, "exec")
	for code, want := range map[string]plugin.Verdict{"0": plugin.Pass, "1": plugin.Fail} {
		g, err := c.Gate(t.Context(), config(t, map[string]any{"command": []string{"sh", "-c", "exit $CODE"}, "env": map[string]string{"CODE": code}}))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := g.Ask(t.Context(), &plugin.Question{Gate: "g"}); err != nil || a.Verdict != want {
			t.Errorf("%s: %+v, %v", code, a, err)
		}
	}
}

func TestConsul(t *testing.T) {
	t.Parallel()
	client, addr := consul(t)
	for i, status := range []string{"passing", "passing", "critical"} {
		_, err := client.Catalog().Register(&api.CatalogRegistration{
			Node: fmt.Sprintf("n%d", i), Address: "127.0.0.1", NodeMeta: map[string]string{"zone": "a"},
			Service: &api.AgentService{ID: "s", Service: "s"},
			Check:   &api.AgentCheck{Node: fmt.Sprintf("n%d", i), CheckID: "c", ServiceID: "s", Status: status},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	f, err := inProcess(t, "consul").Fleet(t.Context(), config(t, map[string]any{"service": "s", "consul_address": addr}))
	if err != nil {
		t.Fatal(err)
	}
	l, err := f.List(t.Context())
	if err != nil || len(l.Nodes) != 3 || l.Nodes[2].Name != "n2" || l.Nodes[2].Meta["zone"] != "a" {
		t.Errorf("%+v, %v", l, err)
	}
	checks := inProcess(t, "consul_checks")
	for percent, want := range map[int]plugin.Verdict{66: plugin.Pass, 67: plugin.Fail} {
		g, err := checks.Gate(t.Context(), config(t, map[string]any{"service": "s", "min_passing_percent": percent, "consul_address": addr}))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := g.Ask(t.Context(), &plugin.Question{}); err != nil || a.Verdict != want {
			t.Errorf("%d: %+v, %v", percent, a, err)
		}
	}
	e, err := inProcess(t, "cluster").Evidence(t.Context(), config(t, map[string]any{"consul_address": addr}))
	if err != nil {
		t.Fatal(err)
	}
	facts, err := e.Observe(t.Context(), &plugin.ObserveRequest{})
	if err != nil || len(facts) != 3 {
		t.Fatalf("%+v, %v", facts, err)
	}
	for _, f := range facts {
		if f.Name == "leader_changed_ago" && !f.Unknown {
			t.Errorf("nobody has watched for a minute, and yet: %+v", f)
		}
	}
}

func TestDestroySession(t *testing.T) {
	t.Parallel()
	c, addr := consul(t)
	session := func() string {
		id, _, err := c.Session().CreateNoChecks(&api.SessionEntry{LockDelay: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	holder, other := session(), session()
	if ok, _, err := c.KV().Acquire(&api.KVPair{Key: "k", Session: holder}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	b, err := inProcess(t, "destroy_session").Breaker(t.Context(), config(t, map[string]any{"consul_address": addr}))
	if err != nil {
		t.Fatal(err)
	}
	there := func(id string) bool {
		s, _, err := c.Session().Info(id, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s != nil
	}
	if ok, _, err := c.KV().Acquire(&api.KVPair{Key: "k2", Session: holder}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	res, err := b.Break(t.Context(), &plugin.BreakRequest{ID: "other", Lock: plugin.Lock{Key: "k", Session: holder}})
	if err != nil || res.Outcome != plugin.Failed || !strings.Contains(res.Detail, "holds k2 too") || !there(holder) {
		t.Fatalf("one that holds another key: %+v, %v", res, err)
	}
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "k2", Session: holder}, nil); err != nil || !ok {
		t.Fatal(ok, err)
	}
	for i, tc := range []struct {
		session string
		dry     bool
		want    plugin.Outcome
		lives   bool
	}{
		{other, false, plugin.NotApplicable, true}, {holder, true, plugin.Done, true}, {holder, false, plugin.Done, false}, {holder, false, plugin.NotApplicable, false},
	} {
		res, err := b.Break(t.Context(), &plugin.BreakRequest{ID: fmt.Sprint(i), DryRun: tc.dry, Lock: plugin.Lock{Key: "k", Session: tc.session}})
		if err != nil || res.Outcome != tc.want || there(tc.session) != tc.lives {
			t.Errorf("%+v: %+v, %v", tc, res, err)
		}
	}
}

func TestFileFleet(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fleet.json")
	f, err := inProcess(t, "file").Fleet(t.Context(), config(t, map[string]any{"path": path}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.List(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no such file: %v", err)
	}
	for src, want := range map[string]int{`[{"node":"a","meta":{"zone":"z"}},{"node":"b"}]`: 2, `[]`: 0, `[{"node":"a"},{"node":"a"}]`: 0, `[{"nod":"a"}]`: 0} {
		if err := os.WriteFile(path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := f.List(t.Context())
		if (err == nil) != (want > 0) || err == nil && (len(l.Nodes) != want || l.Nodes[0].Meta["zone"] != "z") {
			t.Errorf("%s: %+v, %v", src, l, err)
		}
	}
}

func facts(t *testing.T, e plugin.Evidence, l plugin.Lock) map[string]plugin.Fact {
	t.Helper()
	list, err := e.Observe(t.Context(), &plugin.ObserveRequest{Lock: l})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]plugin.Fact{}
	for _, f := range list {
		out[f.Name] = f
	}
	return out
}

func is(f plugin.Fact, want bool) bool {
	got, ok := f.Value.(bool)
	return ok && !f.Unknown && got == want
}

func TestFileLocks(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	l := flock.New(path)
	if ok, err := l.TryLock(); err != nil || !ok {
		t.Fatal(ok, err)
	}
	t.Cleanup(func() { _ = l.Unlock() })
	e, err := inProcess(t, "file_locks").Evidence(t.Context(), config(t, map[string]any{"path": path}))
	if err != nil {
		t.Fatal(err)
	}
	got := facts(t, e, plugin.Lock{})
	if !is(got["locked"], true) || got["kind"].Value != "flock" || got["pid"].Value != int64(os.Getpid()) || got["path"].Value != path {
		raw, _ := json.Marshal(got)
		t.Errorf("%s", raw)
	}
}

// TestProcess looks at a process, signals it, and looks again.
func TestProcess(t *testing.T) {
	t.Parallel()
	self, err := hostproc.Self()
	if err != nil {
		t.Skip("this system does not tell of processes: ", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	child := exec.CommandContext(ctx, "cat")
	if _, err := child.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := hostproc.Lookup(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	lock := plugin.Lock{Holder: plugin.Holder{Host: self.Host, BootID: self.BootID, PIDNS: self.PIDNS, PID: p.PID, StartTicks: p.StartTicks}}
	elsewhere := lock
	elsewhere.Holder.Host = "another"
	e, err := inProcess(t, "process").Evidence(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := inProcess(t, "signal").Breaker(t.Context(), config(t, map[string]any{"signal": "SIGTERM"}))
	if err != nil {
		t.Fatal(err)
	}
	step := func(l plugin.Lock, dry bool, want plugin.Outcome) {
		t.Helper()
		res, err := b.Break(t.Context(), &plugin.BreakRequest{Lock: l, DryRun: dry})
		if err != nil || res.Outcome != want {
			t.Errorf("%+v, %v, want %s", res, err, want)
		}
	}
	if got := facts(t, e, lock); !is(got["alive"], true) || !is(got["local"], true) {
		t.Errorf("%+v", got)
	}
	if got := facts(t, e, elsewhere); !got["alive"].Unknown || !is(got["local"], false) {
		t.Errorf("%+v", got)
	}
	step(elsewhere, false, plugin.NotApplicable)
	step(lock, true, plugin.Done)
	step(lock, false, plugin.Done)
	_ = child.Wait()
	if ws, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGTERM {
		t.Errorf("it ended by %v", child.ProcessState)
	}
	if got := facts(t, e, lock); !is(got["alive"], false) {
		t.Errorf("%+v", got)
	}
	step(lock, false, plugin.NotApplicable)
	if err := inProcess(t, "signal").Validate(t.Context(), plugin.KindBreaker, config(t, map[string]any{"signal": "STOP"})); !errors.Is(err, plugin.ErrInvalidConfig) {
		t.Error(err)
	}
}

// The Nomad of this machine is not asked about allocations, nor to stop one, only
// because nobody named another: what it does not have would be gone.
func TestNomadMustBeNamed(t *testing.T) {
	t.Setenv("NOMAD_ADDR", "")
	for name, kind := range map[string]plugin.Kind{"nomad_alloc": plugin.KindEvidence, "nomad_stop": plugin.KindBreaker} {
		if err := inProcess(t, name).Validate(t.Context(), kind, nil); !errors.Is(err, plugin.ErrInvalidConfig) || !strings.Contains(err.Error(), "NOMAD_ADDR") {
			t.Errorf("%s: %v", name, err)
		}
		if err := inProcess(t, name).Validate(t.Context(), kind, config(t, map[string]any{"nomad_address": "http://h:4646"})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNomad: without a Nomad that answers nothing is said of one.
func TestNomad(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	cfg := config(t, map[string]any{"nomad_address": srv.URL})
	e, err := inProcess(t, "nomad_alloc").Evidence(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := facts(t, e, plugin.Lock{}); got["alloc_id"].Value != nil || got["alloc_id"].Unknown || got["gone"].Unknown {
		t.Errorf("a holder without an allocation: %+v", got)
	}
	b, err := inProcess(t, "nomad_stop").Breaker(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := b.Break(t.Context(), &plugin.BreakRequest{}); err != nil || res.Outcome != plugin.NotApplicable {
		t.Errorf("%+v, %v", res, err)
	}
	bad := plugin.Lock{Holder: plugin.Holder{AllocID: "../../v1/system/gc"}}
	if _, err := b.Break(t.Context(), &plugin.BreakRequest{Lock: bad}); err == nil || !strings.Contains(err.Error(), "is not the id of a Nomad allocation") {
		t.Error(err)
	}
}

package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

const (
	prefix = keys.Prefix(keys.DefaultPrefix)
	conf   = "aim.conf"
)

// bench is an embedded Consul with a client, and a switch that takes it away.
type bench struct {
	*consulkv.Client
	server *devconsul.Server
	away   atomic.Bool
	reads  atomic.Int64 // requests to the KV store
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{}
	srv, err := devconsul.Start(devconsul.Config{NodeName: "dev", Intercept: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if b.away.Load() {
				http.Error(w, "No cluster leader", http.StatusInternalServerError)
				return
			}
			if strings.HasPrefix(r.URL.Path, "/v1/kv/") && r.Method == http.MethodGet {
				b.reads.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	b.server = srv
	b.Client = b.client(t)
	return b
}

func (b *bench) client(t testing.TB) *consulkv.Client {
	t.Helper()
	c, err := consulkv.New(consulkv.Config{Address: b.server.URL(), RetryFor: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (b *bench) config(t testing.TB, node string) agent.Config {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return agent.Config{Node: node, StateDir: filepath.Join(dir, "state"), Root: root, Consul: b.client(t), Prefix: prefix, Version: "test"}
}

// run starts an agent; the function returned stops it and waits.
func run(t testing.TB, cfg agent.Config) (stop func()) {
	t.Helper()
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("agent %s: %v", cfg.Node, err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// publish writes content in chunks and returns the entry for it.
func (b *bench) publish(t testing.TB, o orchestrator.Order, content string, chunk int) records.Desired {
	t.Helper()
	sum := agent.SHA256([]byte(content))
	d := records.Desired{
		Version: 1, Revision: sum[:12], Order: o, Rollout: "r" + o.String(), Size: int64(len(content)),
		SHA256: sum, Destination: "/etc/aim.conf",
	}
	for i := 0; i < len(content); i += chunk {
		b.put(t, prefix.ConfigChunk(conf, sum, d.Chunks), []byte(content[i:min(i+chunk, len(content))]))
		d.Chunks++
	}
	return d
}

func (b *bench) put(t testing.TB, key string, value []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) desire(t testing.TB, node string, d records.Desired) {
	t.Helper()
	b.put(t, prefix.Desired(conf, node), records.Encode(d))
}

// answer waits for a report of node, by blocking queries.
func (b *bench) answer(t testing.TB, node string, ok func(*records.Actual) bool) *records.Actual {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	key := prefix.Actual(conf, node)
	w := consulkv.NewWatcher(b.Client, consulkv.WatchOptions{Name: key}, func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
		return b.API().KV().Get(key, q)
	})
	var last *records.Actual
	for {
		kv, err := w.Next(ctx)
		if ctx.Err() != nil {
			t.Fatalf("node %s: no such answer; the last is %s", node, records.Encode(last))
		}
		if err != nil || kv == nil {
			continue
		}
		last = &records.Actual{}
		if err := records.Decode(key, kv.Value, last); err != nil {
			t.Fatal(err)
		}
		if ok(last) {
			return last
		}
	}
}

func of(o orchestrator.Order, result string) func(*records.Actual) bool {
	return func(a *records.Actual) bool { return a.Order == o && a.Result == result }
}

func order(token, seq uint64) orchestrator.Order { return orchestrator.Order{Token: token, Seq: seq} }

func content(t testing.TB, cfg agent.Config) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(cfg.Root, "etc/aim.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// eventually waits for a condition that Consul cannot wake a watcher for.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(30*time.Second), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited too long: %s", what)
		}
	}
}

// A node learns of a config, applies it from several chunks, follows newer
// orders, and goes on where it was after a restart.
func TestFollow(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n 1") // a name that is escaped in keys
	stop := run(t, cfg)
	big := strings.Repeat("0123456789\n", 1000)
	d := b.publish(t, order(10, 1), big, 4000)
	if d.Chunks != 3 {
		t.Fatalf("%d chunks", d.Chunks)
	}
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	if got := content(t, cfg); got != big {
		t.Errorf("file has %d bytes", len(got))
	}
	next := b.publish(t, order(10, 2), "two\n", 100)
	b.desire(t, cfg.Node, next)
	a := b.answer(t, cfg.Node, of(next.Order, records.ResultApplied))
	if a.Previous != d.Revision || a.Node != cfg.Node || a.Config != conf || a.Agent != "test" {
		t.Errorf("%+v", a)
	}
	// Older: refused with both orders, and the file stays.
	b.desire(t, cfg.Node, d)
	a = b.answer(t, cfg.Node, of(next.Order, records.ResultRefused))
	if a.Refused == nil || *a.Refused != d.Order || content(t, cfg) != "two\n" {
		t.Errorf("%+v", a)
	}
	// Missed while it was away: caught up with.
	stop()
	b.desire(t, "other", b.publish(t, order(11, 1), "other\n", 100))
	last := b.publish(t, order(12, 1), "three\n", 100)
	b.desire(t, cfg.Node, last)
	run(t, cfg)
	b.answer(t, cfg.Node, of(last.Order, records.ResultApplied))
	if got := content(t, cfg); got != "three\n" {
		t.Errorf("file is %q", got)
	}
	// A deleted entry changes nothing.
	if _, err := b.API().KV().Delete(prefix.Desired(conf, cfg.Node), nil); err != nil {
		t.Fatal(err)
	}
	back := b.publish(t, order(12, 2), "four\n", 100)
	b.desire(t, cfg.Node, back)
	b.answer(t, cfg.Node, of(back.Order, records.ResultApplied))
}

// A config without content (an empty file) is found by its entries.
func TestEmptyFile(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	d := b.publish(t, order(10, 1), "", 100)
	b.desire(t, cfg.Node, d)
	run(t, cfg)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	if got := content(t, cfg); got != "" {
		t.Errorf("file is %q", got)
	}
}

func TestMissingChunk(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	d := b.publish(t, order(10, 1), "abcd", 2)
	if _, err := b.API().KV().Delete(prefix.ConfigChunk(conf, d.SHA256, 1), nil); err != nil {
		t.Fatal(err)
	}
	b.desire(t, cfg.Node, d)
	a := b.answer(t, cfg.Node, of(d.Order, records.ResultFailed))
	if !strings.Contains(a.Error, "chunk 2 of 2 is missing") {
		t.Errorf("%+v", a)
	}
	// What cannot be read is nobody's order; what comes next is followed.
	b.put(t, prefix.Desired(conf, cfg.Node), []byte("<html>"))
	b.put(t, prefix.Desired(conf, cfg.Node), []byte(`{"version":99}`))
	next := b.publish(t, order(10, 2), "ok\n", 100)
	b.desire(t, cfg.Node, next)
	b.answer(t, cfg.Node, of(next.Order, records.ResultApplied))
}

// An agent that is stopped says so, and what it leaves.
func TestSaysThatItStops(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	log := &logged{}
	cfg.Log = hclog.New(&hclog.LoggerOptions{Output: log})
	stop := run(t, cfg)
	eventually(t, "it runs", func() bool { return log.count("agent started") == 1 })
	if log.count("agent stops") != 0 {
		t.Errorf("it is said too soon:\n%s", log)
	}
	stop()
	if log.count("agent stops: ") != 1 || log.count(agent.ServiceID("n1")) == 0 {
		t.Errorf("it is not said:\n%s", log)
	}
}

// Without Consul everything stays, the log stays short, and the node reports
// when Consul is back.
func TestFailStatic(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	log := &logged{}
	cfg.Log = hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Debug})
	run(t, cfg)
	wait := filepath.Join(cfg.Root, "wait")
	d := b.publish(t, order(10, 1), "one\n", 100)
	d.Reload = &records.Command{Argv: []string{"/bin/sh", "-c", "while [ -e " + wait + " ]; do sleep 0.02; done"}}
	if err := os.WriteFile(wait, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.desire(t, cfg.Node, d)
	eventually(t, "the file stands", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Root, "etc/aim.conf"))
		return err == nil
	})
	b.away.Store(true)
	if err := os.Remove(wait); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent says that Consul is gone", func() bool { return log.count("Consul cannot be had") > 0 })
	if content(t, cfg) != "one\n" {
		t.Error("the file did not stay")
	}
	b.away.Store(false)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	if n := log.count("Consul cannot be had"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}

// A node whose state is lost writes nothing until Consul tells its mark.
func TestLostStateWithoutConsul(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	stop := run(t, cfg)
	d := b.publish(t, order(10, 5), "five\n", 100)
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	stop()
	if err := os.RemoveAll(cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	old := &agent.Staged{Config: conf, Node: cfg.Node, Desired: b.publish(t, order(10, 4), "four\n", 100), Content: []byte("four\n")}
	b.away.Store(true)
	if _, err := a.Apply(t.Context(), old); err == nil || !strings.Contains(err.Error(), "nothing is written until it can") {
		t.Errorf("without Consul: %v", err)
	}
	b.away.Store(false)
	_, err = a.Apply(t.Context(), old)
	if older, ok := errors.AsType[*agent.OlderError](err); !ok || older.Highest != d.Order {
		t.Errorf("got %v", err)
	}
	if got := content(t, cfg); got != "five\n" {
		t.Errorf("file is %q", got)
	}
}

// The agent's service is there, passes, and is made again when it is lost.
func TestRegister(t *testing.T) {
	b := newBench(t)
	run(t, b.config(t, "n1"))
	run(t, b.config(t, "n2"))
	registered := func(id, node string) func() bool {
		return func() bool {
			svcs, err := b.API().Agent().Services()
			if err != nil {
				t.Fatal(err)
			}
			checks, err := b.API().Agent().Checks()
			if err != nil {
				t.Fatal(err)
			}
			s, c := svcs[id], checks[id]
			return s != nil && c != nil && s.Service == "aimlock-agent" && s.Meta["node"] == node && s.Meta["version"] == "test" && c.Status == api.HealthPassing
		}
	}
	eventually(t, "both are registered", func() bool {
		return registered("aimlock-agent-n1", "n1")() && registered("aimlock-agent-n2", "n2")()
	})
	if err := b.API().Agent().ServiceDeregister("aimlock-agent-n1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is registered again", registered("aimlock-agent-n1", "n1"))
}

// A second agent of one name says so; one that is started again does not.
func TestTwin(t *testing.T) {
	b := newBench(t)
	log := &logged{}
	first, second := b.config(t, "n1"), b.config(t, "n1")
	first.Log = hclog.New(&hclog.LoggerOptions{Output: log})
	second.Log = first.Log
	registered := func() string {
		svc, _, err := b.API().Agent().Service(agent.ServiceID("n1"), nil)
		if err != nil {
			return "" // not yet
		}
		return svc.Meta["instance"]
	}
	for range 2 {
		stop := run(t, first)
		eventually(t, "it is registered", func() bool { return registered() != "" })
		stop()
	}
	if log.count("under this name") != 0 {
		t.Errorf("it takes itself for another one:\n%s", log)
	}
	was := registered()
	run(t, second)
	eventually(t, "the second one is registered", func() bool { return registered() != was })
	if log.count("under this name") != 1 {
		t.Errorf("it is not said:\n%s", log)
	}
}

// One agent at a time has a state folder, and one node.
func TestStateFolderInUse(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	eventually(t, "the first one has it", func() bool {
		services, err := b.API().Agent().Services()
		return err == nil && services["aimlock-agent-n1"] != nil
	})
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err == nil || !strings.Contains(err.Error(), "another agent runs on state folder") {
		t.Errorf("a second agent: %v", err)
	}
	cfg.Node = "n2"
	if _, err := agent.New(cfg); err == nil || !strings.Contains(err.Error(), "belongs to another node") {
		t.Errorf("got %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	b := newBench(t)
	for _, tc := range []struct {
		edit func(*agent.Config)
		want string
	}{
		{func(c *agent.Config) { c.Node = "a/b" }, "one path segment"},
		{func(c *agent.Config) { c.Node = ".." }, "one path segment"},
		{func(c *agent.Config) { c.Node = "" }, "node name is empty"},
		{func(c *agent.Config) { c.StateDir = "" }, "no state folder"},
		{func(c *agent.Config) { c.Root = "/etc/passwd/root" }, "is not a folder"},
		{func(c *agent.Config) { c.Root = "/etc/passwd" }, "is not a folder"},
		{func(c *agent.Config) { c.StateDir = "/etc/passwd" }, "state folder"},
	} {
		cfg := b.config(t, "n1")
		tc.edit(&cfg)
		if _, err := agent.New(cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

// What consul-template staged and what the agent follows share one fence.
func TestApplyStaged(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	staged := func(o orchestrator.Order, c string) *agent.Staged {
		return &agent.Staged{Config: conf, Node: cfg.Node, Desired: b.publish(t, o, c, 100), Content: []byte(c)}
	}
	one := func(s *agent.Staged) (agent.Result, error) {
		rs, err := a.Apply(t.Context(), s)
		if len(rs) == 0 {
			return agent.Result{}, err
		}
		return rs[0], err
	}
	res, err := one(staged(order(5, 1), "five\n"))
	if err != nil || !res.Changed || res.Report.Result != records.ResultApplied {
		t.Fatalf("%+v %v", res, err)
	}
	b.answer(t, cfg.Node, of(order(5, 1), records.ResultApplied))
	if res, err = one(staged(order(5, 1), "five\n")); err != nil || res.Changed || res.Report == nil {
		t.Errorf("again: %+v %v", res, err)
	}
	d := b.publish(t, order(6, 1), "six\n", 100)
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	if _, err := a.Apply(t.Context(), staged(order(5, 2), "late\n")); err == nil || content(t, cfg) != "six\n" {
		t.Errorf("an older staged file: %v, file %q", err, content(t, cfg))
	}
	// A new order with old content is no revision.
	torn := staged(order(7, 1), "seven\n")
	torn.Content = []byte("six\n")
	if res, err := one(torn); err != nil || res.Report.Result != records.ResultFailed || content(t, cfg) != "six\n" {
		t.Errorf("torn: %+v %v", res, err)
	}
	other := staged(order(8, 1), "x")
	other.Node = "n2"
	if _, err := a.Apply(t.Context(), other); err == nil || !strings.Contains(err.Error(), `staged for node "n2"`) {
		t.Errorf("another node's: %v", err)
	}
}

// A fleet in one process: every node answers, and what it reads to do so does
// not grow with the fleet.
func TestFleet(t *testing.T) {
	b := newBench(t)
	const n = 30
	var stops []func()
	for i := range n {
		stops = append(stops, run(t, b.config(t, fmt.Sprintf("n%03d", i))))
	}
	d := b.publish(t, order(10, 1), "one\n", 100)
	for i := range n {
		b.desire(t, fmt.Sprintf("n%03d", i), d)
	}
	for i := range n {
		b.answer(t, fmt.Sprintf("n%03d", i), of(d.Order, records.ResultApplied))
	}
	if per := b.reads.Load() / n; per > 60 {
		t.Errorf("%d reads for each node", per)
	}
	var wg sync.WaitGroup
	for _, stop := range stops {
		wg.Go(stop)
	}
	wg.Wait()
}

type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) count(s string) int { return strings.Count(l.String(), s) }

// Package conformance is the suite of facts about Consul's HTTP API that aimlock
// rests on. It runs against any server that speaks it, through
// hashicorp/consul/api: package devconsul runs it against the embedded server,
// e2e against a real Consul. A difference between the two is a failing test.
//
// It may import hashicorp/consul/api and the standard library, nothing else of
// aimlock. Start at Run; each file holds the tests of one part of the API, and
// lock.go those that fencing depends on.
package conformance

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// Target is a server to test. It must have a leader, its own node in the
// catalog, and no ACLs. Tests leave keys and services behind.
type Target struct {
	// Addr is the host:port of its HTTP API.
	Addr string
	// MinTTL is the least TTL that it takes for a session.
	MinTTL time.Duration
	// TTLFactor is how many TTLs after its last renewal it ends a session.
	TTLFactor float64
	// Slack is how much later than due anything may happen.
	Slack time.Duration
}

type test struct {
	name string
	run  func(*env)
}

// Run runs the suite. newTarget is called once: the tests share the target, run
// in parallel, and keep apart by the names of their keys, services and nodes.
func Run(t *testing.T, newTarget func(*testing.T) Target) {
	tgt := newTarget(t)
	run := strings.ToLower(rand.Text()[:8])
	for _, group := range []struct {
		name  string
		tests []test
	}{
		{"kv", kvTests}, {"txn", txnTests}, {"lock", lockTests}, {"session", sessionTests}, {"binding", bindingTests},
		{"blocking", blockingTests}, {"agent", agentTests}, {"catalog", catalogTests}, {"http", httpTests},
	} {
		for _, tc := range group.tests {
			t.Run(group.name+"/"+tc.name, func(t *testing.T) {
				t.Parallel()
				tc.run(newEnv(t, tgt, run))
			})
		}
	}
}

// env is what one test works with.
type env struct {
	*testing.T
	ctx    context.Context
	tgt    Target
	c      *api.Client
	kv     *api.KV
	prefix string
	// name is unique to this run of this test: for services, checks and nodes.
	name string
}

func newEnv(t *testing.T, tgt Target, run string) *env {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: tgt.Addr})
	if err != nil {
		t.Fatalf("client for %s: %v", tgt.Addr, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	name := run + "-" + strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	return &env{T: t, ctx: ctx, tgt: tgt, c: c, kv: c.KV(), prefix: "conformance/" + name + "/", name: name}
}

func (e *env) key(name string) string { return e.prefix + name }

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// mustFail checks that err says what Consul says.
func (e *env) mustFail(err error, want string) {
	e.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		e.Fatalf("got error %v, want one that says %q", err, want)
	}
}

func same[T comparable](e *env, what string, got, want T) {
	e.Helper()
	if got != want {
		e.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func (e *env) q() *api.QueryOptions { return (&api.QueryOptions{}).WithContext(e.ctx) }
func (e *env) w() *api.WriteOptions { return (&api.WriteOptions{}).WithContext(e.ctx) }

// get reads a key that must exist.
func (e *env) get(key string) *api.KVPair {
	e.Helper()
	p := e.find(key)
	if p == nil {
		e.Fatalf("key %s does not exist", key)
	}
	return p
}

// find reads a key, nil if it does not exist.
func (e *env) find(key string) *api.KVPair {
	e.Helper()
	p, _, err := e.kv.Get(key, e.q())
	e.must(err)
	return p
}

func (e *env) put(key, value string) *api.KVPair {
	e.Helper()
	_, err := e.kv.Put(&api.KVPair{Key: key, Value: []byte(value)}, e.w())
	e.must(err)
	return e.get(key)
}

func (e *env) delete(key string) {
	e.Helper()
	_, err := e.kv.Delete(key, e.w())
	e.must(err)
}

// session makes one that a test can end at will: no checks, no TTL, no lock-delay
// worth the name, unless set tells otherwise.
func (e *env) session(set ...func(*api.SessionEntry)) string {
	e.Helper()
	id, err := e.trySession(set...)
	e.must(err)
	return id
}

func (e *env) trySession(set ...func(*api.SessionEntry)) (string, error) {
	se := &api.SessionEntry{Name: e.name, LockDelay: time.Millisecond}
	for _, f := range set {
		f(se)
	}
	var id string
	var err error
	if len(se.Checks)+len(se.NodeChecks)+len(se.ServiceChecks) == 0 {
		id, _, err = e.c.Session().CreateNoChecks(se, e.w())
	} else {
		id, _, err = e.c.Session().Create(se, e.w())
	}
	if err == nil {
		e.Cleanup(func() { e.c.Session().Destroy(id, nil) })
	}
	return id, err
}

func (e *env) destroy(id string) {
	e.Helper()
	_, err := e.c.Session().Destroy(id, e.w())
	e.must(err)
}

func (e *env) sessionExists(id string) bool {
	e.Helper()
	se, _, err := e.c.Session().Info(id, e.q())
	e.must(err)
	return se != nil
}

// acquire tries to lock a key.
func (e *env) acquire(key, session, value string) bool {
	e.Helper()
	ok, _, err := e.kv.Acquire(&api.KVPair{Key: key, Session: session, Value: []byte(value)}, e.w())
	e.must(err)
	return ok
}

func (e *env) mustAcquire(key, session, value string) *api.KVPair {
	e.Helper()
	if !e.acquire(key, session, value) {
		e.Fatalf("could not lock %s, which nobody holds", key)
	}
	return e.get(key)
}

// txn runs operations that must commit.
func (e *env) txn(ops ...*api.KVTxnOp) []*api.KVPair {
	e.Helper()
	ok, resp, _, err := e.kv.Txn(ops, e.q())
	e.must(err)
	if !ok {
		e.Fatalf("transaction refused: %s", txnErrors(resp.Errors))
	}
	return resp.Results
}

// refused runs operations that must not commit, and compares the errors, each
// as "index: text".
func (e *env) refused(ops []*api.KVTxnOp, want ...string) {
	e.Helper()
	ok, resp, _, err := e.kv.Txn(ops, e.q())
	e.must(err)
	if ok {
		e.Fatalf("transaction committed, want it refused with %q", want)
	}
	if len(resp.Results) != 0 {
		e.Errorf("a refused transaction shows %d results", len(resp.Results))
	}
	if got := txnErrors(resp.Errors); got != strings.Join(want, "\n") {
		e.Errorf("errors:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

func txnErrors(errs api.TxnErrors) string {
	var lines []string
	for _, te := range errs {
		lines = append(lines, fmt.Sprintf("%d: %s", te.OpIndex, te.What))
	}
	return strings.Join(lines, "\n")
}

// until follows a read by blocking queries until done, and fails after limit.
// read reports the index that it saw; it must pass on the options that it gets.
func (e *env) until(what string, limit time.Duration, read func(*api.QueryOptions) (done bool, meta *api.QueryMeta, err error)) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.ctx, limit)
	defer cancel()
	q := &api.QueryOptions{WaitTime: limit}
	for {
		done, meta, err := read(q.WithContext(ctx))
		switch {
		case ctx.Err() != nil:
			e.Fatalf("not within %v: %s", limit, what)
		case err != nil:
			e.Fatalf("%s: %v", what, err)
		case done:
			return
		}
		q.WaitIndex = meta.LastIndex
	}
}

// retry tries until it succeeds, for what no blocking query tells, and fails
// after limit. It returns how long it took.
func (e *env) retry(what string, limit time.Duration, try func() bool) time.Duration {
	e.Helper()
	start := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !try() {
		if time.Since(start) > limit {
			e.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// untilFree waits until nobody holds the key.
func (e *env) untilFree(key string, limit time.Duration) {
	e.Helper()
	e.until("nobody holds "+key, limit, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
		p, meta, err := e.kv.Get(key, q)
		return p == nil || p.Session == "", meta, err
	})
}

// untilEnded waits until a session is gone.
func (e *env) untilEnded(id string, limit time.Duration) {
	e.Helper()
	e.until("session "+id+" ends", limit, func(q *api.QueryOptions) (bool, *api.QueryMeta, error) {
		se, meta, err := e.c.Session().Info(id, q)
		return se == nil, meta, err
	})
}

// answer is a raw HTTP answer.
type answer struct {
	code   int
	body   string
	header http.Header
}

// raw sends a request as it stands, for what the api package hides.
func (e *env) raw(method, path, body string) answer {
	e.Helper()
	req, err := http.NewRequestWithContext(e.ctx, method, "http://"+e.tgt.Addr+path, bytes.NewReader([]byte(body)))
	e.must(err)
	resp, err := http.DefaultClient.Do(req)
	e.must(err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	e.must(err)
	return answer{resp.StatusCode, string(b), resp.Header}
}

// statusOf is the HTTP status in an error of the api package, 0 if there is none.
func statusOf(err error) int {
	var se api.StatusError
	if errors.As(err, &se) {
		return se.Code
	}
	return 0
}

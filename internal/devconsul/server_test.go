package devconsul_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/devconsul"
)

func client(t testing.TB, s *devconsul.Server) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: s.Addr(), HttpClient: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func put(t testing.TB, c *api.Client, key, value string) {
	t.Helper()
	if _, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
		t.Fatal(err)
	}
}

// A thousand watchers are all woken by a change, and by Close, after which no
// goroutine is left. Not parallel: it counts goroutines.
func TestThousandWatchers(t *testing.T) {
	before := runtime.NumGoroutine()
	const watchers = 1000
	s, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	c, err := api.NewClient(&api.Config{Address: s.Addr(), HttpClient: &http.Client{Transport: tr}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "a", "1")
	_, meta, err := c.KV().Get("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	watch := func(index uint64, check func(*api.KVPair, error)) *sync.WaitGroup {
		var wg sync.WaitGroup
		for range watchers {
			wg.Go(func() {
				p, _, err := c.KV().Get("a", &api.QueryOptions{WaitIndex: index, WaitTime: time.Minute})
				check(p, err)
			})
		}
		return &wg
	}
	wg := watch(meta.LastIndex, func(p *api.KVPair, err error) {
		if err != nil || string(p.Value) != "2" {
			t.Errorf("woken with %v, %v", p, err)
		}
	})
	start := time.Now()
	put(t, c, "a", "2")
	wg.Wait()
	t.Logf("%d watchers were woken in %v", watchers, time.Since(start))

	_, meta, err = c.KV().Get("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	wg = watch(meta.LastIndex, func(_ *api.KVPair, err error) {
		if err == nil {
			t.Error("a query was answered by a server that closed")
		}
	})
	start = time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("Close let its watchers wait for %v", took)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close once more: %v", err)
	}
	tr.CloseIdleConnections()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		<-tick.C
	}
	if after := runtime.NumGoroutine(); after > before {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after:\n%s", before, after, buf[:runtime.Stack(buf, true)])
	}
}

func TestTenThousandKeys(t *testing.T) {
	t.Parallel()
	const keys, batch = 10_000, 100
	c := client(t, start(t, devconsul.Config{}))
	begin := time.Now()
	for i := 0; i < keys; i += batch {
		var ops api.KVTxnOps
		for j := i; j < i+batch; j++ {
			ops = append(ops, &api.KVTxnOp{Verb: api.KVSet, Key: fmt.Sprintf("k/%05d", j), Value: bytes.Repeat([]byte{'x'}, 100)})
		}
		if ok, resp, _, err := c.KV().Txn(ops, nil); err != nil || !ok {
			t.Fatal(err, resp)
		}
	}
	wrote := time.Since(begin)
	begin = time.Now()
	pairs, _, err := c.KV().List("k/", nil)
	if err != nil || len(pairs) != keys {
		t.Fatalf("%d keys, %v", len(pairs), err)
	}
	t.Logf("wrote %d keys in %v, read them in %v", keys, wrote, time.Since(begin))
	if _, err := c.KV().DeleteTree("k/", nil); err != nil {
		t.Fatal(err)
	}
	if pairs, _, err = c.KV().List("k/", nil); err != nil || len(pairs) != 0 {
		t.Fatalf("%d keys left, %v", len(pairs), err)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	s := start(t, devconsul.Config{})
	if _, err := devconsul.Start(devconsul.Config{Addr: s.Addr()}); err == nil || !strings.Contains(err.Error(), "listen on "+s.Addr()) {
		t.Errorf("on an address in use: %v", err)
	}
	if _, err := devconsul.Start(devconsul.Config{SessionTTLFactor: 0.5}); err == nil || !strings.Contains(err.Error(), "below 1") {
		t.Errorf("with sessions that end before their TTL: %v", err)
	}
}

func TestURL(t *testing.T) {
	t.Parallel()
	if s := start(t, devconsul.Config{}); s.URL() != "http://"+s.Addr() || !strings.HasPrefix(s.Addr(), "127.0.0.1:") {
		t.Errorf("%q, %q", s.URL(), s.Addr())
	}
	s, err := devconsul.New(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if s.URL() != "" || s.Addr() != "" {
		t.Errorf("a server that does not listen is at %q, %q", s.URL(), s.Addr())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// What the embedded Consul does not serve is refused in words that say so.
func TestNotServed(t *testing.T) {
	t.Parallel()
	s := start(t, devconsul.Config{})
	for _, r := range []struct{ method, path, body, says string }{
		{"GET", "/v1/catalog/services?filter=x", "", "serves filter expressions for health checks, nodes and instances"},
		{"PUT", "/v1/agent/service/register", `{"Name":"x","Check":{"HTTP":"http://x","Interval":"1s"}}`, "TTL checks only, not a check of kind HTTP"},
		{"PUT", "/v1/agent/check/register", `{"Name":"x","Args":["true"],"Interval":"1s"}`, "kind script"},
		{"PUT", "/v1/agent/service/register", `{"Name":"x","Connect":{"Native":true}}`, "no Connect"},
		{"PUT", "/v1/catalog/register", `{"Node":"n","Address":"a","Service":{"Service":"x","Kind":"connect-proxy"}}`, "no Connect"},
		{"PUT", "/v1/txn", `[{"Node":{}}]`, "KV operations only"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, s.URL()+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), r.says) {
			t.Errorf("%s %s: %d %q, want 400 and %q", r.method, r.path, resp.StatusCode, body, r.says)
		}
	}
}

// Neither values, nor check outputs, nor tokens get into the log.
func TestLogKeepsSecrets(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var buf bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &buf, Mutex: &mu})
	s := start(t, devconsul.Config{Log: log})
	c := client(t, s)
	const secret = "s3cr3t"
	put(t, c, "a", secret)
	w := &api.WriteOptions{Token: secret}
	for _, bad := range []*api.KVPair{{Key: "a", Value: []byte(secret), Session: "none"}} {
		if _, _, err := c.KV().Acquire(bad, w); err == nil {
			t.Error("acquired by no session")
		}
	}
	resp, err := http.Get(s.URL() + "/v1/kv/a?index=x&token=" + secret)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if err := c.Agent().UpdateTTL("none", secret, api.HealthPassing); err == nil {
		t.Error("a check that does not exist passes")
	}
	mu.Lock()
	defer mu.Unlock()
	if got := buf.String(); strings.Contains(got, secret) || !strings.Contains(got, "request refused") {
		t.Errorf("the log is:\n%s", got)
	}
}

func isPut(r *http.Request) bool { return r.Method == http.MethodPut }

func TestFaults(t *testing.T) {
	t.Parallel()
	var f devconsul.Faults
	c := client(t, start(t, devconsul.Config{Intercept: f.Intercept}))
	kv := c.KV()
	write := func(value string) error {
		_, err := kv.Put(&api.KVPair{Key: "a", Value: []byte(value)}, nil)
		return err
	}
	value := func() string {
		t.Helper()
		p, _, err := kv.Get("a", nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(p.Value)
	}
	if err := write("0"); err != nil {
		t.Fatal(err)
	}

	f.Add(devconsul.Fault{Match: isPut, Times: 1, Drop: true})
	if err := write("dropped"); err == nil || value() != "0" {
		t.Errorf("dropped before it was served: %v, value %s", err, value())
	}
	f.Add(devconsul.Fault{Match: isPut, Times: 1, DropAfter: true})
	if err := write("served"); err == nil || value() != "served" {
		t.Errorf("dropped after it was served: %v, value %s", err, value())
	}
	if err := write("1"); err != nil {
		t.Errorf("after the last of a fault's times: %v", err)
	}

	remove := f.Add(devconsul.NoLeader())
	var se api.StatusError
	if err := write("2"); !errors.As(err, &se) || se.Code != 500 || !strings.Contains(se.Body, "No cluster leader") {
		t.Errorf("without a leader: %v", err)
	}
	remove()
	remove() // once more is nothing

	f.Add(devconsul.HTML())
	if _, _, err := kv.Get("a", nil); err == nil {
		t.Error("HTML was read as a key")
	}
	f.Clear()

	f.Add(devconsul.Fault{Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := kv.Get("a", (&api.QueryOptions{}).WithContext(ctx)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("delayed: %v", err)
	}
	f.Clear()
	if got := value(); got != "1" {
		t.Errorf("at the end the value is %s", got)
	}
}

// Nobody who follows the index rules misses what many write at once, and
// sessions that end meanwhile leave no key held.
func TestFollowersMissNothing(t *testing.T) {
	t.Parallel()
	const writers, writes, followers = 8, 50, 8
	c := client(t, start(t, devconsul.Config{}))
	var wg sync.WaitGroup
	for range followers {
		wg.Go(func() {
			// Every writer's last word is "end": who sees them all has missed none.
			q := &api.QueryOptions{WaitTime: time.Minute}
			var last uint64
			for {
				pairs, meta, err := c.KV().List("w/", q)
				if err != nil {
					t.Error(err)
					return
				}
				if meta.LastIndex < last {
					t.Errorf("the index went back from %d to %d", last, meta.LastIndex)
				}
				last, q.WaitIndex = meta.LastIndex, meta.LastIndex
				ended := 0
				for _, p := range pairs {
					if string(p.Value) == "end" && p.Session == "" {
						ended++
					}
				}
				if ended == writers {
					return
				}
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			key := fmt.Sprintf("w/%d", w)
			for n := range writes {
				id, _, err := c.Session().CreateNoChecks(&api.SessionEntry{LockDelay: time.Millisecond}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				value := fmt.Sprint(n)
				if n == writes-1 {
					value = "end"
				}
				ok, resp, _, err := c.KV().Txn(api.KVTxnOps{
					{Verb: api.KVDelete, Key: key},
					{Verb: api.KVLock, Key: key, Session: id, Value: []byte(value)},
				}, nil)
				// Its last session's lock-delay may still be on the key.
				if err != nil || !ok && !strings.Contains(resp.Errors[0].What, "lock delay") {
					t.Error(err, resp)
					return
				}
				if !ok && n == writes-1 {
					if _, err := c.KV().Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
						t.Error(err)
					}
				}
				if _, err := c.Session().Destroy(id, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

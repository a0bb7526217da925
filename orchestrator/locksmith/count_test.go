package locksmith

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/consulkv/consulkvtest"
)

// tally counts what is asked of Consul.
type tally struct {
	next http.RoundTripper

	mu                      sync.Mutex
	requests, txns, written int64
}

func (c *tally) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.requests++
	if r.URL.Path == "/v1/txn" {
		c.txns++
	}
	c.written += max(r.ContentLength, 0)
	c.mu.Unlock()
	return c.next.RoundTrip(r)
}

// counted is a client whose requests are counted.
func (w *world) counted() (*tally, *consulkv.Client) {
	w.t.Helper()
	count := &tally{}
	kv, err := consulkv.New(consulkv.Config{Address: "consul.test:8500", Wrap: func(rt http.RoundTripper) http.RoundTripper {
		count.next = consulkvtest.InProcess(w.srv.Handler())(rt)
		return count
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return count, kv
}

// TestCountAcquire: what one acquisition and one release of a free lock ask of
// Consul, alone and by a client that takes locks again and again. The line that it
// prints is held to a baseline: make bench-check.
func TestCountAcquire(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		most int64
	}{{"once", Config{}, 12}, {"again", Config{Reuse: true}, 9}} {
		run(t, func(t *testing.T, w *world) {
			count, kv := w.counted()
			c.cfg.Consul = kv
			l, err := New(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			const rounds = 20
			for range rounds {
				h, err := l.Acquire(t.Context(), Request{Names: []string{"bench"}, Operation: "bench"})
				if err != nil {
					t.Fatal(err)
				}
				if err := h.Release(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			count.mu.Lock()
			defer count.mu.Unlock()
			fmt.Printf("pkg: github.com/aim-control/aimlock/orchestrator/locksmith\nBenchmarkCountAcquire/%s \t%d\t%.2f requests/op\t%.2f txns/op\n", c.name, rounds, float64(count.requests)/rounds, float64(count.txns)/rounds)
			if count.requests > c.most*rounds {
				t.Errorf("%s: %d requests for %d acquisitions and releases", c.name, count.requests, rounds)
			}
		})
	}
}

package consulkv_test

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// Every way a server can fail for a while ends within the bound and in one
// error that says how often and how long it was tried.
func TestRetriesAreBounded(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	for name, h := range map[string]func(*atomic.Int64) http.HandlerFunc{
		"500s":      func(n *atomic.Int64) http.HandlerFunc { return answer(n, 500, plain, "boom") },
		"no leader": func(n *atomic.Int64) http.HandlerFunc { return answer(n, 500, plain, "No cluster leader") },
		"hangs": func(n *atomic.Int64) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { n.Add(1); hang(w, r) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var n atomic.Int64
				c := serve(t, h(&n))
				start := time.Now()
				err := get(c)
				took := time.Since(start)
				e, ok := errors.AsType[*consulkv.Error](err)
				if !ok {
					t.Fatalf("got %v", err)
				}
				if int64(e.Tries) != n.Load() || e.Tries < 2 {
					t.Errorf("%d tries counted, %d made", e.Tries, n.Load())
				}
				if limit := consulkv.DefaultRetryFor + consulkv.DefaultTimeout; took > limit {
					t.Errorf("took %s, more than %s", took, limit)
				}
				if took < consulkv.DefaultTimeout {
					t.Errorf("gave up after %s", took)
				}
			})
		})
	}
}

func TestWhatCannotGetBetterIsNotRetried(t *testing.T) {
	t.Parallel()
	for _, code := range []int{400, 403, 404, 413} {
		var n atomic.Int64
		if err := get(serve(t, answer(&n, code, plain, "no"))); err == nil || n.Load() != 1 {
			t.Errorf("HTTP %d: %d tries, %v", code, n.Load(), err)
		}
	}
	var n atomic.Int64
	if err := txn(serve(t, answer(&n, 500, plain, "boom"))); err == nil || n.Load() != 1 {
		t.Errorf("a transaction was sent %d times, %v", n.Load(), err)
	}
}

func TestRetrySucceedsAfterAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if n.Add(1) < 4 {
				answer(nil, 500, plain, "No cluster leader")(w, r)
				return
			}
			answer(nil, 200, asJSON, `[{"Key":"k","Value":"dg==","ModifyIndex":7}]`, "X-Consul-Index", "7")(w, r)
		})
		p, err := c.Get(t.Context(), "k")
		if err != nil || p == nil || p.ModifyIndex != 7 || string(p.Value) != "v" {
			t.Fatalf("got %+v, %v", p, err)
		}
	})
}

// Clients that fail together do not come back together.
func TestRetriesAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		second := map[time.Duration]bool{}
		for range 20 {
			start, n := time.Now(), 0
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n++; n == 2 {
					second[time.Since(start)] = true
				}
				answer(nil, 500, plain, "boom")(w, r)
			})
			_ = get(c)
		}
		if len(second) < 10 {
			t.Fatalf("20 clients came back at %d moments", len(second))
		}
	})
}

// A caller that stops sees its own cause, at once.
func TestRetryEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("asked to stop")
		c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); panic(http.ErrAbortHandler) })
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel(why)
		}()
		start := time.Now()
		_, err := c.Get(ctx, "k")
		if !errors.Is(err, why) || time.Since(start) != time.Second {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
	})
}

// A server that is slower than the time-out is not waited for.
func TestSlowServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(time.Minute):
			case <-r.Context().Done():
			}
			answer(nil, 200, asJSON, "true")(w, r)
		})
		start := time.Now()
		err := txn(c)
		if consulkv.KindOf(err) != consulkv.Broken || !consulkv.Ambiguous(err) || time.Since(start) != consulkv.DefaultTimeout {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
	})
}

// Who waits is told of an operation that is tried again for more than a moment,
// and of no other.
func TestOnRetry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fails time.Duration
		told  bool
	}{"a moment": {500 * time.Millisecond, false}, "longer": {5 * time.Second, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				told := 0
				c, err := consulkv.New(consulkv.Config{Address: "127.0.0.1:1", OnRetry: func(error) { told++ }})
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if _, err := consulkv.Retry(t.Context(), c, "try", func(context.Context) (int, error) {
					if time.Since(start) < tc.fails {
						return 0, &consulkv.Error{Kind: consulkv.Unreachable}
					}
					return 1, nil
				}); err != nil || told > 0 != tc.told {
					t.Errorf("%v; told %d times", err, told)
				}
			})
		})
	}
}

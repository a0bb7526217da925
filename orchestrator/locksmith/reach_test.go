package locksmith

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// nobody answers like an address where nothing listens.
func nobody(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

// silence answers like a network that swallows what is sent.
func silence(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// A bounded wait is bounded whatever Consul does, and the error is about Consul.
func TestWaitBoundsAnUnreachableConsul(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		net         roundTrip
		req         Request
		least, most time.Duration
	}{
		"wait, nothing listens": {nobody, Request{Wait: 2 * time.Second}, 500 * time.Millisecond, 2 * time.Second},
		"wait, no answer":       {silence, Request{Wait: 3 * time.Second}, 2 * time.Second, 5 * time.Second},
		"try, nothing listens":  {nobody, Request{Try: true}, 0, 0},
		"try, no answer":        {silence, Request{Try: true}, 2 * time.Second, 2 * time.Second},
		"try with some reach":   {nobody, Request{Try: true, Reach: 4 * time.Second}, time.Second, 4 * time.Second},
		"no bound":              {nobody, Request{}, 5 * time.Second, consulkv.DefaultRetryFor},
	} {
		for slots, acquire := range map[string]func(*Client, context.Context, Request) (*Hold, error){
			"": (*Client).Acquire, ", slots": (*Client).AcquireAny,
		} {
			t.Run(name+slots, func(t *testing.T) {
				run(t, func(t *testing.T, w *world) {
					c := w.client()
					w.net.to(tc.net)
					req := tc.req
					req.Names = []string{"a", "b"}
					start := time.Now()
					_, err := acquire(c, t.Context(), req)
					if took := time.Since(start); took < tc.least || took > tc.most {
						t.Errorf("took %s, want from %s to %s", took, tc.least, tc.most)
					}
					e, ok := errors.AsType[*consulkv.Error](err)
					if !ok || e.Kind != consulkv.Unreachable && e.Kind != consulkv.Broken || !strings.Contains(err.Error(), w.kv.Addr()) {
						t.Errorf("got %T %v", err, err)
					}
				})
			})
		}
	}
}

// Consul goes while somebody waits: the end of the wait is its end all the same.
func TestConsulGoesDuringABoundedWait(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(), unfenced("a"))
		waiting := make(chan struct{}, 1)
		go func() {
			<-waiting
			w.net.to(roundTrip(silence))
		}()
		start := time.Now()
		_, err := w.client().Acquire(t.Context(), Request{Names: []string{"a"}, Wait: 4 * time.Second, Notify: func(n Notice) {
			if n.Kind == NoticeWaiting {
				select {
				case waiting <- struct{}{}:
				default:
				}
			}
		}})
		took := time.Since(start)
		if _, ok := errors.AsType[*RefusedError](err); !ok && consulkv.KindOf(err) != consulkv.Broken || took < 4*time.Second || took > 6*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

// The bound ends with the call: a hold that was taken in a hurry is kept and
// released as any other.
func TestAHoldIsInNoHurry(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), Request{Names: []string{"a"}, Try: true})
		if _, ok := consulkv.Hurry(h.Context()); ok {
			t.Error("the hold is in a hurry")
		}
		if err := sleep(t.Context(), 2*DefaultTTL); err != nil {
			t.Fatal(err)
		}
		w.stillHolds(h)
	})
}

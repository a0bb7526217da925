package locksmith

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul"
)

// A breaker raises what is owed while the holder waits, and ends the hold by a step
// only after the holder has served what it found: what the policy put on top is left.
func TestQuiesceRaisedWhileItIsServed(t *testing.T) {
	t.Parallel()
	for name, req := range map[string]Request{"a hold that leaves nothing": one("a"), "one that leaves its own": unfenced("a")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client(asElsewhere)
				w.acquire(c, unfenced("a")).Abandon(t.Context())
				cooled()
				p := w.acquiring(c, req)
				p.waits(10 * time.Second)
				raised := w.fence("a")
				raised.Owed, raised.Why = 60, "the holder was broken"
				w.put(w.keys.Fence("a"), &raised)
				<-p.done
				if p.err != nil || w.fence("a") != raised {
					t.Fatalf("%v, and there stands %+v", p.err, w.fence("a"))
				}
				w.destroy(p.hold.sess.id)
				cooled()
				w.release(w.owes(w.client(), 60*time.Second))

				// Where no step ends it after all, a clean release leaves nothing.
				w.acquire(c, unfenced("a")).Abandon(t.Context())
				cooled()
				p = w.acquiring(c, req)
				p.waits(10 * time.Second)
				w.put(w.keys.Fence("a"), &raised)
				<-p.done
				w.release(p.hold)
				w.owes(w.client(), 0)
			})
		})
	}
}

// The breaker raises it between the holder's last look and its write.
func TestQuiesceRaisedAsItEnds(t *testing.T) {
	t.Parallel()
	for name, req := range map[string]Request{"a hold that leaves nothing": one("a"), "one that leaves its own": unfenced("a")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c, key := w.client(asElsewhere), w.keys.Fence("a")
				w.acquire(c, unfenced("a")).Abandon(t.Context())
				cooled()
				p := w.acquiring(c, req)
				p.waits(10 * time.Second)
				raised := w.fence("a")
				raised.Owed, raised.Why = 60, "the holder was broken"
				var done atomic.Bool
				w.late.Keep(func(r *http.Request) bool {
					ends := false
					for _, verb := range []string{"cas", "delete-cas", "set", "delete"} {
						ends = ends || txnWith(verb, key)(r)
					}
					if ends && done.CompareAndSwap(false, true) {
						w.put(key, &raised)
					}
					return false
				})
				<-p.done
				if p.err != nil || !done.Load() || w.fence("a") != raised {
					t.Fatalf("%v, and there stands %+v", p.err, w.fence("a"))
				}
			})
		})
	}
}

// A hold that is lost as its pause ends, and learns it by its own write, gives up.
func TestQuiesceOfAHoldThatIsLost(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), unfenced("a"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var asked atomic.Int64
		w.faults.Add(devconsul.Fault{Status: 500, Match: func(r *http.Request) bool {
			if path("/v1/kv/"+w.keys.Fence("a"))(r) && asked.Add(1) > 100 {
				cancel()
			}
			return r.URL.Query().Has("index")
		}})
		p, _ := w.holder("a")
		w.put(p.Key, append(p.Value, ' '))
		if err := h.serve(ctx, 0); !errors.Is(err, ErrLost) {
			t.Fatalf("%v, after %d looks", err, asked.Load())
		}
	})
}

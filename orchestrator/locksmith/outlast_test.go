package locksmith

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// outageOf makes Consul swallow what is sent to it for so long.
func (w *world) outageOf(d time.Duration) {
	w.net.mu.Lock()
	before := w.net.next
	w.net.mu.Unlock()
	w.net.to(roundTrip(silence))
	go func() {
		_ = sleep(w.t.Context(), d)
		w.net.to(before)
	}()
}

// Consul goes for longer than its operations are tried, while somebody waits for
// a lock: who waits without limit, or for longer than that, has the lock
// afterwards, and is told once what the wait is for.
func TestWaitOutlastsConsul(t *testing.T) {
	t.Parallel()
	const outage = time.Minute
	for name, wait := range map[string]time.Duration{"without limit": 0, "for an hour": time.Hour} {
		for slots, acquire := range map[string]func(*Client, context.Context, Request) (*Hold, error){
			"": (*Client).Acquire, ", slots": (*Client).AcquireAny,
		} {
			t.Run(name+slots, func(t *testing.T) {
				run(t, func(t *testing.T, w *world) {
					w.acquire(w.client(), unfenced("a")) // loses it by the outage
					start, told := time.Now(), 0
					h, err := acquire(w.client(), t.Context(), Request{Names: []string{"a"}, Wait: wait, Notify: func(n Notice) {
						switch n.Kind {
						case NoticeWaiting:
							if told == 0 && time.Since(start) < outage {
								told = -1
								w.outageOf(outage)
							}
						case NoticeOutage:
							// What was asked in the outage may fail after it, beside what
							// is answered then, and is told too.
							if told < 1 || time.Since(start) < outage {
								told = max(told, 0) + 1
							}
						}
					}})
					if err != nil {
						t.Fatalf("after %s: %v", time.Since(start), err)
					}
					if took := time.Since(start); took < outage {
						t.Errorf("it has the lock after %s, in the outage", took)
					}
					if told != 1 {
						t.Errorf("it was told %d times of one outage", told)
					}
					w.stillHolds(h)
					if err := h.Release(t.Context()); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// The bound of a wait is its end in a long outage too.
func TestWaitEndsInAnOutage(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.acquire(w.client(), unfenced("a"))
		start, gone := time.Now(), false
		_, err := w.client().Acquire(t.Context(), Request{Names: []string{"a"}, Wait: 40 * time.Second, Notify: func(n Notice) {
			if n.Kind == NoticeWaiting && !gone {
				gone = true
				w.outageOf(time.Hour)
			}
		}})
		_, refused := errors.AsType[*RefusedError](err)
		if took := time.Since(start); !refused && consulkv.KindOf(err) != consulkv.Broken || took < 40*time.Second || took > 60*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

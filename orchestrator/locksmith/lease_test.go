package locksmith

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
)

// clocked gives a client a boot clock that a test can move: what a process sees
// that wakes after a SIGSTOP or a suspension of its machine, before any of its
// timers has run.
func clocked(c *Client) *atomic.Int64 {
	var jump atomic.Int64
	clock := c.lease
	c.lease = func() float64 { return clock() + time.Duration(jump.Load()).Seconds() }
	return &jump
}

// A release that no server takes is tried again, but not by a process that was stopped
// between two tries until after its lease.
func TestReleaseIsNotTriedAfterTheLease(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		jump := clocked(c)
		h := w.acquire(c, one("a"))
		w.faults.Add(devconsul.Fault{Match: path("/v1/txn"), Status: http.StatusInternalServerError, Body: "No cluster leader"})
		released := make(chan error, 1)
		go func() { released <- h.Release(t.Context()) }()
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
		w.faults.Clear()
		jump.Store(int64(30 * time.Second))
		var late atomic.Bool
		w.net.before(path("/v1/txn"), func() { late.Store(true) })
		if err := <-released; err == nil {
			t.Error("it was released after its lease")
		}
		if late.Load() {
			t.Error("the release was sent after the lease")
		}
	})
}

// A holder that hears nothing from Consul stops before its lease is over.
func TestSelfFencing(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		start := time.Now()
		w.faults.Add(devconsul.Fault{Drop: true})
		if cause := waitDone(t, h.Context(), time.Minute); !errors.Is(cause, ErrLost) {
			t.Fatalf("cause %v", cause)
		}
		if took := time.Since(start); took > CheckTTL-LeaseMargin || took < CheckTTL-LeaseMargin-PassEvery-time.Second {
			t.Fatalf("stopped after %s", took)
		}
		w.faults.Clear()
		if _, err := h.Txn(t.Context(), consulkv.Set("work", []byte("x"))); !errors.Is(err, ErrLost) {
			t.Fatalf("a holder whose lease was over writes again: %v", err)
		}
		if w.get("work") != nil {
			t.Fatal("the write went through")
		}
	})
}

// A process that wakes after its lease sends nothing: no write, no pass, no
// renewal; also not once its clock looks right again.
func TestNothingIsSentAfterTheLease(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(t *testing.T, h *Hold){
		"a write": func(t *testing.T, h *Hold) {
			if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
				t.Errorf("write: %v", err)
			}
		},
		"progress": func(t *testing.T, h *Hold) {
			if err := h.Progress(t.Context(), 1, 2, "x", ""); !errors.Is(err, ErrLost) {
				t.Errorf("progress: %v", err)
			}
		},
		"the pen": func(t *testing.T, h *Hold) {
			if err := h.turnPen(t.Context()); !errors.Is(err, ErrLost) {
				t.Errorf("pen: %v", err)
			}
		},
		"its keepers alone": func(*testing.T, *Hold) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				c := w.client()
				jump := clocked(c)
				h := w.acquire(c, one("a"))
				time.Sleep(2900 * time.Millisecond) // just before the next pass
				synctest.Wait()
				jump.Store(int64(30 * time.Second))
				before := w.net.sent.Load()
				act(t, h)
				time.Sleep(8 * time.Second) // two passes and a renewal would be due
				jump.Store(0)
				if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
					t.Errorf("over is not over: %v", err)
				}
				time.Sleep(8 * time.Second)
				if n := w.net.sent.Load() - before; n > 0 {
					t.Errorf("%d requests were sent after the lease", n)
				}
				if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) {
					t.Errorf("cause %v", cause)
				}
				if h.LeaseLeft() > 0 && h.sess.dead() == nil {
					t.Error("there is a lease again")
				}
			})
		})
	}
}

// Who was asked to let go still writes, until the lease is over: from then on the
// hold is lost, and what it was asked before is no answer any more.
func TestNothingIsSentAfterTheLeaseOfAHoldThatWasAskedFor(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		jump := clocked(c)
		h := w.acquire(c, one("a"))
		if _, err := w.client().Request(t.Context(), "a", "", time.Minute); err != nil {
			t.Fatal(err)
		}
		if cause := waitDone(t, h.Context(), time.Minute); !errors.Is(cause, ErrRequested) {
			t.Fatalf("cause %v", cause)
		}
		if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); err != nil {
			t.Fatalf("the last write before it lets go: %v", err)
		}
		jump.Store(int64(30 * time.Second))
		before := w.net.sent.Load()
		if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
			t.Errorf("write: %v", err)
		}
		if err := h.turnPen(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("pen: %v", err)
		}
		if n := w.net.sent.Load() - before; n > 0 {
			t.Errorf("%d requests were sent after the lease", n)
		}
	})
}

// Work goes on for a while under a hold that was asked for. It learns of a loss in
// that time as soon as any other hold would, whatever Consul tells it by.
func TestHoldThatWasAskedForLearnsThatItIsLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*world, *Hold){
		"its session is destroyed":  func(w *world, h *Hold) { w.destroy(h.Session()) },
		"its key is deleted":        func(w *world, _ *Hold) { w.delete(w.keys.Lock("a")) },
		"somebody rewrites its key": func(w *world, _ *Hold) { w.put(w.keys.Lock("a"), "mine") },
		"Consul cannot be reached": func(w *world, _ *Hold) {
			w.faults.Add(devconsul.Fault{Match: func(*http.Request) bool { return true }, Drop: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(), one("a"))
				if _, err := w.client().Request(t.Context(), "a", "", time.Minute); err != nil {
					t.Fatal(err)
				}
				if cause := waitDone(t, h.Context(), time.Minute); !errors.Is(cause, ErrRequested) {
					t.Fatalf("cause %v", cause)
				}
				time.Sleep(20 * time.Second) // its lease goes on
				if err := h.Life().Err(); err != nil || h.LeaseLeft() < CheckTTL/2 {
					t.Fatalf("%v with a lease of %s", context.Cause(h.Life()), h.LeaseLeft())
				}
				within := time.Second
				if name == "Consul cannot be reached" {
					within += h.LeaseLeft()
				}
				lose(w, h)
				if cause := waitDone(t, h.Life(), within); !errors.Is(cause, ErrLost) {
					t.Fatalf("cause %v", cause)
				}
				if cause := context.Cause(h.Context()); !errors.Is(cause, ErrRequested) {
					t.Fatalf("the cause of its work's end became %v", cause)
				}
				w.faults.Clear()
				if err := h.Release(t.Context()); !errors.Is(err, ErrLost) {
					t.Fatalf("release: %v", err)
				}
			})
		})
	}
}

// An answer that was on its way while the process was stopped does not bring
// the lease back: it says nothing about the time in between.
func TestAnswerOfBeforeDoesNotExtendALeaseThatIsOver(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		jump := clocked(c)
		h := w.acquire(c, one("a"))
		w.net.before(path("/v1/agent/check/update/"), func() { jump.Store(int64(30 * time.Second)) })
		time.Sleep(4 * time.Second)
		if _, err := h.Txn(t.Context(), consulkv.Set("work", nil)); !errors.Is(err, ErrLost) {
			t.Fatalf("got %v", err)
		}
	})
}

// A write that waits for its connection when the lease ends is given up.
func TestWriteUnderWayWhenTheLeaseEnds(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool { return r.URL.Path != "/v1/txn" }, Drop: true})
		time.Sleep(7 * time.Second)
		w.faults.Add(devconsul.Fault{Match: path("/v1/txn"), Delay: 4 * time.Second})
		start := time.Now()
		_, err := h.Txn(t.Context(), consulkv.Set("work", nil))
		if !errors.Is(err, ErrLost) || time.Since(start) > 3*time.Second {
			t.Fatalf("%v after %s", err, time.Since(start))
		}
		time.Sleep(10 * time.Second)
		w.faults.Clear()
		if w.get("work") != nil {
			t.Fatal("it landed")
		}
	})
}

// Passes of the check go on though the session is gone. They alone do not keep
// the hold alive, also where nothing else gets through.
func TestPassesDoNotKeepADeadSession(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		time.Sleep(4 * time.Second)
		w.faults.Add(devconsul.Fault{Match: func(r *http.Request) bool { return !strings.HasPrefix(r.URL.Path, "/v1/agent/") }, Drop: true})
		if cause := waitDone(t, h.Context(), DefaultTTL); !errors.Is(cause, ErrLost) {
			t.Fatalf("cause %v", cause)
		}
		if since := CheckTTL - h.sess.check.left(); since > PassEvery+time.Second {
			t.Fatalf("the check was passed %s ago: the test tests nothing", since)
		}
	})
}

// Once Consul says that the session is gone, the next renewal ends the hold.
func TestRenewalThatFindsNoSession(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		w.faults.Add(devconsul.Fault{Match: path("/v1/kv/"), Drop: true}) // the key cannot be watched
		time.Sleep(100 * time.Millisecond)
		w.destroy(h.Session())
		cause := waitDone(t, h.Context(), DefaultTTL/3+time.Second)
		if !errors.Is(cause, ErrLost) {
			t.Fatalf("cause %v", cause)
		}
	})
}

// Making the session may take longer than the check lives: it is passed from
// the first.
func TestSlowCreationOfTheSession(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		w.faults.Add(devconsul.Fault{Match: path("/v1/session/create"), Times: 2, Delay: 4950 * time.Millisecond, Status: 500, Body: "No cluster leader"})
		start := time.Now()
		h := w.acquire(w.client(), one("a"))
		if time.Since(start) < CheckTTL {
			t.Fatalf("took %s: the test tests nothing", time.Since(start))
		}
		w.stillHolds(h)
		if h.LeaseLeft() < 5*time.Second || !h.Checked() {
			t.Fatalf("lease of %s, checked %v", h.LeaseLeft(), h.Checked())
		}
	})
}

// Where no agent takes checks the session's TTL alone serves.
func TestWithoutAnAgentThatTakesChecks(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]devconsul.Fault{
		"the agent refuses": {Match: path("/v1/agent/service/register"), Status: 403, Body: "Permission denied"},
		"the servers hear of no check": {Match: func(r *http.Request) bool {
			return r.URL.Path == "/v1/session/create" && strings.Contains(bodyOf(r), "ServiceChecks") && !strings.Contains(bodyOf(r), `"ServiceChecks":null`)
		}, Status: 500, Body: "Missing check 'aimlock-holder-x' registration"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.faults.Add(fault)
				h := w.acquire(w.client(), one("a"))
				if h.Checked() {
					t.Fatal("it says that a check serves")
				}
				time.Sleep(time.Minute)
				w.stillHolds(h)
				if _, rec := w.holder("a"); rec.Check != "" {
					t.Fatalf("the record names the check %s", rec.Check)
				}
				w.faults.Add(devconsul.Fault{Drop: true})
				start := time.Now()
				if cause := waitDone(t, h.Context(), time.Minute); !errors.Is(cause, ErrLost) || time.Since(start) > DefaultTTL-LeaseMargin {
					t.Fatalf("%v after %s", cause, time.Since(start))
				}
			})
		})
	}
}

// A name that the catalog keeps for another node is why no check comes to the
// servers: it is said, for the session alone does not show it.
func TestNameOfTheAgentReserved(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		missing := errors.New("Missing check")
		if err := c.withheld(t.Context(), missing); !errors.Is(err, missing) || strings.Contains(err.Error(), "reserved") {
			t.Fatalf("the name is not reserved: %v", err)
		}
		w.faults.Add(devconsul.Fault{Match: path("/v1/agent/self"), Times: 1, Status: 200, ContentType: "application/json", Body: `{"Config":{"NodeName":"web-1","NodeID":"new"}}`})
		w.faults.Add(devconsul.Fault{Match: path("/v1/catalog/node/web-1"), Times: 1, Status: 200, ContentType: "application/json", Body: `{"Node":{"ID":"old","Node":"web-1"}}`})
		if err := c.withheld(t.Context(), missing); !errors.Is(err, missing) || !strings.Contains(err.Error(), "web-1 registers, whose node ID is new: the name is reserved by node old") {
			t.Fatalf("%v", err)
		}
	})
}

// Servers that were restored from a snapshot show the key as it was before the
// lock was taken. A follower that lags does too, for a moment.
func TestRestoredServers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		times int
		lost  bool
	}{"restored": {0, true}, "a follower that lags": {1, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				h := w.acquire(w.client(), one("a"))
				synctest.Wait()
				w.faults.Add(devconsul.Fault{Match: path("/v1/kv/" + w.keys.Lock("a")), Times: tc.times, Status: 200, ContentType: "application/json",
					Body: `[{"Key":"aimlock/locks/a","Value":"","Session":"","ModifyIndex":3}]`})
				// Wake the query that blocks.
				if !tc.lost {
					time.Sleep(2 * time.Minute)
					w.stillHolds(h)
					return
				}
				if cause := waitDone(t, h.Context(), 2*time.Minute); !errors.Is(cause, ErrLost) || !strings.Contains(cause.Error(), "snapshot") {
					t.Fatalf("cause %v", cause)
				}
			})
		})
	}
}

// goroutines are those of this test's bubble that run code of the packages
// that own goroutines here.
func goroutines() []string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	all := strings.Split(string(buf), "\n\n")
	mine, _, _ := strings.Cut(all[0][strings.Index(all[0], "synctest bubble"):], "]")
	var out []string
	for _, g := range all[1:] {
		head, _, _ := strings.Cut(g, "\n")
		if !strings.Contains(head, mine+"]") && !strings.Contains(head, mine+",") {
			continue
		}
		if _, by, _ := strings.Cut(g, "created by "); strings.Contains(by, "consulkvtest") {
			continue // a request that is served, whoever waits for it
		}
		if strings.Contains(g, "aimlock/orchestrator/") || strings.Contains(g, "aimlock/internal/consulkv") {
			out = append(out, g)
		}
	}
	return out
}

// However an acquisition ends, nothing of it runs on.
func TestNoGoroutineIsLeft(t *testing.T) {
	t.Parallel()
	ended := func(t *testing.T) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, cancel)
		return ctx
	}
	for name, act := range map[string]func(t *testing.T, w *world) error{
		"released": func(t *testing.T, w *world) error {
			h, err := w.client().Acquire(t.Context(), one("free"))
			if err != nil {
				return err
			}
			return h.Release(t.Context())
		},
		"abandoned": func(t *testing.T, w *world) error {
			h, err := w.client().Acquire(t.Context(), one("free"))
			if err == nil {
				h.Abandon(t.Context())
			}
			return err
		},
		"lost, then released": func(t *testing.T, w *world) error {
			h, err := w.client().Acquire(t.Context(), one("free"))
			if err != nil {
				return err
			}
			w.destroy(h.Session())
			waitDone(t, h.Context(), time.Minute)
			if err := h.Release(t.Context()); !errors.Is(err, ErrLost) {
				return fmt.Errorf("release after a loss: %w", err)
			}
			return nil
		},
		"refused": func(t *testing.T, w *world) error {
			_, err := w.client().Acquire(t.Context(), Request{Names: []string{"held"}, Try: true})
			return want[*RefusedError](err)
		},
		"waited in vain": func(t *testing.T, w *world) error {
			_, err := w.client().Acquire(t.Context(), Request{Names: []string{"held"}, Wait: 5 * time.Second})
			return want[*RefusedError](err)
		},
		"cancelled while it waits": func(t *testing.T, w *world) error {
			_, err := w.client().Acquire(ended(t), one("held"))
			return is(err, context.Canceled)
		},
		"cancelled while it serves": func(t *testing.T, w *world) error {
			old, err := w.client(asElsewhere).Acquire(t.Context(), unfenced("free"))
			if err != nil {
				return err
			}
			old.Abandon(t.Context())
			time.Sleep(20 * time.Second)
			_, err = w.client().Acquire(ended(t), one("free"))
			return is(err, context.Canceled)
		},
		"cancelled while it breaks": func(t *testing.T, w *world) error {
			old, err := w.client(asElsewhere).Acquire(t.Context(), one("broken"))
			if err != nil {
				return err
			}
			defer old.Abandon(context.Background())
			c := w.client(withPolicy(t, `policy "p" {
				locks = ["**"]
				hot "always" { when = holder.tool == "aimlock" }
				break {
					approval = "auto"
					step "request" { wait = "1m" }
					step "take" {}
				}
			}`), named("breaker"))
			old.cancel(errors.New("does not listen"))
			_, err = c.Acquire(ended(t), one("broken"))
			return is(err, context.Canceled)
		},
		"the session cannot be made": func(t *testing.T, w *world) error {
			w.faults.Add(devconsul.Fault{Match: path("/v1/session/create"), Status: 403, Body: "Permission denied"})
			defer w.faults.Clear()
			_, err := w.client().Acquire(t.Context(), one("free"))
			return kind(err, consulkv.Denied)
		},
		"the service cannot be made": func(t *testing.T, w *world) error {
			w.faults.Add(devconsul.Fault{Match: path("/v1/agent/service/register"), Status: 500, Body: "boom"})
			defer w.faults.Clear()
			_, err := w.client().Acquire(t.Context(), one("free"))
			return kind(err, consulkv.ServerError)
		},
		"Consul goes away while it waits": func(t *testing.T, w *world) error {
			defer w.faults.Clear()
			time.AfterFunc(3*time.Second, func() { w.faults.Add(devconsul.Fault{Drop: true}) })
			_, err := w.client().Acquire(t.Context(), Request{Names: []string{"held"}, Wait: time.Minute})
			return kind(err, consulkv.Broken)
		},
		"no epoch": func(t *testing.T, w *world) error {
			w.put(w.keys.Epoch(), "x")
			defer w.delete(w.keys.Epoch())
			if _, err := w.client().Acquire(t.Context(), one("free")); err == nil || !strings.Contains(err.Error(), "`aimlock recover`") {
				return fmt.Errorf("got %w", err)
			}
			if _, rec := w.holder("free"); !rec.Released {
				return errors.New("it is not released")
			}
			return nil
		},
		"a break": func(t *testing.T, w *world) error {
			old, err := w.client(asDead).Acquire(t.Context(), one("broken"))
			if err != nil {
				return err
			}
			defer old.Abandon(context.Background())
			_, err = w.client().Break(t.Context(), BreakRequest{Name: "broken"})
			return err
		},
		"a break that is not permitted": func(t *testing.T, w *world) error {
			old, err := w.client(asElsewhere).Acquire(t.Context(), one("broken"))
			if err != nil {
				return err
			}
			defer old.Abandon(context.Background())
			c := w.client(withPolicy(t, `policy "p" {
				locks = ["**"]
				hot "always" { when = holder.tool == "aimlock" }
				break {
					approval = "auto"
					freeze { when = cluster.sessions_lost >= 0 }
				}
			}`))
			_, err = c.Break(t.Context(), BreakRequest{Name: "broken"})
			return want[*NotPermittedError](err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(), one("held"))
				synctest.Wait()
				before := len(goroutines())
				start := time.Now()
				if err := act(t, w); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 2*time.Minute {
					t.Errorf("took %s", took)
				}
				synctest.Wait()
				if left := goroutines(); len(left) > before {
					t.Errorf("%d goroutines are left, of %d before:\n%s", len(left), before, strings.Join(left, "\n\n"))
				}
			})
		})
	}
}

func want[E error](err error) error {
	if _, ok := errors.AsType[E](err); !ok {
		return fmt.Errorf("got %T: %w", err, err)
	}
	return nil
}

func is(err, target error) error {
	if !errors.Is(err, target) {
		return fmt.Errorf("got %T: %w", err, err)
	}
	return nil
}

func kind(err error, k consulkv.Kind) error {
	if consulkv.KindOf(err) != k {
		return fmt.Errorf("got %T: %w", err, err)
	}
	return nil
}

package locksmith

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

const anAlloc = "5d2c1a52-0000-4000-8000-000000000001"

// fakeNomad is a Nomad that a test answers for.
type fakeNomad struct {
	mu      sync.Mutex
	status  string
	index   uint64
	changed chan struct{}
	stopped []string
	onStop  func()
	err     error
}

// collected is the status of an allocation that Nomad forgot.
const collected = "collected"

var _ evidence.Nomad = (*fakeNomad)(nil)

func newFakeNomad() *fakeNomad {
	return &fakeNomad{status: "running", index: 1, changed: make(chan struct{})}
}

func (n *fakeNomad) Alloc(ctx context.Context, ref evidence.AllocRef, since evidence.Since) (*evidence.Alloc, uint64, error) {
	for {
		n.mu.Lock()
		a, now, changed, err := &evidence.Alloc{ID: ref.ID, ClientStatus: n.status, DesiredStatus: "run", NodeStatus: "ready", Job: "j"}, n.index, n.changed, n.err
		if n.status == collected {
			a = &evidence.Alloc{ID: ref.ID, Gone: true}
		}
		n.mu.Unlock()
		if err != nil || since.Index < now {
			return a, now, err
		}
		select {
		case <-changed:
		case <-time.After(since.Wait):
			return a, now, nil
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

func (n *fakeNomad) set(status string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status, n.index = status, n.index+1
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *fakeNomad) Stop(_ context.Context, ref evidence.AllocRef) error {
	n.mu.Lock()
	n.stopped = append(n.stopped, ref.ID)
	then, gone := n.onStop, n.status == collected
	n.mu.Unlock()
	if gone {
		return errors.New("HTTP 404: allocation not found")
	}
	if then != nil {
		then()
	}
	return nil
}

func (n *fakeNomad) stops() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.stopped)
}

// inAlloc makes a client of a process that Nomad runs.
func inAlloc(c *Config) {
	c.Alloc = Allocation{ID: anAlloc, Region: "global", Namespace: "ops", Job: "tick/periodic-1"}
}

func withNomad(n evidence.Nomad) func(*Config) { return func(c *Config) { c.Nomad = n } }

// An allocation that failed makes its lock HOT, as soon as Nomad says so.
func TestAllocationThatFails(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		n := newFakeNomad()
		w.deaf(w.acquire(w.client(asElsewhere, inAlloc), one("a")))
		p := w.acquiring(w.client(withNomad(n)), one("a"))
		p.waits(2 * time.Minute) // also until the freeze is known not to hold
		n.set("failed")
		p.wait(30 * time.Second) // it is asked, and then stopped
		b := w.breaks("a")
		if len(b) != 1 || b[0].Rule != "alloc-dead" || b[0].Outcome != records.OutcomeTaken {
			t.Fatalf("breaks %+v", b)
		}
		if got := n.stops(); len(got) != 1 || got[0] != anAlloc {
			t.Fatalf("stopped %v", got)
		}
	})
}

// One whose client is lost does too, though its check passes: Nomad will not have
// it again. What it may have left is quiesced.
func TestAllocationThatIsLost(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		n := newFakeNomad()
		req := one("a")
		req.Quiesce = 15 * time.Second
		w.deaf(w.acquire(w.client(asElsewhere, inAlloc), req))
		p := w.acquiring(w.client(withNomad(n)), one("a"))
		p.waits(2 * time.Minute)
		n.set("lost")
		start := time.Now()
		p.wait(time.Minute)
		b := w.breaks("a")
		if len(b) != 1 || b[0].Rule != "alloc-lost" || b[0].Outcome != records.OutcomeTaken {
			t.Fatalf("breaks %+v", b)
		}
		if took := time.Since(start); took < 15*time.Second {
			t.Errorf("the next holder began after %s", took)
		}
	})
}

// Who holds a lock from inside Nomad says which allocation it is.
func TestRecordOfAnAllocation(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client(inAlloc)
		w.acquire(c, one("a"))
		v, err := c.NewObserver("a", nil).Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if h := v.Snapshot.Holder; h == nil || h.AllocID != anAlloc || h.AllocRegion != "global" || h.AllocJob != "tick/periodic-1" || h.AllocNamespace != "ops" {
			t.Errorf("record %+v", h)
		}
		st := c.Status(v)
		if want := (AllocationView{anAlloc, "tick/periodic-1", "ops", "global"}); st.Allocation == nil || *st.Allocation != want {
			t.Errorf("status %+v", st.Allocation)
		}
	})
}

// What Nomad does not say breaks nothing.
func TestNomadThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		n := newFakeNomad()
		n.err = errors.New("no route")
		old := w.acquire(w.client(asElsewhere, inAlloc), one("a"))
		p := w.acquiring(w.client(withNomad(n)), one("a"))
		p.waits(2 * time.Minute)
		if !slices.Contains(p.kinds(), "waiting UNKNOWN") {
			t.Fatalf("was told %v", p.kinds())
		}
		w.stillHolds(old)
	})
}

// An allocation that is stopped ends its hold by itself.
func TestStepNomadStop(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		n := newFakeNomad()
		old := w.acquire(w.client(asElsewhere, inAlloc), one("a"))
		n.onStop = func() { _ = old.Release(context.Background()) }
		c := w.client(withNomad(n), withPolicy(t, `policy "p" {
			locks = ["**"]
			hot "always" { when = session.has_ttl }
			break {
				approval = "auto"
				step "nomad_stop" {
					when = nomad.alloc_id != null
					wait = "10s"
				}
				step "take" {}
			}
		}`))
		start := time.Now()
		w.stillHolds(w.acquire(c, one("a")))
		if time.Since(start) > 5*time.Second {
			t.Errorf("took %s", time.Since(start))
		}
		if got := w.outcomes("a"); got != "released" || len(n.stops()) != 1 {
			t.Fatalf("breaks: %s, stopped %v", got, n.stops())
		}
	})
}

// Without a Nomad the step is one that fails.
func TestStepNomadStopWithoutNomad(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		old := w.acquire(w.client(asElsewhere, inAlloc), one("a"))
		c := w.client(withPolicy(t, `policy "p" {
			locks = ["**"]
			hot "always" { when = session.has_ttl }
			break {
				approval = "auto"
				step "nomad_stop" {}
				step "take" {}
			}
		}`))
		if _, err := c.Break(t.Context(), BreakRequest{Name: "a"}); !errors.Is(err, errNotHere) || !strings.Contains(err.Error(), "a step of the policy failed: nomad_stop") {
			t.Fatalf("got %v", err)
		}
		// It is not tried again at once, and once more, and each time written down.
		if got := w.outcomes("a"); got != "aborted" {
			t.Errorf("breaks: %s", got)
		}
		w.stillHolds(old)
	})
}

// There is nothing to stop of an allocation that Nomad collected, and its lock is
// broken all the same: by the shipped policy too.
func TestStepNomadStopOfAnAllocationThatIsGone(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		n := newFakeNomad()
		n.set(collected)
		w.acquire(w.client(asElsewhere, inAlloc), one("a"))
		p := w.acquiring(w.client(withNomad(n)), one("a"))
		w.stillHolds(p.wait(3 * time.Minute))
		if got := w.outcomes("a"); got != "taken" || len(n.stops()) != 0 {
			t.Fatalf("breaks: %s, stopped %v", got, n.stops())
		}
	})
}

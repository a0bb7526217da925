package locksmith

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// A lock that was let go after it was read is not HOT because its holder has ended by
// then; one that is still held is.
func TestSettle(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(asDead), one("a"))
		c := w.client()
		obs := c.NewObserver("a", nil)
		s, err := c.Reader().Read(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		settled := func() string {
			v, err := obs.Settle(t.Context(), obs.Judge(s, time.Now()))
			if err != nil {
				t.Fatal(err)
			}
			return v.State
		}
		if got := settled(); got != Hot {
			t.Errorf("held by a process that has ended: %s", got)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := obs.Judge(s, time.Now()).State; got != Hot {
			t.Errorf("by the old read alone: %s: the test tests nothing", got)
		}
		if got := settled(); got != Free {
			t.Errorf("let go since: %s", got)
		}
	})
}

// follow follows locks as they were read, until done is called: it returns the states that
// were told of each, in order.
func (w *world) follow(c *Client, read ...*evidence.Snapshot) (told func() map[string][]string, done func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	states, ended := map[string][]string{}, make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.Follow(ctx, Following{
			Source: func(ctx context.Context, tell func([]*evidence.Snapshot)) error {
				tell(read)
				<-ctx.Done()
				return ctx.Err()
			},
			Tell: func(changed []*Verdict) {
				for _, v := range changed {
					states[v.Snapshot.Name] = append(states[v.Snapshot.Name], v.State)
				}
			},
		})
	}()
	return func() map[string][]string { synctest.Wait(); return states }, func() { cancel(); <-ended }
}

func (w *world) read(c *Client, name string) *evidence.Snapshot {
	w.t.Helper()
	s, err := c.Reader().Read(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// Who watches is told of no lock that it is HOT which was let go since it was read.
func TestFollowedReleaseIsNotHot(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(asDead), one("job"))
		w.acquire(w.client(asDead), one("dead"))
		c := w.client()
		job, dead := w.read(c, "job"), w.read(c, "dead")
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		told, done := w.follow(c, job, dead)
		defer done()
		time.Sleep(3 * time.Second)
		if got := told()["job"]; len(got) == 0 || slices.Contains(got, Hot) {
			t.Errorf("a lock that was let go: %q", got)
		}
		if got := told()["dead"]; !slices.Contains(got, Hot) {
			t.Errorf("a lock whose holder died: %q", got)
		}
	})
}

package locksmith

import (
	"testing"
	"time"
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

package locksmith

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// endless are pauses that a record may ask for, whoever wrote it.
var endless = []float64{1e9, 1e300}

func TestAQuiesceIsCapped(t *testing.T) {
	t.Parallel()
	for asked, want := range map[float64]float64{1e9: MaxQuiesce.Seconds(), 1e300: MaxQuiesce.Seconds(), 15: 15} {
		f := leaving(&records.Holder{Quiesce: asked}, time.Now())
		if f == nil || f.Owed != want {
			t.Errorf("a record that asks for %g s leaves %+v, want %g s", asked, f, want)
		}
	}
	if f := owing(&records.Fence{Owed: 1e300}); f == nil || f.Owed != MaxQuiesce.Seconds() {
		t.Errorf("a fence that owes more than any is %+v", f)
	}
}

func TestTheQuiesceOfARecoveryIsCapped(t *testing.T) {
	t.Parallel()
	for _, asked := range endless {
		for what, s := range map[string]*evidence.Snapshot{
			"record": {Holder: &records.Holder{Quiesce: asked}},
			"fence":  {Fence: &records.Fence{Owed: asked}},
		} {
			if f := (&recovering{}).fence(s); f.Owed != MaxQuiesce.Seconds() {
				t.Errorf("a %s of %g s: %+v", what, asked, f)
			}
		}
	}
}

func TestTheQuiesceOfABreakIsCapped(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		c := w.client()
		long := 24 * time.Hour
		for what, v := range map[string]*Verdict{
			"record": {Snapshot: &evidence.Snapshot{Holder: &records.Holder{Quiesce: 1e300, Host: "elsewhere"}}, Policy: &policies.Policy{Break: &policies.Break{}}},
			"fence":  {Snapshot: &evidence.Snapshot{Fence: &records.Fence{Owed: 1e9}}, Policy: &policies.Policy{Break: &policies.Break{}}},
			"policy": {Snapshot: &evidence.Snapshot{}, Policy: &policies.Policy{Break: &policies.Break{Quiesce: &long}}},
		} {
			if f := c.leaves(v); f == nil || f.Owed != MaxQuiesce.Seconds() {
				t.Errorf("a %s: %+v", what, f)
			}
		}
	})
}

// Whatever it is told to serve, a hold serves the longest pause at most.
func TestAHoldServesNoLongerThanTheCap(t *testing.T) {
	t.Parallel()
	run(t, func(t *testing.T, w *world) {
		h := w.acquire(w.client(), one("a"))
		start := time.Now()
		if err := h.serve(t.Context(), 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < MaxQuiesce || took > MaxQuiesce+time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

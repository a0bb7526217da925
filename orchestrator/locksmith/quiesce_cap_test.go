package locksmith

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

func TestAQuiesceIsCapped(t *testing.T) {
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

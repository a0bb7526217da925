package locksmith

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/policies"
)

// A glance comes to the verdict that a whole look comes to, on facts that are the
// same; of a HOT lock, which may be broken on it, no fact is missing.
func TestGlance(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		holder func(*Config)
		state  string
	}{"hot": {asDead, Hot}, "unknown": {asElsewhere, Unknown}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, func(t *testing.T, w *world) {
				w.acquire(w.client(c.holder), one("a"))
				cl := w.client()
				s, err := cl.Reader().Read(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				now := time.Now()
				whole, v := cl.NewObserver("a", nil).Judge(s, now), cl.NewObserver("a", nil).Glance(s, now)
				if v.State != c.state || whole.State != v.State || whole.Judgement.Result.Why != v.Judgement.Result.Why || whole.Judgement.Result.Reason != v.Judgement.Result.Reason {
					t.Fatalf("at a glance %s: %+v; want %s: %+v", v.State, v.Judgement.Result, whole.State, whole.Judgement.Result)
				}
				// An age by the kernel's clock goes on between the two looks.
				same := func(object, attr string, a, b policies.Fact) bool {
					aged := policies.Schema()[object][attr].Age && a.Value.IsKnown() && b.Value.IsKnown()
					return (aged || a.Value.RawEquals(b.Value)) && a.Why == b.Why && a.Source == b.Source && a.ObservedAt.Equal(b.ObservedAt)
				}
				judged, missing := 0, 0
				for object, facts := range whole.Facts {
					attrs, _ := v.Policy.Judging().Object(object)
					for attr, want := range facts {
						got, ok := v.Facts[object][attr]
						if !ok {
							missing++
						}
						if attrs[attr] {
							judged++
						}
						if (attrs[attr] || ok) && (!ok || !same(object, attr, got, want)) {
							t.Errorf("%s.%s at a glance is %+v, and else %+v", object, attr, got, want)
						}
					}
				}
				if judged == 0 || (v.State == Hot) != (missing == 0) {
					t.Errorf("%d facts were judged, and %d are missing of a %s lock", judged, missing, v.State)
				}
			})
		})
	}
}

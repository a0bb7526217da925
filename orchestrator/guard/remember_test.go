package guard

import (
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"
)

// A command that starts now knows how long a lock has stood still, as far as the
// leader wrote it down; and what is written goes with the hold.
func TestWhatTheLeaderRemembers(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		s := w.start(`policy "p" { locks = ["**"] }`)
		s.leads(time.Minute)
		h := w.hold(w.client(asElsewhere), "a")
		time.Sleep(5 * time.Minute)
		r := w.client().Reader()
		snap, err := r.Read(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		fact, _ := r.Facts(snap, nil, nil, time.Now()).Lookup("lock.held_for")
		if v := fact.Value.GreaterThan(cty.NumberIntVal(140)); !v.IsKnown() || v.False() {
			t.Errorf("of five minutes is known %#v (%s)", fact.Value, fact.Why)
		}
		if v := fact.Value.LessThan(cty.NumberIntVal(300)); v.IsKnown() {
			t.Errorf("that it is no more than five minutes cannot be known: %#v", v)
		}
		key := w.keys.Observed("a", "locksmith@"+r.Self.Host)
		there := func() bool {
			p, _, err := w.kv.API().KV().Get(key, &api.QueryOptions{RequireConsistent: true})
			return err == nil && p != nil
		}
		if !there() {
			t.Fatalf("%s is not there", key)
		}
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.until(2*rememberEvery, "the record is gone", func() bool { return !there() })
	})
}

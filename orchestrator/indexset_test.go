package orchestrator

import (
	"encoding/json"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexSet(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		m := rapid.MapOf(rapid.IntRange(0, 3000), rapid.Just(true)).Draw(rt, "set")
		var want IndexSet
		for i := range 3001 {
			if m[i] {
				want = append(want, i)
			}
		}
		b, err := json.Marshal(want)
		if err != nil {
			rt.Fatal(err)
		}
		var got IndexSet
		if err := json.Unmarshal(b, &got); err != nil || !slices.Equal(got, want) {
			rt.Fatalf("%s became %v (%v)", b, got, err)
		}
		for i := -1; i <= 3001; i++ {
			if want.Has(i) != m[i] {
				rt.Fatalf("it has %d: %v, want %v: %v", i, want.Has(i), m[i], want)
			}
		}
	})
	var half IndexSet
	for i := 0; i < 10000; i += 2 {
		half = append(half, i)
	}
	b, err := json.Marshal(half)
	if err != nil || len(b) > 1700 {
		t.Errorf("every other of 10,000 nodes takes %d bytes (%v)", len(b), err)
	}
	for _, bad := range []string{`"1,0"`, `"5-3"`, `"x"`, `"-1"`, `"0-99999999"`, `"bitmap:@"`, `3`} {
		var s IndexSet
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s was taken as %v", bad, s)
		}
	}
}

package policies

import (
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// The short way to encode a fact gives the same bytes as the long one, wherever it
// is taken, and is taken for plain facts.
func TestPlainFactsAreEncodedAlike(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, tc := range []struct {
		object, attr string
		value        cty.Value
		plain        bool
	}{
		{"holder", "alive", cty.True, true},
		{"holder", "alive", cty.False, true},
		{"holder", "alive", cty.NullVal(cty.Bool), true},
		{"holder", "alive", cty.UnknownVal(cty.Bool), true},
		{"holder", "alive", cty.UnknownVal(cty.Bool).RefineNotNull(), false},
		{"holder", "alive", cty.StringVal("no"), false},
		{"holder", "alive", cty.NilVal, false},
		{"holder", "alive", cty.DynamicVal, false},
		{"holder", "alive", cty.True.Mark("m"), false},
		{"holder", "host", cty.StringVal("web-1"), true},
		{"holder", "host", cty.StringVal(""), true},
		{"holder", "host", cty.StringVal(`a"b`), false},
		{"holder", "host", cty.StringVal(`a\b`), false},
		{"holder", "host", cty.StringVal("a<b>&"), false},
		{"holder", "host", cty.StringVal("ä\u2028\x1b"), false},
		{"holder", "host", cty.StringVal("\x7f"), false},
		{"holder", "pid", cty.NumberFloatVal(4711), true},
		{"holder", "pid", cty.NumberFloatVal(1e21), true},
		{"holder", "pid", cty.NumberFloatVal(0.1), true},
		{"holder", "pid", cty.NumberFloatVal(-3e-9), true},
		{"holder", "pid", cty.MustParseNumberVal("0.1"), false},
		{"holder", "pid", cty.PositiveInfinity, false},
		{"progress", "age", cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberFloatVal(3), true).NewValue(), false},
		{"progress", "age", cty.UnknownVal(cty.Number), true},
	} {
		for _, text := range []struct {
			source, why string
			plain       bool
		}{{"", "", true}, {"consul kv", "it was not there", true}, {"a\nb", "", false}, {"", "5 > 3", false}} {
			f := Fact{Value: tc.value, Source: text.source, Why: text.why, ObservedAt: now}
			b, plain := encodePlain(f, schema[tc.object][tc.attr].Type)
			if plain != (tc.plain && text.plain) {
				t.Errorf("%s.%s %#v, %q, %q: plain %v", tc.object, tc.attr, tc.value, text.source, text.why, plain)
			}
			if long := encodeAny(tc.object, tc.attr, f, now); plain && string(b) != string(long) {
				t.Errorf("%s.%s %#v: %s, want %s", tc.object, tc.attr, tc.value, b, long)
			}
		}
	}
}

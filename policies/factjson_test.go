package policies

import (
	"encoding/json"
	"math"
	"math/big"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

// drawType draws a type of a fact.
func drawType(t *rapid.T, depth int) cty.Type {
	kinds := []string{"bool", "number", "string"}
	if depth > 0 {
		kinds = append(kinds, "list", "set", "map", "tuple", "object")
	}
	switch rapid.SampledFrom(kinds).Draw(t, "kind") {
	case "bool":
		return cty.Bool
	case "number":
		return cty.Number
	case "list":
		return cty.List(drawType(t, depth-1))
	case "set":
		return cty.Set(drawType(t, depth-1))
	case "map":
		return cty.Map(drawType(t, depth-1))
	case "tuple":
		return cty.Tuple([]cty.Type{drawType(t, depth-1), drawType(t, depth-1)})
	case "object":
		return cty.Object(map[string]cty.Type{"a": drawType(t, depth-1), "b": drawType(t, depth-1)})
	}
	return cty.String
}

func drawNumber(t *rapid.T) cty.Value {
	switch rapid.IntRange(0, 4).Draw(t, "number") {
	case 0:
		return cty.NumberUIntVal(rapid.Uint64().Draw(t, "uint"))
	case 1:
		return cty.NumberIntVal(rapid.Int64().Draw(t, "int"))
	case 2: // more digits than a float64 has
		return cty.NumberVal(new(big.Float).SetPrec(512).Quo(big.NewFloat(rapid.Float64Range(-1e9, 1e9).Draw(t, "over")), big.NewFloat(3)))
	case 3:
		return rapid.SampledFrom([]cty.Value{cty.Zero, cty.NumberFloatVal(math.Copysign(0, -1)), cty.PositiveInfinity, cty.NegativeInfinity,
			cty.MustParseNumberVal("0.1"), cty.NumberFloatVal(5e-324)}).Draw(t, "odd")
	}
	return cty.NumberFloatVal(rapid.Float64Range(-1e12, 1e12).Draw(t, "float"))
}

func drawUnknown(t *rapid.T, ty cty.Type) cty.Value {
	v := cty.UnknownVal(ty)
	if rapid.Bool().Draw(t, "bare") {
		return v
	}
	b := v.Refine()
	if rapid.Bool().Draw(t, "not null") {
		b = b.NotNull()
	}
	switch {
	case ty == cty.Number:
		low := rapid.Float64Range(-1e6, 1e6).Draw(t, "low")
		if rapid.Bool().Draw(t, "has low") {
			b = b.NumberRangeLowerBound(cty.NumberFloatVal(low), rapid.Bool().Draw(t, "inclusive"))
		}
		if rapid.Bool().Draw(t, "has high") {
			b = b.NumberRangeUpperBound(cty.NumberFloatVal(low+rapid.Float64Range(0.5, 1e6).Draw(t, "high")), rapid.Bool().Draw(t, "inclusive"))
		}
	case ty == cty.String:
		b = b.StringPrefix(rapid.StringMatching(`[a-z]{0,9}-`).Draw(t, "prefix"))
	case ty.IsCollectionType():
		n := rapid.IntRange(0, 3).Draw(t, "least")
		b = b.CollectionLengthLowerBound(n)
		if rapid.Bool().Draw(t, "has most") {
			b = b.CollectionLengthUpperBound(n + rapid.IntRange(1, 3).Draw(t, "more"))
		}
	}
	return b.NewValue()
}

func drawValue(t *rapid.T, ty cty.Type) cty.Value {
	switch rapid.IntRange(0, 5).Draw(t, "what") {
	case 0:
		return drawUnknown(t, ty)
	case 1:
		return cty.NullVal(ty)
	}
	var elems []cty.Value
	if ty.IsCollectionType() {
		for range rapid.IntRange(0, 3).Draw(t, "length") {
			elems = append(elems, drawValue(t, ty.ElementType()))
		}
	}
	switch {
	case ty == cty.Bool:
		return cty.BoolVal(rapid.Bool().Draw(t, "bool"))
	case ty == cty.Number:
		return drawNumber(t)
	case ty == cty.String:
		return cty.StringVal(rapid.String().Draw(t, "string"))
	case ty.IsListType() && len(elems) == 0:
		return cty.ListValEmpty(ty.ElementType())
	case ty.IsListType():
		return cty.ListVal(elems)
	case ty.IsSetType() && len(elems) == 0:
		return cty.SetValEmpty(ty.ElementType())
	case ty.IsSetType():
		return cty.SetVal(elems)
	case ty.IsMapType() && len(elems) == 0:
		return cty.MapValEmpty(ty.ElementType())
	case ty.IsMapType():
		m := map[string]cty.Value{}
		for _, e := range elems {
			m[rapid.String().Draw(t, "key")] = e
		}
		return cty.MapVal(m)
	case ty.IsTupleType():
		for _, et := range ty.TupleElementTypes() {
			elems = append(elems, drawValue(t, et))
		}
		return cty.TupleVal(elems)
	}
	attrs := map[string]cty.Value{}
	for name, at := range ty.AttributeTypes() {
		attrs[name] = drawValue(t, at)
	}
	return cty.ObjectVal(attrs)
}

func drawFact(t *rapid.T, ty cty.Type, observed time.Time) Fact {
	f := Fact{Value: drawValue(t, ty), Source: rapid.SampledFrom([]string{"", "consul kv", "clock"}).Draw(t, "source"), ObservedAt: observed}
	if !f.Value.IsKnown() {
		f.Why = rapid.SampledFrom([]string{"", "nobody looked", "the token lacks <session:read>"}).Draw(t, "why")
	}
	if rapid.IntRange(0, 4).Draw(t, "when") == 0 {
		f.ObservedAt = observed.Add(time.Duration(rapid.Int64Range(-1e12, 1e12).Draw(t, "offset")))
	}
	return f
}

func sameFact(a, b Fact) bool {
	return a.Value.Type().Equals(b.Value.Type()) && a.Value.RawEquals(b.Value) && a.Source == b.Source && a.Why == b.Why && a.ObservedAt.Equal(b.ObservedAt)
}

// A fact that was written down is the same when it is read.
func TestFactJSON(t *testing.T) {
	observed := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		f := drawFact(t, drawType(t, 3), observed)
		b := EncodeFact("plugin.x", "y", f, observed)
		got, err := DecodeFact("plugin.x", "y", b, observed)
		if err != nil {
			t.Fatalf("%#v\n%s\n%v", f.Value, b, err)
		}
		if !sameFact(f, got) {
			t.Fatalf("wrote %#v\n%s\nread  %#v", f, b, got)
		}
		if f.Value.Type() == cty.Number && f.Value.IsKnown() && !f.Value.IsNull() && f.Value.AsBigFloat().Prec() != got.Value.AsBigFloat().Prec() &&
			!f.Value.AsBigFloat().IsInf() {
			t.Fatalf("%#v: precision %d became %d", f.Value, f.Value.AsBigFloat().Prec(), got.Value.AsBigFloat().Prec())
		}
	})
}

// The facts of one object too, whatever "*" stands for.
func TestFactsJSON(t *testing.T) {
	observed := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		object := rapid.SampledFrom(objectNames()).Draw(t, "object")
		facts := map[string]Fact{}
		for name, def := range schema[object] {
			switch rapid.IntRange(0, 9).Draw(t, name) {
			case 0, 1:
				facts[name] = drawFact(t, def.Type, observed)
			case 2: // a source that breaks the schema's promise
				facts[name] = drawFact(t, drawType(t, 1), observed)
			case 3: // not there
			case 4, 5:
				facts[name] = UnknownFact(def.Type, "consul kv", observed, "it is gone")
			default:
				facts[name] = Known(cty.NullVal(def.Type), "consul kv", observed)
			}
		}
		if rapid.Bool().Draw(t, "more") {
			facts["not_in_schema"] = drawFact(t, cty.Bool, observed)
		}
		b, err := json.Marshal(EncodeFacts(object, facts, observed))
		if err != nil {
			t.Fatal(err)
		}
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(b, &raw); err != nil {
			t.Fatal(err)
		}
		got := DecodeFacts(object, raw, observed)
		if len(got) != len(facts) {
			t.Fatalf("%d facts became %d\n%s", len(facts), len(got), b)
		}
		for name, f := range facts {
			if !sameFact(f, got[name]) {
				t.Fatalf("%s: wrote %#v, read %#v\n%s", name, f, got[name], b)
			}
		}
	})
}

func TestFactJSONText(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		object, attr string
		fact         Fact
		want         string
	}{
		{"holder", "alive", Known(cty.True, "proc", at), `{"value":true,"source":"proc"}`},
		{"holder", "pid", Known(cty.NumberFloatVal(41), "record", at), `{"value":41,"source":"record"}`},
		{"progress", "age", Known(cty.NullVal(cty.Number), "consul kv", at), `{"value":null,"source":"consul kv"}`},
		{"holder", "alive", UnknownFact(cty.Bool, "proc", at, "hidepid"), `{"known":false,"source":"proc","why":"hidepid"}`},
		{"lock", "held_for", Fact{Value: cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberFloatVal(65), true).NewValue(), Why: "not seen", ObservedAt: at},
			`{"known":false,"range":{"not_null":true,"min":"53:65"},"why":"not seen"}`},
		{"lock", "token", Known(cty.NumberUIntVal(42), "consul kv", at), `{"exact":"64:42","source":"consul kv"}`},
		{"plugin.x", "y", Known(cty.StringVal("a"), "x", at.Add(time.Second)), `{"value":"a","type":"string","source":"x","observed_at":"2026-03-01T12:00:01Z"}`},
	} {
		if got := string(EncodeFact(tc.object, tc.attr, tc.fact, at)); got != tc.want {
			t.Errorf("%s.%s is written as %s, want %s", tc.object, tc.attr, got, tc.want)
		}
	}
}

// What it is given is a file that anybody can have written.
func FuzzDecodeFact(f *testing.F) {
	for _, s := range []string{
		`{"value":true,"source":"proc"}`, `{"known":false,"why":"x","range":{"not_null":true,"min":"53:65","above":true}}`,
		`{"exact":"64:42"}`, `{"exact":"512:0x.8p+999999999"}`, `{"exact":"53:1e999999999"}`, `{"type":["list","number"],"list":[{"value":1},{"known":false}]}`,
		`{"type":["object",{"a":"string"}],"map":{"a":{"value":"b"}}}`, `{"type":["set","string"],"empty":true}`, `{"range":{"min_length":5,"max_length":1},"known":false,"type":["list","bool"]}`,
	} {
		f.Add("progress", "age", []byte(s))
		f.Add("plugin.x", "y", []byte(s))
	}
	f.Fuzz(func(t *testing.T, object, attr string, b []byte) {
		fact, err := DecodeFact(object, attr, b, time.Time{})
		if err != nil {
			return
		}
		again, err := DecodeFact(object, attr, EncodeFact(object, attr, fact, time.Time{}), time.Time{})
		if err != nil || !sameFact(fact, again) {
			t.Fatalf("%s\nread %#v\nthen %#v, %v", b, fact, again, err)
		}
	})
}

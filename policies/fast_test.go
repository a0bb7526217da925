package policies

import (
	"testing"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

// strayFact draws a value of any kind that a source may give.
func strayFact() *rapid.Generator[cty.Value] {
	atLeast := cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberIntVal(5), true).NewValue()
	return rapid.SampledFrom([]cty.Value{
		cty.True, cty.False, cty.NumberIntVal(0), cty.NumberIntVal(7), cty.NumberFloatVal(-0.5),
		cty.StringVal("a"), cty.StringVal("7"), cty.StringVal("true"), cty.EmptyTupleVal, cty.ListVal([]cty.Value{cty.StringVal("a")}),
		cty.NullVal(cty.Bool), cty.NullVal(cty.Number), cty.NullVal(cty.String), cty.NullVal(cty.DynamicPseudoType),
		cty.UnknownVal(cty.Bool), cty.UnknownVal(cty.Number), cty.UnknownVal(cty.String), cty.DynamicVal, atLeast,
		cty.UnknownVal(cty.String).RefineNotNull(), cty.StringVal("a").Mark("m"),
	})
}

// strayExpr draws an expression over the facts plugin.t.a to plugin.t.d, whose types
// nobody promises.
func strayExpr(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 || rapid.IntRange(0, 3).Draw(t, "leaf") == 0 {
			return rapid.SampledFrom([]string{"plugin.t.a", "plugin.t.b", "plugin.t.c", "plugin.t.d", "plugin.t.missing", "true", "null", "7", "0", `"a"`, "plugin.t.a.deep"}).Draw(t, "fact")
		}
		x, y := strayExpr(depth-1), strayExpr(depth-1)
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return "!(" + x.Draw(t, "x") + ")"
		case 1:
			return "-(" + x.Draw(t, "x") + ")"
		case 2:
			return `contains(["a", 7, null], ` + x.Draw(t, "x") + ")"
		case 3:
			return "(" + x.Draw(t, "x") + " ? " + y.Draw(t, "y") + " : " + y.Draw(t, "z") + ")"
		case 4:
			return "max(" + x.Draw(t, "x") + ", " + y.Draw(t, "y") + ")"
		default:
			op := rapid.SampledFrom([]string{"&&", "||", "==", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%"}).Draw(t, "op")
			return "(" + x.Draw(t, "x") + " " + op + " " + y.Draw(t, "y") + ")"
		}
	})
}

// What is evaluated without HCL comes out as HCL has it, errors included.
func TestEvaluatorSaysWhatHCLSays(t *testing.T) {
	valid := 0
	rapid.Check(t, func(t *rapid.T) {
		text := strayExpr(4).Draw(t, "when")
		set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+text+"\n }\n}"))
		if diags.HasErrors() {
			return // type errors that are plain to see are refused
		}
		valid++
		e := set.Policies[0].Hot[0].when
		for range 5 {
			facts := map[string]Fact{}
			for _, n := range []string{"a", "b", "c", "d"} {
				facts[n] = Fact{Value: strayFact().Draw(t, n)}
			}
			s := e.scope(Facts{"plugin.t": facts})
			got, gotDiags := e.value(s.ctx)
			want, wantDiags := (&expr{run: e.hcl.Value}).value(s.ctx)
			if !got.RawEquals(want) || gotDiags.Error() != wantDiags.Error() {
				t.Fatalf("%s over %#v is\n%#v (%s), and HCL says\n%#v (%s)", text, facts, got, gotDiags, want, wantDiags)
			}
		}
	})
	if valid == 0 {
		t.Fatal("no expression was valid")
	}
}

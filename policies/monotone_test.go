package policies

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"
)

// The generators below draw conditions of every shape that the language has:
// operators, conditionals, calls, indexes, splats, for expressions and templates,
// over two bools, two numbers, two strings and a list.

func fact(t *rapid.T, names ...string) string {
	return "plugin.t." + rapid.SampledFrom(names).Draw(t, "fact")
}

func stringGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 {
			return rapid.SampledFrom([]string{`"a"`, `"b"`, `""`, `"1"`, "plugin.t.s0", "plugin.t.s1"}).Draw(t, "string")
		}
		s, b, n := stringGen(depth-1), boolGen(depth-1), numberGen(depth-1)
		switch rapid.IntRange(0, 9).Draw(t, "string of") {
		case 0:
			return `"x${` + s.Draw(t, "part") + `}"`
		case 1:
			return `"${` + n.Draw(t, "part") + `}-"`
		case 2:
			return "(" + b.Draw(t, "c") + " ? " + s.Draw(t, "l") + " : " + s.Draw(t, "r") + ")"
		case 3:
			return "upper(" + s.Draw(t, "x") + ")"
		case 4:
			return "coalesce(" + fact(t, "s0", "s1") + ", " + s.Draw(t, "x") + ")"
		case 5:
			return "plugin.t.l0[" + n.Draw(t, "i") + "]"
		case 6:
			return "try(" + s.Draw(t, "l") + ", " + s.Draw(t, "r") + ")"
		case 7:
			return `join(",", plugin.t.l0)`
		case 8:
			return `"%{ if ` + b.Draw(t, "c") + ` }a%{ else }` + "b%{ endif }\""
		default:
			return stringGen(0).Draw(t, "leaf")
		}
	})
}

func numberGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 {
			return rapid.SampledFrom([]string{"0", "1", "5", "plugin.t.n0", "plugin.t.n1"}).Draw(t, "number")
		}
		n, s, b := numberGen(depth-1), stringGen(depth-1), boolGen(depth-1)
		switch rapid.IntRange(0, 8).Draw(t, "number of") {
		case 0:
			return "(" + n.Draw(t, "l") + rapid.SampledFrom([]string{" + ", " - ", " * ", " / ", " % "}).Draw(t, "op") + n.Draw(t, "r") + ")"
		case 1:
			return "-(" + n.Draw(t, "x") + ")"
		case 2:
			return rapid.SampledFrom([]string{"max", "min"}).Draw(t, "call") + "(" + n.Draw(t, "l") + ", " + n.Draw(t, "r") + ")"
		case 3:
			return "strlen(" + s.Draw(t, "x") + ")"
		case 4:
			return "length(plugin.t.l0)"
		case 5:
			return "coalesce(" + fact(t, "n0", "n1") + ", " + n.Draw(t, "x") + ")"
		case 6:
			return "(" + b.Draw(t, "c") + " ? " + n.Draw(t, "l") + " : " + n.Draw(t, "r") + ")"
		case 7:
			return "length([for x in plugin.t.l0 : x if x == " + stringGen(0).Draw(t, "x") + "])"
		default:
			return numberGen(0).Draw(t, "leaf")
		}
	})
}

func boolGen(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if depth == 0 {
			return fact(t, "b0", "b1")
		}
		b, n, s := boolGen(depth-1), numberGen(depth-1), stringGen(depth-1)
		switch rapid.IntRange(0, 15).Draw(t, "bool of") {
		case 0, 1:
			return "(" + b.Draw(t, "l") + " && " + b.Draw(t, "r") + ")"
		case 2, 3:
			return "(" + b.Draw(t, "l") + " || " + b.Draw(t, "r") + ")"
		case 4, 5:
			return "!(" + b.Draw(t, "x") + ")"
		case 6:
			return "(" + n.Draw(t, "l") + rapid.SampledFrom([]string{" < ", " <= ", " > ", " >= ", " == ", " != "}).Draw(t, "op") + n.Draw(t, "r") + ")"
		case 7:
			return "(" + s.Draw(t, "l") + rapid.SampledFrom([]string{" == ", " != "}).Draw(t, "op") + s.Draw(t, "r") + ")"
		case 8:
			return "(" + fact(t, "b0", "n0", "s0", "l0") + rapid.SampledFrom([]string{" == null", " != null"}).Draw(t, "op") + ")"
		case 9:
			return "(" + b.Draw(t, "c") + " ? " + b.Draw(t, "l") + " : " + b.Draw(t, "r") + ")"
		case 10:
			return "contains([" + s.Draw(t, "a") + ", " + s.Draw(t, "b") + "], " + s.Draw(t, "x") + ")"
		case 11:
			return rapid.SampledFrom([]string{"anytrue", "alltrue"}).Draw(t, "call") + "([" + b.Draw(t, "l") + ", " + b.Draw(t, "r") + "])"
		case 12:
			return "anytrue([for x in plugin.t.l0 : x == " + s.Draw(t, "x") + "])"
		case 13:
			return "can(" + s.Draw(t, "x") + ")"
		case 14:
			return "between(" + n.Draw(t, "x") + ", " + n.Draw(t, "l") + ", " + n.Draw(t, "r") + ")"
		default:
			return "contains(plugin.t.l0[*], " + s.Draw(t, "x") + ")"
		}
	})
}

func drawFacts(t *rapid.T) (full map[string]Fact, null bool) {
	full = map[string]Fact{}
	draw := func(name string, values ...cty.Value) {
		v := rapid.SampledFrom(values).Draw(t, name)
		null = null || v.IsNull()
		full[name] = Fact{Value: v}
	}
	numbers := []cty.Value{cty.Zero, cty.NumberIntVal(1), cty.NumberIntVal(5), cty.NumberFloatVal(0.5), cty.NullVal(cty.Number)}
	words := []cty.Value{cty.StringVal("a"), cty.StringVal("b"), cty.StringVal(""), cty.StringVal("1"), cty.NullVal(cty.String)}
	for _, i := range []string{"0", "1"} {
		draw("b"+i, cty.True, cty.False, cty.NullVal(cty.Bool))
		draw("n"+i, numbers...)
		draw("s"+i, words...)
	}
	draw("l0", cty.ListValEmpty(cty.String), cty.ListVal(words[:1]), cty.ListVal(words[:2]), cty.NullVal(cty.List(cty.String)))
	return full, null
}

// masked hides some of the facts, and of some numbers and lists only a part.
func masked(t *rapid.T, full map[string]Fact) map[string]Fact {
	out := map[string]Fact{}
	for _, name := range sortedKeys(full) {
		f := full[name]
		switch v := f.Value; rapid.IntRange(0, 3).Draw(t, "hide "+name) {
		case 0:
			f = Fact{Value: cty.UnknownVal(v.Type()), Why: "hidden"}
		case 1:
			switch {
			case v.IsNull():
			case v.Type() == cty.Number:
				f = Fact{Value: cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(v, true).NewValue(), Why: "hidden"}
			case v.Type().IsListType() && v.LengthInt() > 0:
				f = Fact{Value: cty.ListVal(append(v.AsValueSlice()[1:], cty.UnknownVal(cty.String))), Why: "hidden"}
				if v.LengthInt() == 2 {
					f.Value = cty.ListVal([]cty.Value{cty.UnknownVal(cty.String), v.AsValueSlice()[1]})
				}
			}
		}
		out[name] = f
	}
	return out
}

// What is said without some facts is not taken back when they are known,
// whatever they turn out to be: a rule that holds goes on holding, and, where
// nothing is null, one that does not hold does not come to hold. So a verdict
// that rests on little never breaks a lock that one which rests on more would
// spare.
func TestNoFactTakesBackAVerdict(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		when := boolGen(3).Draw(t, "when")
		full, null := drawFacts(t)
		hidden := masked(t, full)
		set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+when+"\n }\n}"))
		if diags.HasErrors() {
			t.Skip() // a type error, or a call that can never succeed
		}
		p := set.Policies[0]
		rule := p.Hot[0]
		if _, diags := rule.when.value(rule.when.scope(Facts{"plugin.t": full}).ctx); diags.HasErrors() {
			t.Skip() // such as an index that is not there: what fails is UNKNOWN, or does not hold
		}
		known := p.Judge(Facts{"plugin.t": full}, nil, "h", 0).Results[0]
		less := p.Judge(Facts{"plugin.t": hidden}, nil, "h", 0).Results[0]
		if less.Value == True && known.Value != True || less.Value == False && !null && known.Value == True {
			t.Fatalf("%s is %s over\n%s\nand %s over\n%s\n%s", when, less.Value, show(hidden), known.Value, show(full), known.Why)
		}
		// What the check finds out is so.
		for _, d := range diags {
			if d.Summary == "Condition never holds" && known.Value == True || d.Summary == "Condition always holds" && known.Value == False && !null {
				t.Fatalf("%s is %s over\n%s\nthough: %s", when, known.Value, show(full), d.Detail)
			}
		}
	})
}

func show(facts map[string]Fact) string {
	var b strings.Builder
	for _, name := range sortedKeys(facts) {
		fmt.Fprintf(&b, "%s = %#v\n", name, facts[name].Value)
	}
	return b.String()
}

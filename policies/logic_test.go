package policies

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// truths are the operands of the truth tables, as facts of a plugin, so that
// nothing is constant.
var truths = Facts{"plugin.t": {
	"T": {Value: cty.True},
	"F": {Value: cty.False},
	"U": {Value: cty.UnknownVal(cty.Bool), Why: "no answer"},
	"N": {Value: cty.NullVal(cty.Bool)},

	"n0":   {Value: cty.NumberIntVal(0)},
	"n1":   {Value: cty.NumberIntVal(1)},
	"n2":   {Value: cty.NumberIntVal(2)},
	"nU":   {Value: cty.UnknownVal(cty.Number)},
	"nN":   {Value: cty.NullVal(cty.Number)},
	"ge65": {Value: atLeast(65)},
	"gt65": {Value: cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberIntVal(65), false).NewValue()},
	"le65": {Value: cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeUpperBound(cty.NumberIntVal(65), true).NewValue()},

	"a":  {Value: cty.StringVal("a")},
	"b":  {Value: cty.StringVal("b")},
	"sU": {Value: cty.UnknownVal(cty.String)},
	"sN": {Value: cty.NullVal(cty.String)},
	"sX": {Value: cty.UnknownVal(cty.String).RefineNotNull()},

	"lU": {Value: cty.UnknownVal(cty.List(cty.String))},
	"lN": {Value: cty.NullVal(cty.List(cty.String))},
	"l":  {Value: cty.ListVal([]cty.Value{cty.StringVal("a")})},
}}

func atLeast(n int64) cty.Value {
	return cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberIntVal(n), true).NewValue()
}

// compileText compiles an expression in which a single word stands for the
// fact plugin.t.<word>.
func compileText(t *testing.T, text string) *expr {
	t.Helper()
	full := writeOut(text)
	e, diags := hclsyntax.ParseExpression([]byte(full), "test", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatalf("%s: %s", full, diags)
	}
	if _, diags := newChecker(nil).check(e, false); diags.HasErrors() {
		t.Fatalf("%s: %s", full, diags)
	}
	return (&compiler{refs: map[string]*factRef{}}).compile(e)
}

// writeOut writes the words of truths out.
func writeOut(text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" ()!,?:[]-{}$\"", r) })
	done := map[string]bool{}
	for _, w := range words {
		if _, ok := truths["plugin.t"][w]; ok && !done[w] {
			done[w] = true
			text = replaceWord(text, w, "plugin.t."+w)
		}
	}
	return text
}

func replaceWord(s, word, by string) string {
	var b strings.Builder
	isWord := func(i int) bool {
		return i >= 0 && i < len(s) && (s[i] == '.' || s[i] == '"' || s[i] >= '0' && s[i] <= '9' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z')
	}
	for i := 0; i < len(s); {
		if strings.HasPrefix(s[i:], word) && !isWord(i-1) && !isWord(i+len(word)) {
			b.WriteString(by)
			i += len(word)
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}

func evalText(t *testing.T, text string) Tri {
	t.Helper()
	e := compileText(t, text)
	got, _ := e.eval(e.scope(truths))
	return got
}

// TestTruthTables writes every table out, and reads each cell through HCL. N at
// the top is false, so that it is told apart from false by its negation: !N
// does not hold either.
func TestTruthTables(t *testing.T) {
	letters := "TFUN"
	tables := map[string][4]string{
		//       T F U N  on the right
		"&&": {
			"TFUN", // T on the left
			"FFFF",
			"UFUN",
			"NFNN",
		},
		"||": {
			"TTTT",
			"TFUN",
			"TUUU",
			"TNUN",
		},
	}
	for op, rows := range tables {
		for i, row := range rows {
			for j := range row {
				l, r := string(letters[i]), string(letters[j])
				cell(t, fmt.Sprintf("%s %s %s", l, op, r), row[j])
			}
		}
	}
	for i, want := range []byte("FTUN") {
		cell(t, "!"+string(letters[i]), want)
	}
}

func cell(t *testing.T, text string, want byte) {
	t.Helper()
	plain := map[byte]Tri{'T': True, 'F': False, 'U': Unknown, 'N': False}[want]
	negated := map[byte]Tri{'T': False, 'F': True, 'U': Unknown, 'N': False}[want]
	if got := evalText(t, text); got != plain {
		t.Errorf("%s is %s, want %c", text, got, want)
	}
	if got := evalText(t, "!("+text+")"); got != negated {
		t.Errorf("!(%s) is %s, want the negation of %c", text, got, want)
	}
}

func TestThreeValuedExpressions(t *testing.T) {
	for text, want := range map[string]Tri{
		// Short cuts, in both orders and nested.
		"U && F":                              False,
		"F && U":                              False,
		"U || T":                              True,
		"T || U":                              True,
		"(U && F) || T":                       True,
		"(U || T) && U":                       Unknown,
		"nU > 5 && F":                         False,
		"F && nU > 5":                         False,
		"nU > 5 || T":                         True,
		"!(nU > 5) && F":                      False,
		"U && U":                              Unknown,
		"U || U":                              Unknown,
		"(U && T) || (F && U)":                Unknown,
		"tonumber(a) > 1 && F":                False,
		"F && tonumber(a) > 1":                False,
		"tonumber(a) > 1 || T":                True,
		"T || tonumber(a) > 1":                True,
		"tonumber(a) > 1 || U":                Unknown,
		"U || tonumber(a) > 1":                Unknown,
		"tonumber(a) > 1":                     Unknown,
		"tonumber(a) > 1 || F":                Unknown,
		"n1 / n0 > 5":                         Unknown,
		"n1 % n0 > 5":                         Unknown,
		"n0 / n0 > 5":                         Unknown,
		"nN / n0 > 5":                         False,
		"n1 / n2 == 0.5":                      True,
		"n1 % 2 == 1":                         True,
		"-n1 < 0":                             True,
		"nN + 1 > 0":                          False,
		"!(nN + 1 > 0)":                       False,
		"-nN < 0":                             False,
		"!(-nN < 0)":                          False,
		"nU + 1 > 0":                          Unknown,
		"n1 < n2":                             True,
		"n2 <= n2":                            True,
		"n1 >= n2":                            False,
		"n2 != n2":                            False,
		"nU == 1":                             Unknown,
		"nU != 1":                             Unknown,
		"nN == 1":                             False,
		"nN != 1":                             False,
		"!(nN == 1)":                          False,
		"1 != nN":                             False,
		"sN != \"running\"":                   False,
		"sN == sN":                            False,
		"sU == sN":                            False,
		"sN != null":                          False,
		"sN == null":                          True,
		"null == sN":                          True,
		"a != null":                           True,
		"null != a":                           True,
		"(a) != (null)":                       True,
		"sU != null":                          Unknown,
		"sX != null":                          True,
		"ge65 == null":                        False,
		"anytrue([F, U, T])":                  True,
		"anytrue([F, U])":                     Unknown,
		"anytrue([F, N])":                     False,
		"anytrue([])":                         False,
		"alltrue([T, U])":                     Unknown,
		"alltrue([T, U, F])":                  False,
		"alltrue([T, N])":                     False,
		"!alltrue([T, N])":                    False,
		"alltrue([])":                         True,
		"anytrue(lN)":                         False,
		"anytrue([for x in l : x == a])":      True,
		"T ? T : F":                           True,
		"F ? T : F":                           False,
		"U ? T : F":                           Unknown,
		"N ? T : F":                           False,
		"!(N ? T : F)":                        False,
		"(N ? T : F) || T":                    True,
		"(N ? a : b) == null":                 True,
		"length([for x in lN : x]) == 0":      False,
		"!(length([for x in lN : x]) == 0)":   False,
		"N ? T : T":                           False,
		"T ? U : T":                           Unknown,
		"F ? U : T":                           True,
		"T ? N : T":                           False,
		"contains([\"a\"], a)":                True,
		"contains([\"a\"], b)":                False,
		"contains([\"a\"], sU)":               Unknown,
		"contains([\"a\"], sN)":               False,
		"!contains([\"a\"], sN)":              False,
		"contains([], sU)":                    Unknown,
		"contains([sU, \"a\"], a)":            True,
		"contains([sU, \"b\"], a)":            Unknown,
		"contains(l, a)":                      True,
		"contains(lU, a)":                     Unknown,
		"contains(lN, a)":                     False,
		"!contains(lN, a)":                    False,
		"contains([sN, \"a\"], a)":            True,
		"length(lN) == 0":                     False,
		"length(lU) >= 0":                     Unknown,
		"length(l) == 1":                      True,
		"lower(sN) == \"a\"":                  False,
		"lower(sN) != \"a\"":                  False,
		"upper(a) == \"A\"":                   True,
		"startswith(a, \"a\")":                True,
		"startswith(sN, \"a\")":               False,
		"!startswith(sN, \"a\")":              False,
		"startswith(sU, \"a\")":               Unknown,
		"endswith(b, \"a\")":                  False,
		"coalesce(nN, 7) > 5":                 True,
		"coalesce(nU, 7) > 5":                 Unknown,
		"coalesce(N, T)":                      True,
		"try(tonumber(a), 7) > 5":             True,
		"can(tonumber(a))":                    False,
		"min(nN, 1) < 5":                      False,
		"max(n1, n2) == 2":                    True,
		"format(\"%s-%d\", a, n1) == \"a-1\"": True,
		"format(\"%s\", sN) == \"\"":          False,
		"join(\",\", [a, b]) == \"a,b\"":      True,
		"between(n1, 22, 6)":                  True,
		"between(n2, 3, 6)":                   False,
		"between(nU, 3, 6)":                   Unknown,
		"between(nN, 3, 6)":                   False,
		"!between(nN, 3, 6)":                  False,
		"duration(\"1h30m\") == 5400":         True,
		"duration(\"2d\") == 172800":          True,
		"duration(\"1.5s\") == 1.5":           True,
		"duration(sN) == 1":                   False,
		"length([for x in l : x if x == a]) == 1": True,
		"l[0] == a":               True,
		"lN[0] == a":              False,
		"l[5] == a":               Unknown,
		"{ (a) = 1 }[\"a\"] == 1": True,
		"length(l[*]) == 1":       True,
		"sU == a && N":            False,
		"N || sU == a":            Unknown,
		"sU == a || N":            Unknown,
		"\"x${a}\" == \"xa\"":     True,
		"\"x${sU}\" == \"xa\"":    Unknown,
	} {
		if got := evalText(t, text); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// A number that is only known to be within bounds decides where the bounds do.
func TestRefinedUnknowns(t *testing.T) {
	for text, want := range map[string]Tri{
		"ge65 < 60": False, "60 > ge65": False,
		"ge65 < 65": False, "ge65 <= 65": Unknown,
		"ge65 > 65": Unknown, "ge65 >= 65": True,
		"ge65 > 64": True, "64 < ge65": True,
		"ge65 < 70": Unknown, "ge65 >= 70": Unknown,
		"gt65 > 65": True, "gt65 <= 65": False, "gt65 >= 66": Unknown,
		"le65 < 66": True, "le65 <= 65": True, "le65 < 65": Unknown, "le65 > 65": False,
		"le65 <= ge65": True, "le65 < gt65": True, "le65 < ge65": Unknown, "ge65 < le65": False,
		"gt65 > le65": True, "ge65 == 60": False, "ge65 == 70": Unknown, "ge65 != 60": True,
		"ge65 < nN": False, "!(ge65 < nN)": False,
		"ge65 < 60 || T": True, "!(ge65 < 60)": True,
	} {
		if got := evalText(t, text); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// The tables above hold whatever HCL's own operators do with nulls. This says
// where they differ, so that a change there is noticed.
func TestWhyHCLsOperatorsAreNotEnough(t *testing.T) {
	e, diags := hclsyntax.ParseExpression([]byte(`x != "running"`), "test", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	v, diags := e.Value(&hcl.EvalContext{Variables: map[string]cty.Value{"x": cty.NullVal(cty.String)}})
	if diags.HasErrors() || !v.True() {
		t.Fatalf("HCL no longer holds null != %q for true, but gives %#v: %v", "running", v, diags)
	}
}

func TestUnknownSaysWhy(t *testing.T) {
	e := compileText(t, "U && T")
	_, why := e.eval(e.scope(truths))
	if want := "plugin.t.U is unknown: no answer"; why != want {
		t.Errorf("why is %q, want %q", why, want)
	}
	e = compileText(t, "tonumber(a) > 1")
	_, why = e.eval(e.scope(truths))
	if !strings.Contains(why, "tonumber") && !strings.Contains(why, "number") {
		t.Errorf("why is %q and does not say what failed", why)
	}
}

package policies

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/zclconf/go-cty/cty"
)

// The facts are public interface: docs/policies.md lists each one as it is.
func TestDocsListEveryFact(t *testing.T) {
	doc, err := os.ReadFile("../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	for object, facts := range Schema() {
		for name, def := range facts {
			row := fmt.Sprintf("| `%s.%s` | %s | %s", object, name, def.Type.FriendlyName(), def.Doc)
			if def.Values != nil {
				row += ": " + strings.Join(def.Values, ", ")
			}
			if row += " |"; !strings.Contains(string(doc), row) {
				t.Errorf("docs/policies.md lacks the line\n%s", row)
			}
		}
	}
}

// Every function says what it is for, and the documentation names those that
// are not HCL's own.
func TestFunctions(t *testing.T) {
	for name, f := range functions {
		if f.Description() == "" && name != "try" && name != "can" {
			t.Errorf("function %s has no description", name)
		}
	}
}

// An age is a number, and only a string has words.
func TestSchemaIsSound(t *testing.T) {
	s := Schema()
	for object, facts := range s {
		for name, def := range facts {
			if def.Age && def.Type != cty.Number || def.Values != nil && def.Type != cty.String || def.Doc == "" {
				t.Errorf("%s.%s: %+v", object, name, def)
			}
		}
	}
	s["holder"]["alive"] = FactDef{}
	if Schema()["holder"]["alive"].Type != cty.Bool {
		t.Error("a caller can change the schema")
	}
}

func TestFactsThatAreNotWhatTheySay(t *testing.T) {
	set, diags := Parse("p.hcl", []byte("policy \"p\" {\n  locks = [\"**\"]\n  hot \"r\" {\n    when = holder.pid > 5\n  }\n}\n"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	huge, err := cty.ParseNumberVal("1e100000")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fact Fact
		want Tri
		why  string
	}{
		"a number":           {Fact{Value: cty.NumberIntVal(6)}, True, ""},
		"text of a number":   {Fact{Value: cty.StringVal("6")}, True, ""},
		"text":               {Fact{Value: cty.StringVal("six")}, Unknown, "the source gave a string where a number belongs"},
		"an object":          {Fact{Value: cty.EmptyObjectVal}, Unknown, "the source gave a object where a number belongs"},
		"no value":           {Fact{}, Unknown, NotObserved},
		"no value, but why":  {Fact{Why: "permission denied"}, Unknown, "permission denied"},
		"dynamic":            {Fact{Value: cty.DynamicVal, Why: "no answer"}, Unknown, "no answer"},
		"unknown, no reason": {Fact{Value: cty.UnknownVal(cty.Number)}, Unknown, NotObserved},
		"null of any type":   {Fact{Value: cty.NullVal(cty.DynamicPseudoType)}, False, ""},
		"marked":             {Fact{Value: cty.NumberIntVal(6).Mark("x")}, True, ""},
		"huge":               {Fact{Value: huge}, Unknown, "the source gave a number out of all range"},
		"infinite":           {Fact{Value: cty.PositiveInfinity}, Unknown, "the source gave a number out of all range"},
		"escape codes":       {Fact{Why: "\x1b[2J"}, Unknown, "?[2J"},
	} {
		j := set.Policies[0].Judge(Facts{"holder": {"pid": c.fact}}, nil, "", 0)
		if got := j.Results[0]; got.Value != c.want || !strings.HasSuffix(got.Why, c.why) || (c.why == "") != (got.Why == "") {
			t.Errorf("%s: %s %q, want %s %q", name, got.Value, got.Why, c.want, c.why)
		}
	}
}

func TestEvidence(t *testing.T) {
	f := Facts{
		"holder":   {"pid": {Value: cty.NumberIntVal(41), Source: "kv"}, "host": {Value: cty.NullVal(cty.String), Source: "kv"}},
		"progress": {"age": {Value: atLeast(65), Why: "watched for 65 s", Source: "memory"}},
		"file": {"kept_by": {Value: cty.ListVal([]cty.Value{cty.ObjectVal(map[string]cty.Value{
			"pid": cty.NumberIntVal(7), "command": cty.StringVal("<x>"), "how": cty.UnknownVal(cty.String)})})}},
		"plugin.disk": {"full": {Value: cty.True, Source: "plugin"}},
	}
	var got []string
	for _, e := range EvidenceOf(f, []string{"holder.pid", "holder.host", "progress.age", "file.kept_by", "plugin.disk.full", "check.status", "odd"}) {
		got = append(got, fmt.Sprintf("%s %s %t %q %q", e.Fact, e.Value, e.Known, e.Why, e.Source))
	}
	want := []string{
		`holder.pid 41 true "" "kv"`,
		`holder.host null true "" "kv"`,
		`progress.age null false "watched for 65 s" "memory"`,
		`file.kept_by [{"command":"\u003cx\u003e","how":null,"pid":7}] true "" ""`,
		`plugin.disk.full true true "" "plugin"`,
		`check.status null false "not observed" ""`,
		`odd null false "not observed" ""`,
	}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
	if v := ValueJSON(cty.NilVal); string(v) != "null" {
		t.Errorf("no value is %s", v)
	}
	if v := ValueJSON(cty.PositiveInfinity); string(v) != "null" {
		t.Errorf("infinity is %s", v)
	}
}

func TestJudgementTellsWhetherTimeCanChangeIt(t *testing.T) {
	set, diags := Parse("p.hcl", []byte(`
policy "still" {
  locks = ["still"]
  hot "r" {
    when = holder.alive == false
  }
}
policy "ages" {
  locks = ["ages"]
  hot "r" {
    when = progress.age > 5
  }
}
`))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	still, ages := set.Policies[0].Judge(nil, nil, "", 0), set.Policies[1].Judge(nil, nil, "", 0)
	if still.Ages() || !ages.Ages() {
		t.Errorf("still ages: %t, ages ages: %t", still.Ages(), ages.Ages())
	}
	if got := strings.Join(ages.Used(), " "); got != "progress.age" {
		t.Errorf("used is %q", got)
	}
	var none *Policy
	if j := none.Judge(nil, nil, "", 0); j.State != StateHeld || j.Rule != nil {
		t.Errorf("a lock without a policy is %+v", j)
	}
	var noSet *Set
	if noSet.For(LockID{Name: "x"}) != nil {
		t.Error("no set has a policy")
	}
}

// One policy judges many locks at once. The race detector looks at this one.
func TestConcurrentJudgements(t *testing.T) {
	set, diags := Parse("p.hcl", []byte(`
policy "p" {
  locks = ["**"]
  hot "r" {
    when   = contains(file.kept_by[*].pid, holder.pid) && length([for k in file.kept_by : k if k.pid > 5]) == 1
    reason = "kept by ${holder.pid}"
  }
}
`))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			pid := cty.NumberIntVal(int64(i + 6))
			kept := cty.ListVal([]cty.Value{cty.ObjectVal(map[string]cty.Value{"pid": pid, "command": cty.StringVal("x"), "how": cty.StringVal("opened")})})
			var m Memory
			for range 50 {
				j := set.Policies[0].Judge(Facts{"file": {"kept_by": {Value: kept}}, "holder": {"pid": {Value: pid}}}, &m, "h", 0)
				if want := fmt.Sprintf("kept by %d", i+6); j.State != StateHot || j.Result.Reason != want {
					t.Errorf("%s %+v, want %q", j.State, j.Result, want)
					return
				}
			}
		})
	}
	wg.Wait()
}

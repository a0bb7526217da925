package policies

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// No fact and no condition make judging slow or large: what would is unknown,
// and says why.
func TestHostileEvaluation(t *testing.T) {
	long := strings.Repeat("a", 7000)
	elements := make([]cty.Value, 9000)
	for i := range elements {
		elements[i] = cty.StringVal("x")
	}
	facts := Facts{"plugin.t": {
		"long":  {Value: cty.StringVal(long)},
		"huge":  {Value: cty.StringVal(strings.Repeat("a", 1<<20))},
		"many":  {Value: cty.ListVal(elements)},
		"few":   {Value: cty.ListVal(elements[:3])},
		"mixed": {Value: cty.ListVal([]cty.Value{cty.StringVal("b"), cty.StringVal(long)})},
	}}
	double := func(s string, n int) string { return strings.Repeat("${"+s+"}", n) }
	for name, c := range map[string]struct {
		when string
		want Tri
		why  string
	}{
		"a template for each element":   {`length([for x in plugin.t.many : "` + double("plugin.t.long", 500) + `"]) > 0`, Unknown, "4 MiB of text"},
		"a template for each character": {`length([for x in split("", plugin.t.long) : "` + double("plugin.t.long", 100) + `"]) > 0`, Unknown, "4 MiB of text"},
		"a template for":                {`"%{ for x in plugin.t.many }` + double("plugin.t.long", 100) + `%{ endfor }" == ""`, Unknown, "4 MiB of text"},
		"an object for each element":    {`length({for i, x in plugin.t.many : i => "` + double("plugin.t.long", 100) + `"}) > 0`, Unknown, "4 MiB of text"},
		"a key for each element":        {`length({for i, x in plugin.t.many : "${i}` + double("plugin.t.long", 100) + `" => x}) > 0`, Unknown, "4 MiB of text"},
		"a condition for each element":  {`length([for x in plugin.t.many : x if "` + double("plugin.t.long", 100) + `" == x]) > 0`, Unknown, "4 MiB of text"},
		"a function for each element":   {`length([for x in plugin.t.many : replace(plugin.t.long, "a", "b")]) > 0`, Unknown, "4 MiB of text"},
		"a regex for each element":      {`length([for x in plugin.t.many : regexall("(a|b)*c", plugin.t.long)]) > 0`, Unknown, "4 MiB of text"},
		"tries for each element":        {`length([for x in plugin.t.many : try("` + double("plugin.t.long", 100) + `", "x")]) > 0`, Unknown, "4 MiB of text"},
		"too many elements":             {`length([for x in concat(plugin.t.many, plugin.t.many) : x]) > 0`, Unknown, "10000 elements at most"},
		"a huge fact":                   {`plugin.t.huge == "a"`, Unknown, "more than 64 KiB"},
		"a huge fact in a function":     {`length(regexall("a", plugin.t.huge)) > 5`, Unknown, "more than 64 KiB"},
		"what is modest":                {`length([for x in plugin.t.few : "${x}-${plugin.t.long}"]) == 3`, True, ""},
		"many small ones":               {`length([for x in plugin.t.many : upper(x) if x != "y"]) == 9000`, True, ""},
		"a regex that would backtrack":  {`length(regexall("(a+)+$", plugin.t.long)) == 1`, True, ""},
		"a pattern that is a fact":      {`length(regexall(plugin.t.long, plugin.t.long)) == 1`, Unknown, "the pattern is too large"},
		"growth by a function":          {`strlen(join(plugin.t.long, plugin.t.many)) > 5`, Unknown, "longer than"},
		"a wide format":                 {`format("%999999d", length(plugin.t.few)) == ""`, Unknown, "width"},
		"a wide format with zeros":      {`format("%09999d", length(plugin.t.few)) == ""`, Unknown, "width"},
		"a format with zeros":           {`strlen(format("%0200d", length(plugin.t.few))) == 200`, True, ""},
	} {
		t.Run(name, func(t *testing.T) {
			set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n  when = "+c.when+"\n }\n}"))
			if c.want == Unknown && diags.HasErrors() {
				if !strings.Contains(diags.Error(), c.why) {
					t.Fatalf("refused with %s, want %q", diags, c.why)
				}
				return
			}
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := cpuTime(t)
			res := set.Policies[0].Judge(facts, nil, "h", 0).Results[0]
			took := cpuTime(t) - start
			runtime.ReadMemStats(&after)
			if res.Value != c.want || !strings.Contains(res.Why, c.why) {
				t.Errorf("got %s: %q, want %s: %q", res.Value, clip(res.Why, 300), c.want, c.why)
			}
			// Generous bounds, for the race detector.
			if mem := (after.TotalAlloc - before.TotalAlloc) >> 20; mem > 300 || took > 10*time.Second {
				t.Errorf("it took %s and %d MiB", took, mem)
			}
		})
	}
}

// The same of what is evaluated when the file is read.
func TestHostileConstants(t *testing.T) {
	const a = "  a = \"%s\"\n"
	base := "policy \"p\" {\n locks = [\"**\"]\n}\n"
	for name, c := range map[string]struct{ locals, want string }{
		"a template for each character": {fmt.Sprintf(a, strings.Repeat("x", 4000)) +
			"  b = length([for x in split(\"\", local.a) : \"" + strings.Repeat("${local.a}", 900) + "\"])\n", "4 MiB of text"},
		"a pattern":            {`  a = length(regexall("` + strings.Repeat(".{1000}", 50) + `", "x"))` + "\n", "the pattern is too large"},
		"a nest of tries":      {"  a = " + strings.Repeat("try(", 60) + "tonumber(\"x\")" + strings.Repeat(")", 60) + "\n", "none of the expressions"},
		"a nest of conditions": {"  a = " + strings.Repeat("(", 60) + "true" + strings.Repeat(" ? true : false)", 60) + " ? 1 : tonumber(\"x\")\n  c = tonumber(\"y\")\n", "cannot convert"},
		"a nest of repeats":    {`  a = length(regexall("((.{100}){100}){100}", "x"))` + "\n", "invalid repeat count"},
	} {
		start := cpuTime(t)
		_, diags := Parse("p.hcl", []byte("locals {\n"+c.locals+"}\n"+base))
		if !diags.HasErrors() || !strings.Contains(diags.Error(), c.want) {
			t.Errorf("%s: got %s, want %q", name, clip(diags.Error(), 500), c.want)
		}
		if took := cpuTime(t) - start; took > 10*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
}

package policies

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zclconf/go-cty/cty"
)

// FuzzParse: no input makes the parser, the check or a verdict panic or run
// away, and what was refused has no policies.
func FuzzParse(f *testing.F) {
	for _, name := range BuiltinNames() {
		src, err := BuiltinSource(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	scripts, err := filepath.Glob("testdata/check/*")
	if err != nil || len(scripts) == 0 {
		f.Fatalf("no scripts: %v", err)
	}
	for _, s := range scripts {
		b, err := os.ReadFile(s)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range strings.Split(string(b), "\n----\n") {
			if i := strings.LastIndex(part, "\n\n"); i >= 0 {
				part = part[i+2:]
			}
			if cmd, input, ok := strings.Cut(part, "\n"); ok {
				if cmd == "when" {
					input = "policy \"p\" {\n locks = [\"**\"]\n hot \"r\" {\n when = " + input + "\n}\n}"
				}
				f.Add([]byte(input))
			}
		}
	}
	some := Facts{}
	for object, facts := range Schema() {
		some[object] = map[string]Fact{}
		for name, def := range facts {
			switch def.Type {
			case cty.String:
				some[object][name] = Fact{Value: cty.StringVal("x\x1b")}
			case cty.Number:
				some[object][name] = Fact{Value: cty.NumberIntVal(0)}
			case cty.Bool:
				some[object][name] = Fact{Value: cty.True}
			default:
				some[object][name] = Fact{Value: cty.NullVal(def.Type)}
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		start := time.Now()
		set, diags := Parse("fuzz.hcl", src)
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("%d bytes took %s", len(src), took)
		}
		var out bytes.Buffer
		WriteDiagnostics(&out, set.Files, diags, 78, false)
		for _, r := range out.String() {
			if r < 0x20 && r != '\n' && r != '\t' && r != '\r' || r == 0x9b {
				t.Fatalf("the diagnostics hold the control character %U", r)
			}
		}
		_ = DiagnosticsJSON(set.Files, diags)
		if diags.HasErrors() {
			if len(set.Policies) != 0 {
				t.Fatal("a refused set has policies")
			}
			return
		}
		if again, d := Parse("other.hcl", src); d.HasErrors() || again.Hash != set.Hash {
			t.Fatalf("the hash of the same text is %s, then %s", set.Hash, again.Hash)
		}
		var m Memory
		for _, p := range set.Policies {
			for _, facts := range []Facts{nil, some} {
				for at := range 2 {
					j := p.Judge(facts, &m, "h", time.Duration(at)*time.Hour)
					if j.State != StateHeld && j.Rule == nil {
						t.Fatalf("%s by no rule", j.State)
					}
				}
				if p.Break == nil {
					continue
				}
				p.Break.Frozen(facts)
				for _, s := range p.Break.Steps {
					s.Applies(facts)
					if s.Kind == StepExec {
						_, _ = s.Command(facts)
					}
				}
			}
		}
		set.RunTests(nil)
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"1s", "2d", "1d1h", "", "d", "-1s", "1e9h", "9999999999999999999d", "1.5h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err == nil && (d < 0 || d > maxDuration) {
			t.Fatalf("%q is %s", s, d)
		}
	})
}

// FuzzJudge: no condition over no facts makes judging panic or run away, and a
// verdict says why it is unknown.
func FuzzJudge(f *testing.F) {
	for _, when := range []string{
		`holder.alive == false && progress.age > 60`, `contains(["a"], node.name) || anytrue([for k in file.kept_by : k.pid == 1])`,
		`in_window("0 2 * * *", "4h", "Europe/Berlin")`, `try(tonumber(check.output), 0) > 1 ? holder.local : can(node.name)`,
		`"${node.name}%{ for x in split(",", check.output) }${x}%{ endfor }" == "a"`, `length(regexall("(a+)+", check.output)) > 1`,
		`jsondecode(check.output).a[0] == plugin.p.x`, `file.kept_by[*].pid == [1]`, `coalesce(progress.rate, 1) / progress.done % 3 < 2`,
	} {
		f.Add(when, "a", 3.5, byte(0b00011011))
		f.Add(when, `{"a":[1]}`, -1e300, byte(0b11100100))
	}
	f.Fuzz(func(t *testing.T, when, word string, number float64, kinds byte) {
		set, diags := Parse("fuzz.hcl", []byte("policy \"p\" {\n locks = [\"**\"]\n file = \"/x\"\n hot \"r\" {\n when = "+when+"\n reason = \"${check.output} ${progress.age}\"\n}\n}"))
		if diags.HasErrors() || math.IsNaN(number) {
			return
		}
		facts := Facts{}
		i := 0
		for _, object := range objectNames() {
			facts[object] = map[string]Fact{}
			for _, name := range factNames(object) {
				typ := schema[object][name].Type
				v := cty.UnknownVal(typ)
				switch kinds >> (2 * (i % 4)) & 3 {
				case 0:
					v = cty.NullVal(typ)
				case 1, 2:
					switch typ {
					case cty.String:
						v = cty.StringVal(word)
					case cty.Number:
						v = cty.NumberFloatVal(number)
					case cty.Bool:
						v = cty.BoolVal(number > 0)
					}
				}
				facts[object][name] = Fact{Value: v}
				i++
			}
		}
		for _, p := range set.Policies {
			start := time.Now()
			j := p.Judge(facts, nil, "h", 0)
			if took := time.Since(start); took > 10*time.Second {
				t.Fatalf("judging took %s", took)
			}
			for _, r := range j.Results {
				if r.Value == Unknown && r.Why == "" || len(r.Reason) > 2*maxReason {
					t.Fatalf("%s: why %q, a reason of %d bytes", r.Value, r.Why, len(r.Reason))
				}
			}
			if d, ok := p.Steady(facts, &j, time.Unix(0, 0)); ok && d <= 0 {
				t.Fatalf("steady for %s", d)
			}
		}
	})
}

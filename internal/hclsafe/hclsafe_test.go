package hclsafe_test

import (
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/aim-control/aimlock/internal/hclsafe"
)

// Fifty times as many of each end the process when they are handed to HCL's own
// parser, or evaluator: the stack outgrows Go's limit.
func TestTooDeep(t *testing.T) {
	t.Parallel()
	const n = 20_000
	for name, src := range map[string]string{
		"parentheses": "a = " + strings.Repeat("(", n), "lists": "a = " + strings.Repeat("[", n), "objects": "a = " + strings.Repeat("{a=", n),
		"blocks": strings.Repeat("a {\n", n), "quotes": "a = " + strings.Repeat("\"${", n), "signs": "a = " + strings.Repeat("-", n) + "1\n",
		"negations": "a = " + strings.Repeat("!", n) + "true\n", "choices": "a = " + strings.Repeat("true ? 1 : ", n) + "1\n",
		"a sum": "a = 1" + strings.Repeat(" + 1", n) + "\n", "steps": "a = b" + strings.Repeat(".c", n) + "\n", "indexes": "a = b" + strings.Repeat("[0]", n) + "\n",
		// 64 levels of some thousand operators each: no level is too long by itself.
		"both": "a = " + strings.Repeat(strings.Repeat("-", 8000)+"[", 60),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, diags := hclsafe.ParseConfig([]byte(src), "f.hcl")
			if file != nil || len(diags) != 1 || diags[0].Subject == nil || !strings.HasPrefix(diags[0].Summary, "Nested") && !strings.HasPrefix(diags[0].Summary, "Expression") {
				t.Fatalf("%v", diags)
			}
		})
	}
	for name, src := range map[string]string{"directives": "%{ if true }", "loops": "%{ for a in b }\n", "insertions": "${\"", "trimmed": "%{~ if true ~}"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if e, diags := hclsafe.ParseTemplate([]byte(strings.Repeat(src, n)), "f.tpl"); e != nil || len(diags) != 1 {
				t.Fatalf("%v", diags)
			}
		})
	}
	if e, diags := hclsafe.ParseExpression([]byte(strings.Repeat("(", n)), "f", hcl.InitialPos); e != nil || len(diags) != 1 {
		t.Fatalf("%v", diags)
	}
}

// A number that is made a text has all of its digits.
func TestHugeNumber(t *testing.T) {
	t.Parallel()
	if _, diags := hclsafe.ParseConfig([]byte("a = 1e999999999\n"), "f.hcl"); len(diags) != 1 || diags[0].Summary != "Number too large" {
		t.Errorf("%v", diags)
	}
	if _, diags := hclsafe.ParseConfig([]byte("a = [1e300, \"1e12345\", 0.1E-5]\n"), "f.hcl"); diags.HasErrors() {
		t.Errorf("%v", diags)
	}
}

// What people write is long, and not deep.
func TestLongIsNotDeep(t *testing.T) {
	t.Parallel()
	const n = 3_000
	for name, src := range map[string]string{
		"a list": "a = [\n" + strings.Repeat("\"node-1.example\", -1,\n", n) + "]\n", "arguments": strings.Repeat("a = b.c + 1 # one\n", n), "a call": "a = f(" + strings.Repeat("x.y, ", n) + "1)\n",
		"an object": "a = {\n" + strings.Repeat("k = x.y\n", n) + "}\n", "blocks": strings.Repeat("a {\n b = -c.d\n}\n", n), "a document": "a = <<E\n" + strings.Repeat("${b.c}-+!\n", n) + "E\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diags := hclsafe.Check(lex(src)); diags.HasErrors() {
				t.Fatal(diags)
			}
		})
	}
	tpl := strings.Repeat("%{ if a.b }${a.b + 1}%{ else }-%{ endif }%{ for x in y }${x}%{ endfor }\n", n)
	if _, diags := hclsafe.ParseTemplate([]byte(tpl), "f.tpl"); diags.HasErrors() {
		t.Fatal(diags)
	}
}

func lex(src string) hclsyntax.Tokens {
	tokens, _ := hclsyntax.LexConfig([]byte(src), "f.hcl", hcl.InitialPos)
	return tokens
}

// What passes is parsed by a stack of a few megabytes, and evaluated by no more.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{"a = (", "a {\n b = \"${c ? -d : !e}\"\n}\n", "a = <<X\n%{ if b }${c[0].d}%{ endif }\nX\n", "a = [for k, v in b : k => v...]"} {
		f.Add(s, uint16(3))
	}
	f.Fuzz(func(t *testing.T, s string, times uint16) {
		if len(s) > 1<<10 || len(s)*int(times) > 1<<18 {
			return
		}
		src := []byte(strings.Repeat(s, int(times)))
		file, diags := hclsafe.ParseConfig(src, "f.hcl")
		if file == nil && !diags.HasErrors() {
			t.Fatal("neither a file nor an error")
		}
		if e, diags := hclsafe.ParseTemplate(src, "f.tpl"); !diags.HasErrors() {
			_, _ = e.Value(&hcl.EvalContext{})
		}
		if e, diags := hclsafe.ParseExpression(src, "f", hcl.InitialPos); !diags.HasErrors() {
			_, _ = e.Value(&hcl.EvalContext{})
		}
	})
}

// What is no text is one error, at the first byte that is none.
func TestNoText(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		src          string
		line, column int
	}{
		"a zero byte":  {"a = 1\nb\x00 = 2\x00\x00\n", 2, 2},
		"latin 1":      {"# gr\xfc\xdfe\na = 1\n", 1, 5},
		"another file": {"\x7fELF\x02\x01\x01\x00\x00\xff\xfe", 1, 8},
		"after text":   {"a = \"ü\"\xff\n", 1, 8},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, diags := hclsafe.ParseConfig([]byte(tc.src), "f.hcl")
			if file != nil || len(diags) != 1 || diags[0].Summary != "Invalid text" || diags[0].Subject.Start.Line != tc.line || diags[0].Subject.Start.Column != tc.column {
				t.Fatalf("%v", diags)
			}
		})
	}
	if diags := hclsafe.CheckText([]byte("a = \"ü\" # \U0001f512\n"), "f.hcl"); diags != nil {
		t.Errorf("text is refused: %v", diags)
	}
}

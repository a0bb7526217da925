package spec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/orchestrator"
)

func mustTemplate(t testing.TB, src string, list ...orchestrator.Secret) *Template {
	t.Helper()
	tpl, diags := newTemplate("a.tpl", "app", "a.conf", []byte(src), list)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return tpl
}

func renderAll(tpl *Template, nodes ...orchestrator.Node) ([]string, error) {
	var out []string
	err := tpl.Render(nodes, func(_ int, b []byte) error { out = append(out, string(b)); return nil })
	return out, err
}

var n1 = orchestrator.Node{Name: "n1", Meta: map[string]string{"zone": "a", "rack.id": "7"}}

func TestTemplate(t *testing.T) {
	db, api := orchestrator.Secret{Name: "db", Env: "DB"}, orchestrator.Secret{Name: "api", Env: "API", Version: "2"}
	for src, want := range map[string]string{
		"":             "",
		"plain text ":  "plain text ",
		"${node.name}": "n1",
		"${config.name}/${rollout.name}/${node.meta.zone}/${node.meta[\"rack.id\"]}": "a.conf/app/a/7",
		"${lookup(node.meta, \"no\", \"b\")}${try(node.meta.no, \"c\")}":             "bc",
		"%{ for k, v in node.meta }${k}=${v};%{ endfor }":                            "rack.id=7;zone=a;",
		"a\r\n%{ if node.name == \"n1\" ~}\r\nb\r\n%{ endif ~}\r\n":                  "a\r\nb\r\n",
		"$${x} %%{y}":                  "${x} %{y}",
		"${7}":                         "7",
		"${jsonencode(node.meta)}":     `{"rack.id":"7","zone":"a"}`,
		"{{aimlock:${node.name}":       "{{aimlock:literal}}n1",
		"x${secret.db}y${secret.api}z": "x{{aimlock:secret:db}}y{{aimlock:secret:api:2}}z",
		"${secret.db}":                 "{{aimlock:secret:db}}",
		"%{ if node.name == \"n1\" }${secret.db}%{ else }none%{ endif }":         "{{aimlock:secret:db}}",
		"%{ for z in [\"a\", \"b\"] }${z}=${secret.db};%{ endfor }":              "a={{aimlock:secret:db}};b={{aimlock:secret:db}};",
		"${node.name == \"n1\" ? secret.db : secret.api}${(secret.api)}":         "{{aimlock:secret:db}}{{aimlock:secret:api:2}}",
		"${node.name == \"n1\" ? \"<${secret.db}>\" : \"{{aimlock:\"}{{aimlock:": "<{{aimlock:secret:db}}>{{aimlock:literal}}",
	} {
		got, err := renderAll(mustTemplate(t, src, db, api), n1)
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%q: %q, %v, want %q", src, got, err, want)
		}
	}
	// Without secrets the content is what it is.
	if got, err := renderAll(mustTemplate(t, "{{aimlock:secret:db}}"), n1); err != nil || got[0] != "{{aimlock:secret:db}}" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTemplateErrors(t *testing.T) {
	for src, want := range map[string]string{
		"a\n  ${node.name":                         "1: Unclosed template",
		"${upper(secret.db)}":                      "1: Secret is used in an expression",
		"x\n${secret.db == \"\" ? 1 : 2}":          "2: Secret is used in an expression",
		"${secret}":                                "1: Secret is used in an expression",
		"${secret[\"db\"]}":                        "", // the same as secret.db
		"${secret[node.name]}":                     "1: Secret is used in an expression",
		"${join(\",\", [\"${secret.db}\"])}":       "1: Secret is used in an expression",
		"%{ for x in [secret.db] }${x}%{ endfor }": "1: Secret is used in an expression",
		"${secret.nope}":                           "1: Unknown secret",
		"${node.zone}":                             "1: Unknown attribute",
		"${var.x}":                                 "1: Unknown variable",
		"%{ if false }${env.x}%{ endif }":          "1: Unknown variable",
	} {
		_, diags := newTemplate("a.tpl", "app", "a.conf", []byte(src), []orchestrator.Secret{{Name: "db", Env: "DB"}})
		if want == "" {
			if diags.HasErrors() {
				t.Errorf("%q: %v", src, diags)
			}
			continue
		}
		if !diags.HasErrors() {
			t.Errorf("%q is taken", src)
			continue
		}
		d := diags[0]
		if got := fmt.Sprintf("%d: %s", d.Subject.Start.Line, d.Summary); !strings.HasPrefix(got, want) || d.Subject.Filename != "a.tpl" {
			t.Errorf("%q: %s %s, want %s", src, d.Subject, got, want)
		}
	}
}

func TestTemplateNamesNodes(t *testing.T) {
	nodes := []orchestrator.Node{n1}
	for i := range 9 {
		nodes = append(nodes, orchestrator.Node{Name: fmt.Sprintf("m%d", i)})
	}
	_, err := renderAll(mustTemplate(t, "${node.meta.zone}\n${node.meta.zone}${tonumber(node.name)}\n"), nodes...)
	re, ok := errors.AsType[*RenderError](err)
	if !ok {
		t.Fatal(err)
	}
	if len(re.Diags) != 2 {
		t.Fatalf("%d errors: %v", len(re.Diags), err)
	}
	for _, want := range []string{`no metadata "zone" on 9 of 10 nodes: m0, m1, m2, m3, m4 and 4 more`, "a.tpl line 1", "10 of 10 nodes: n1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "aimlock-") {
		t.Errorf("the error tells how secrets are marked: %v", err)
	}
}

func TestTemplateIsNoText(t *testing.T) {
	for _, src := range []string{"${null}", "${node.meta}", "${[1]}"} {
		if _, err := renderAll(mustTemplate(t, src), n1); err == nil {
			t.Errorf("%q is rendered", src)
		}
	}
}

// Functions with an effect or a source of chance would make a plan a guess.
func TestFunctionsArePure(t *testing.T) {
	for name := range functions {
		for _, bad := range []string{"time", "date", "rand", "uuid", "file", "env", "bcrypt"} {
			if strings.Contains(name, bad) {
				t.Errorf("function %s", name)
			}
		}
	}
}

// Whatever metadata holds, the values that nodes put in come out where the
// template has them, and everything else stays what it was.
func TestTemplateRoundTrip(t *testing.T) {
	piece := rapid.SampledFrom([]string{"{{aimlock:", "secret:db}}", "literal}}", "{", "}}", ";", "aimlock-", "x", "\u0301", "\n"})
	text := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(piece, 0, 5).Draw(t, "pieces"), "") })
	src := "a${node.meta.x}${secret.db}${node.meta.y}{{aimlock:${secret.db}"
	tpl := mustTemplate(t, src, orchestrator.Secret{Name: "db", Env: "DB"})
	plain := mustTemplate(t, strings.ReplaceAll(src, "secret.db", "node.meta.v"))
	rapid.Check(t, func(t *rapid.T) {
		value := text.Draw(t, "value")
		// HCL brings text into normal form C, and a secret's value is no text.
		n := orchestrator.Node{Name: "n", Meta: map[string]string{"x": strings.ReplaceAll(text.Draw(t, "x"), "\u0301", ""), "y": strings.ReplaceAll(text.Draw(t, "y"), "\u0301", ""), "v": strings.ReplaceAll(value, "\u0301", "")}}
		value = n.Meta["v"]
		form, err := renderAll(tpl, n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := secrets.Fill([]byte(form[0]), map[string][]byte{"db": []byte(value)})
		want, err2 := renderAll(plain, n)
		if err != nil || err2 != nil || string(got) != want[0] {
			t.Fatalf("%q, %v, %v, want %q", got, err, err2, want)
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"${node.name}", "${secret.db}", "%{ for k in keys(node.meta) }${k}%{ endfor }", "%{ if", "${", "$${x}", "{{aimlock:", "~}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 1<<12 {
			return
		}
		tpl, diags := newTemplate("a.tpl", "app", "a.conf", []byte(src), []orchestrator.Secret{{Name: "db", Env: "DB"}})
		for _, d := range diags {
			if d.Severity == hcl.DiagError && d.Subject == nil {
				t.Fatalf("an error without a place: %v", d)
			}
		}
		if diags.HasErrors() {
			return
		}
		first, err := renderAll(tpl, n1)
		if err != nil {
			return
		}
		again, err := renderAll(tpl, n1)
		if err != nil || first[0] != again[0] {
			t.Fatalf("%q comes to %q, then to %q, %v", src, first, again, err)
		}
		if strings.Contains(first[0], tpl.mark) {
			t.Fatalf("%q: the mark of a secret is left in %q", src, first[0])
		}
		if _, err := secrets.Fill([]byte(first[0]), map[string][]byte{"db": []byte("v")}); err != nil {
			t.Fatalf("%q comes to %q: %v", src, first[0], err)
		}
	})
}

// TestTemplateCannotGrow: what would fill the memory is refused, whatever the
// function, when the file is read or at the first node.
func TestTemplateCannotGrow(t *testing.T) {
	grow := "node.name"
	for range 12 {
		grow = `replace(` + grow + `, "a", "aaaaaaaaaa")`
	}
	for _, expr := range []string{
		`format("%1000000000d", 1)`, `formatlist("%9999s", ["a"])[0]`, `indent(1000000000, "a\nb")`, grow,
	} {
		tpl, diags := newTemplate("a.tpl", "app", "a.conf", []byte("${"+expr+"}"), nil)
		if diags.HasErrors() {
			continue
		}
		if _, err := renderAll(tpl, orchestrator.Node{Name: "aaaaaaaaaa"}); err == nil {
			t.Errorf("%.60s is rendered", expr)
		}
	}
	if got, err := renderAll(mustTemplate(t, "${indent(2, \"a\\nb\")}${format(\"%5s\", node.name)}"), n1); err != nil || got[0] != "a\n  b   n1" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestTemplateLoopsEnd: loops within loops are told of before they take for ever,
// or all of the memory.
func TestTemplateLoopsEnd(t *testing.T) {
	t.Parallel()
	const all = "%{ for a in range(1000) }"
	for name, src := range map[string]string{
		"turns":         all + all + all + "x%{ endfor }%{ endfor }%{ endfor }",
		"turns with if": "${join(\"\", flatten([for a in range(1000) : [for b in range(1000) : b if false]]))}",
		"a catch":       "${try([for a in range(1000) : [for b in range(1000) : b]], \"x\")}",
		"text":          all + all + strings.Repeat("x", 1<<14) + "%{ endfor }%{ endfor }",
	} {
		_, err := renderAll(mustTemplate(t, src), n1)
		if err == nil || !strings.Contains(err.Error(), "Loops go on too long") || strings.Count(err.Error(), "Loops go on") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	tpl := mustTemplate(t, "%{ for a in range(200) }${join(\"\", [for b in range(100) : \"x\" if b > 50])}%{ endfor }")
	for range 8 {
		if got, err := renderAll(tpl, n1); err != nil || len(got[0]) != 200*49 {
			t.Fatalf("%v", err)
		}
	}
}

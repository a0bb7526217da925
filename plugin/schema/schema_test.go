package schema_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/schema"
)

var declared = &plugin.Schema{
	Attributes: []plugin.Attribute{
		{Name: "url", Type: plugin.String, Required: true},
		{Name: "timeout", Type: plugin.Duration, Default: 5},
		{Name: "retries", Type: plugin.Number},
		{Name: "tls", Type: plugin.Bool},
		{Name: "tags", Type: plugin.List(plugin.String)},
		{Name: "labels", Type: plugin.Map(plugin.Number)},
		{Name: "auth", Type: plugin.Object(map[string]plugin.Type{"user": plugin.String, "age": plugin.Duration})},
		{Name: "token", Type: plugin.String, Secret: true},
	},
	Blocks: []plugin.Block{
		{Name: "server", Min: 1, Max: 2, Config: plugin.Schema{
			Attributes: []plugin.Attribute{{Name: "host", Type: plugin.String, Required: true}, {Name: "port", Type: plugin.Number}},
		}},
		{Name: "retry", Max: 1, Config: plugin.Schema{Attributes: []plugin.Attribute{{Name: "every", Type: plugin.Duration}}}},
	},
}

func read(t *testing.T, src string, ctx *hcl.EvalContext) (*schema.Block, hcl.Diagnostics) {
	t.Helper()
	f, diags := hclsyntax.ParseConfig([]byte(src), "p.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return schema.Decode(f.Body, declared, ctx)
}

func lines(diags hcl.Diagnostics) []string {
	var out []string
	for _, d := range diags {
		where := "-"
		if d.Subject != nil {
			where = d.Subject.String()
		}
		out = append(out, fmt.Sprintf("%s: %s: %s", where, d.Summary, d.Detail))
	}
	return out
}

func TestDecode(t *testing.T) {
	t.Parallel()
	b, diags := read(t, `
url     = "http://${host}/"
timeout = "1m30s"
retries = 3
tls     = "true"
tags    = ["a", 1]
labels  = { x = 1.5 }
auth    = { user = "u", age = "2s" }
token   = "hunter2"
server {
  host = "a"
  port = 80
}
server {
  host = "b"
}
retry {
  every = 2
}
`, &hcl.EvalContext{Variables: map[string]cty.Value{"host": cty.StringVal("h")}})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	got, err := declared.Apply(b.Config)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"url": "http://h/", "timeout": int64(90), "retries": int64(3), "tls": true, "tags": []any{"a", "1"},
		"labels": map[string]any{"x": 1.5}, "auth": map[string]any{"user": "u", "age": int64(2)}, "token": "hunter2",
		"server": []any{
			map[string]any{"host": "a", "port": int64(80)},
			map[string]any{"host": "b", "port": nil},
		},
		"retry": map[string]any{"every": int64(2)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := fmt.Sprintf("%v %s %#v", b.Config, b.Config, b.Config); strings.Contains(s, "hunter2") {
		t.Error("a configuration shows its secrets when it is printed: " + s)
	}
}

// TestErrors holds each error to its place, all of them at once.
func TestErrors(t *testing.T) {
	t.Parallel()
	_, diags := read(t, `timeout = "soon"
retries = later
tls     = ["x"]
tags    = ["a", ["b"]]
labels  = { x = 1, y = "no" }
auth    = { user = "u", nobody = 1 }
token   = ["hunter2"]
urll    = "x"
server {
  port = "eighty"
}
retry {
}
retry {
}
`, &hcl.EvalContext{Variables: map[string]cty.Value{"later": cty.UnknownVal(cty.Number)}})
	want := []string{
		"p.hcl:1,1-1: Missing required argument: The argument \"url\" is required, but no definition was found.",
		"p.hcl:8,1-5: Unsupported argument: An argument named \"urll\" is not expected here. Did you mean \"url\"?",
		"p.hcl:1,11-17: Invalid configuration: timeout: a duration is needed, such as \"10s\" or \"1h30m\".",
		"p.hcl:2,11-16: Invalid configuration: retries: the value is not known yet.",
		"p.hcl:3,11-16: Invalid configuration: tls: a bool is needed, and this is a tuple.",
		"p.hcl:4,17-22: Invalid configuration: tags[1]: a string is needed, and this is a tuple.",
		"p.hcl:5,24-28: Invalid configuration: labels[\"y\"]: a number is needed, and this is a string.",
		"p.hcl:6,34-35: Invalid configuration: auth.nobody: there is no such field.",
		"-: Invalid configuration: p.hcl:7,11-22: token: a string is needed.",
		"p.hcl:9,8-8: Missing required argument: The argument \"host\" is required, but no definition was found.",
		"p.hcl:10,10-18: Invalid configuration: server[0].port: a number is needed, and this is a string.",
		"p.hcl:14,1-6: Wrong number of blocks: Block \"retry\": 0 to 1 may be there, and there are 2.",
	}
	if d := cmp.Diff(want, lines(diags)); d != "" {
		t.Error(d)
	}
	if strings.Contains(fmt.Sprint(diags), "hunter2") {
		t.Error("an error shows a secret")
	}
}

// TestDiagnose shows what a plugin finds wrong where it stands.
func TestDiagnose(t *testing.T) {
	t.Parallel()
	b, diags := read(t, `url = "x"
tags = [
  "a",
  "b",
]
token = "hunter2"
server {
  host = "a"
}
`, nil)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	for path, want := range map[string]string{
		"url": "p.hcl:1,7-10", "tags[1]": "p.hcl:4,3-6", "tags[7]": "p.hcl:2,8-5,2", "server[0].host": "p.hcl:8,10-13", "server[0].port": "p.hcl:7,1-7",
		"nothing": "p.hcl:1,1-1", "": "p.hcl:1,1-1", "token": "-", "token[0].x": "-", "]x[.": "p.hcl:1,1-1",
	} {
		got := lines(b.Diagnose(plugin.Invalid(path, "it is wrong")))
		if len(got) != 1 || !strings.HasPrefix(got[0], want+": Invalid configuration: ") || !strings.Contains(got[0], "it is wrong.") {
			t.Errorf("%q: %q, want %s", path, got, want)
		}
	}
	if got := lines(b.Diagnose(fmt.Errorf("start: %w", plugin.ErrUnavailable))); len(got) != 1 || !strings.HasSuffix(got[0], "Invalid configuration: start: not available.") {
		t.Error(got)
	}
	if b.Diagnose(nil) != nil {
		t.Error("no error has diagnostics")
	}
}

// TestRoundTrip: what a plugin says comes through cty as it was.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		typ, v := value(t, 0)
		shape, err := typ.Parse()
		if err != nil {
			t.Fatal(err)
		}
		want, err := shape.Normalize(v)
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		c, err := schema.ToCty(v, typ)
		if err != nil {
			t.Fatal(err)
		}
		if ct, err := schema.CtyType(typ); err != nil || !c.Type().Equals(ct) {
			t.Fatalf("%#v is no %s: %v", c, typ, err)
		}
		got, err := schema.FromCty(c, typ)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("%s: %s", typ, d)
		}
	})
}

// value draws a type and a value of it.
func value(t *rapid.T, depth int) (plugin.Type, any) {
	kinds := 4
	if depth < 3 {
		kinds = 7
	}
	switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
	case 0:
		return plugin.String, rapid.SampledFrom([]string{"", "a", "ä€"}).Draw(t, "s")
	case 1:
		return plugin.Bool, rapid.Bool().Draw(t, "b")
	case 2:
		return plugin.Number, rapid.Float64Range(-1e18, 1e18).Draw(t, "f")
	case 3:
		return plugin.Duration, rapid.Int64().Draw(t, "i")
	case 4:
		typ, v := value(t, depth+1)
		list := []any{}
		if rapid.Bool().Draw(t, "full") {
			list = []any{v, v}
		}
		return plugin.List(typ), list
	case 5:
		typ, v := value(t, depth+1)
		return plugin.Map(typ), map[string]any{rapid.SampledFrom([]string{"", "x", "y z"}).Draw(t, "k"): v}
	default:
		a, v := value(t, depth+1)
		b, _ := value(t, depth+1)
		return plugin.Object(map[string]plugin.Type{"a": a, "b": b}), map[string]any{"a": v}
	}
}

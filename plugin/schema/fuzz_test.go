package schema_test

import (
	"encoding/json"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hclblock"
	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/plugin/schema"
)

// FuzzBlock: the block of a plugin, read by what the plugin declares and kept as
// JSON without it.
func FuzzBlock(f *testing.F) {
	for _, s := range []string{
		"url = \"u\"\nserver {\n host = \"a\"\n}\n", "url = 1\ntimeout = \"1m\"\nretries = 1e400\nserver {\n host = null\n}\n", "labels = { a = \"x\" }\nauth = { user = [] }\n",
		"token = \"t\"\nserver \"l\" {}\n", "url = \"${host}\"\n", "a = [for x in [1] : x]\n", "retry {\n retry {\n retry {}\n }\n}\n",
	} {
		f.Add([]byte(s))
	}
	ctx := &hcl.EvalContext{Variables: map[string]cty.Value{"host": cty.StringVal("h"), "later": cty.UnknownVal(cty.String)}}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 1<<14 {
			return
		}
		file, diags := hclsafe.ParseConfig(src, "f.hcl")
		if diags.HasErrors() {
			return
		}
		b, diags := schema.Decode(file.Body, declared, ctx)
		if !diags.HasErrors() {
			if _, err := declared.Apply(b.Config); err != nil {
				t.Fatalf("%q passes as %s, and then: %v", src, b.Config, err)
			}
		}
		raw, diags := hclblock.JSON(file.Body, func(a *hcl.Attribute) (cty.Value, bool) {
			v, diags := a.Expr.Value(ctx)
			return v, !diags.HasErrors()
		})
		switch {
		case diags.HasErrors() && raw != nil:
			t.Fatalf("an error, and %s", raw)
		case raw != nil && !json.Valid(raw):
			t.Fatalf("%q is no JSON", raw)
		}
		for _, d := range diags {
			if d.Subject == nil {
				t.Fatalf("a diagnostic without its place: %v", d)
			}
		}
	})
}

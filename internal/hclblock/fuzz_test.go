package hclblock

import (
	"encoding/json"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// FuzzJSON: a block of any text is one object of JSON, or told with its place.
func FuzzJSON(f *testing.F) {
	f.Add([]byte("a = 1\nb \"x\" { c = [true, null, {d = \"e\"}] }\n"))
	f.Add([]byte("b {}\nb {}\na = env.HOME\n"))
	f.Add([]byte("a { a { a { a { a { a { a { a { a { a {\n}}}}}}}}}}\n"))
	f.Add([]byte("a = 1\na { b = 2 }\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		file, diags := hclsyntax.ParseConfig(src, "f.hcl", hcl.Pos{Line: 1, Column: 1})
		if diags.HasErrors() {
			return
		}
		raw, diags := JSON(file.Body, func(a *hcl.Attribute) (cty.Value, bool) {
			v, diags := a.Expr.Value(nil)
			return v, !diags.HasErrors()
		})
		var object map[string]any
		switch {
		case diags.HasErrors() && raw != nil:
			t.Errorf("%q is %s, and wrong", src, raw)
		case raw != nil && (json.Unmarshal(raw, &object) != nil || len(object) == 0):
			t.Errorf("%q becomes %s", src, raw)
		}
		for _, d := range diags {
			if d.Subject == nil || d.Subject.Filename != "f.hcl" {
				t.Errorf("%q: no place: %v", src, d)
			}
		}
	})
}

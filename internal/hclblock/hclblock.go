// Package hclblock keeps a block of HCL whose schema is not known as JSON: the block
// of a plugin, which declares its schema itself, in a file that is read where no
// such plugin may be. Attributes are values, and each kind of nested block is a list.
//
// It imports HCL and nothing of the rest.
package hclblock

import (
	"encoding/json"
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// maxDepth bounds blocks in blocks.
const maxDepth = 8

// JSON is a body as JSON; nil where it is empty. value evaluates an attribute, and
// returns false if it told of a mistake itself.
func JSON(body hcl.Body, value func(*hcl.Attribute) (cty.Value, bool)) (json.RawMessage, hcl.Diagnostics) {
	b, ok := body.(*hclsyntax.Body)
	if !ok {
		at := body.MissingItemRange()
		return nil, fail(at, "It cannot be read here: write it in HCL's own syntax.")
	}
	out, diags := object(b, value, 0)
	if diags.HasErrors() || len(out) == 0 {
		return nil, diags
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, append(diags, fail(b.SrcRange, "%v.", err)...)
	}
	return raw, diags
}

func object(b *hclsyntax.Body, value func(*hcl.Attribute) (cty.Value, bool), depth int) (map[string]json.RawMessage, hcl.Diagnostics) {
	if depth > maxDepth {
		return nil, fail(b.SrcRange, "Blocks are nested more than %d deep.", maxDepth)
	}
	out := map[string]json.RawMessage{}
	var diags hcl.Diagnostics
	for name, a := range b.Attributes {
		v, ok := value(a.AsHCLAttribute())
		if !ok {
			continue
		}
		v, _ = v.UnmarkDeep()
		if !v.IsWhollyKnown() {
			diags = append(diags, fail(a.SrcRange, "The value is not known here.")...)
			continue
		}
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			diags = append(diags, fail(a.SrcRange, "%v.", err)...)
			continue
		}
		out[name] = raw
	}
	lists := map[string][]map[string]json.RawMessage{}
	for _, nested := range b.Blocks {
		if len(nested.Labels) > 0 {
			diags = append(diags, fail(nested.DefRange(), "A block of a plugin has no labels.")...)
			continue
		}
		o, more := object(nested.Body, value, depth+1)
		diags = append(diags, more...)
		lists[nested.Type] = append(lists[nested.Type], o)
	}
	for name, list := range lists {
		raw, err := json.Marshal(list)
		if err != nil {
			diags = append(diags, fail(b.SrcRange, "%v.", err)...)
			continue
		}
		out[name] = raw
	}
	return out, diags
}

func fail(at hcl.Range, format string, args ...any) hcl.Diagnostics {
	return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Invalid configuration", Detail: fmt.Sprintf(format, args...), Subject: &at}}
}

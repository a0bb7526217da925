// Package schema reads the configuration of plugins in HCL, and turns values of
// plugins into cty and back. A plugin declares what its configuration may hold
// ([plugin.Schema]); [Decode] reads a block against that, and keeps where each value
// stands, so that what the plugin itself finds wrong ([plugin.Problems]) is shown
// with file, line and column too ([Block.Diagnose]).
//
// It may import HCL, cty and the SDK.
package schema

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"github.com/aim-control/aimlock/plugin"
)

// Block is a configuration that was read.
type Block struct {
	// Config is as the block has it, without the defaults of what it leaves out.
	Config plugin.Config

	ranges map[string]hcl.Range
	hidden map[string]bool // the paths of secrets
}

// Decode reads a block's body. ctx has what expressions may use; nil: nothing. All
// diagnostics come at once. Those of a secret name its place in words and have no
// range, since a range is shown with its line.
func Decode(body hcl.Body, s *plugin.Schema, ctx *hcl.EvalContext) (*Block, hcl.Diagnostics) {
	d := &decoder{ctx: ctx, out: &Block{ranges: map[string]hcl.Range{"": body.MissingItemRange()}, hidden: map[string]bool{}}}
	values := d.body(body, s, "")
	if d.diags.HasErrors() {
		return d.out, d.diags
	}
	cfg, err := plugin.NewConfig(values)
	if err == nil {
		d.out.Config = cfg
		_, err = s.Apply(cfg)
	}
	return d.out, append(d.diags, d.out.Diagnose(err)...)
}

type decoder struct {
	ctx   *hcl.EvalContext
	out   *Block
	diags hcl.Diagnostics
}

func (d *decoder) body(body hcl.Body, s *plugin.Schema, at string) map[string]any {
	content, diags := body.Content(bodySchema(s))
	d.diags = append(d.diags, diags...)
	values := map[string]any{}
	for i := range s.Attributes {
		a := &s.Attributes[i]
		if got := content.Attributes[a.Name]; got != nil {
			if v, ok := d.attribute(got, a, at+a.Name); ok {
				values[a.Name] = v
			}
		}
	}
	found := content.Blocks.ByType()
	for i := range s.Blocks {
		b := &s.Blocks[i]
		if list := d.blocks(found[b.Name], b, at, content.MissingItemRange); b.Max != 1 {
			values[b.Name] = list
		} else if len(list) > 0 {
			values[b.Name] = list[0]
		}
	}
	return values
}

func bodySchema(s *plugin.Schema) *hcl.BodySchema {
	out := &hcl.BodySchema{}
	for i := range s.Attributes {
		out.Attributes = append(out.Attributes, hcl.AttributeSchema{Name: s.Attributes[i].Name, Required: s.Attributes[i].Required})
	}
	for i := range s.Blocks {
		out.Blocks = append(out.Blocks, hcl.BlockHeaderSchema{Type: s.Blocks[i].Name})
	}
	return out
}

func (d *decoder) blocks(found hcl.Blocks, b *plugin.Block, at string, missing hcl.Range) []any {
	list := []any{}
	for n, block := range found {
		path := at + b.Name
		if b.Max != 1 {
			path = fmt.Sprintf("%s[%d]", path, n)
		}
		d.out.ranges[path] = block.DefRange
		list = append(list, d.body(block.Body, &b.Config, path+"."))
	}
	where := missing
	switch {
	case len(found) < b.Min:
	case b.Max > 0 && len(found) > b.Max:
		where = found[b.Max].DefRange
	default:
		return list
	}
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity: hcl.DiagError, Summary: "Wrong number of blocks", Subject: &where,
		Detail: fmt.Sprintf("Block %q: %s.", b.Name, b.Count(len(found))),
	})
	return nil
}

func (d *decoder) attribute(got *hcl.Attribute, a *plugin.Attribute, path string) (any, bool) {
	d.place(path, got.Expr, 0)
	if a.Secret {
		d.out.hidden[path] = true
	}
	v, diags := got.Expr.Value(d.ctx)
	if diags.HasErrors() {
		if a.Secret {
			// HCL's own words may hold the value, or that of a part.
			d.fail(path, "its value cannot be had")
			return nil, false
		}
		d.diags = append(d.diags, diags...)
		return nil, false
	}
	out, err := FromCty(v, a.Type)
	if err != nil {
		var part *partError
		if a.Secret {
			err = fmt.Errorf("a %s is needed", a.Type)
		} else if errors.As(err, &part) {
			path, err = path+part.path, part.err
		}
		d.fail(path, "%v", err)
		return nil, false
	}
	return out, true
}

func (d *decoder) fail(path, format string, args ...any) {
	d.diags = append(d.diags, d.out.Diagnose(plugin.Invalid(path, format, args...))...)
}

// place keeps where a value stands, and where its parts do.
func (d *decoder) place(path string, expr hcl.Expression, depth int) {
	d.out.ranges[path] = expr.Range()
	if depth > 8 {
		return
	}
	if list, diags := hcl.ExprList(expr); !diags.HasErrors() {
		for i, e := range list {
			d.place(fmt.Sprintf("%s[%d]", path, i), e, depth+1)
		}
	}
	if pairs, diags := hcl.ExprMap(expr); !diags.HasErrors() {
		for _, p := range pairs {
			if k, diags := p.Key.Value(d.ctx); !diags.HasErrors() && k.Type() == cty.String && k.IsKnown() && !k.IsNull() {
				k, _ = k.Unmark()
				d.place(fmt.Sprintf("%s[%q]", path, k.AsString()), p.Value, depth+1)
				d.out.ranges[path+"."+k.AsString()] = p.Value.Range()
			}
		}
	}
}

// Diagnose shows an error of the plugin, or of its client, where it belongs: each of
// [plugin.Problems] at the value that its path names or, where that was left out, at
// the block that should have it. nil is none.
func (b *Block) Diagnose(err error) hcl.Diagnostics {
	if err == nil {
		return nil
	}
	var problems plugin.Problems
	if !errors.As(err, &problems) {
		problems = plugin.Problems{{Message: err.Error()}}
	}
	var out hcl.Diagnostics
	for _, p := range problems {
		where, hidden := b.find(p.Path)
		diag := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Invalid configuration", Subject: &where, Detail: sentence(p.String())}
		if hidden {
			diag.Subject = nil
			diag.Detail = sentence(fmt.Sprintf("%s: %s", where, p))
		}
		out = append(out, diag)
	}
	return out
}

// Range is where the value at path stands, or what is nearest to it.
func (b *Block) Range(path string) hcl.Range {
	where, _ := b.find(path)
	return where
}

func (b *Block) find(path string) (where hcl.Range, hidden bool) {
	for p := path; ; {
		hidden = hidden || b.hidden[p]
		r, ok := b.ranges[p]
		// The parts of a secret are looked at up to the secret itself.
		if ok && where == (hcl.Range{}) {
			where = r
		}
		if p == "" {
			return where, hidden
		}
		if i := strings.LastIndexAny(p, ".["); i >= 0 {
			p = p[:i]
		} else {
			p = ""
		}
	}
}

func sentence(s string) string {
	if strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// CtyType is the type as policies know it. A duration is a number, of seconds.
func CtyType(t plugin.Type) (cty.Type, error) {
	shape, err := t.Parse()
	if err != nil {
		return cty.NilType, err
	}
	return ctyType(shape), nil
}

func ctyType(s *plugin.Shape) cty.Type {
	switch s.Type {
	case plugin.String:
		return cty.String
	case plugin.Bool:
		return cty.Bool
	case "list":
		return cty.List(ctyType(s.Elem))
	case "map":
		return cty.Map(ctyType(s.Elem))
	case "object":
		fields := make(map[string]cty.Type, len(s.Fields))
		for name, f := range s.Fields {
			fields[name] = ctyType(f)
		}
		return cty.Object(fields)
	}
	return cty.Number
}

// ToCty is a value of a plugin as cty. nil is null.
func ToCty(v any, t plugin.Type) (cty.Value, error) {
	shape, err := t.Parse()
	if err != nil {
		return cty.NilVal, err
	}
	n, err := shape.Normalize(v)
	if err != nil {
		return cty.NilVal, err
	}
	return toCty(n, shape), nil
}

// toCty turns what Normalize returned.
func toCty(v any, s *plugin.Shape) cty.Value {
	t := ctyType(s)
	switch v := v.(type) {
	case string:
		return cty.StringVal(v)
	case bool:
		return cty.BoolVal(v)
	case int64:
		return cty.NumberIntVal(v)
	case float64:
		return cty.NumberFloatVal(v)
	case []any:
		if len(v) == 0 {
			return cty.ListValEmpty(t.ElementType())
		}
		list := make([]cty.Value, len(v))
		for i := range v {
			list[i] = toCty(v[i], s.Elem)
		}
		return cty.ListVal(list)
	case map[string]any:
		out := make(map[string]cty.Value, len(v))
		for k, e := range v {
			if s.Type == "object" {
				out[k] = toCty(e, s.Fields[k])
			} else {
				out[k] = toCty(e, s.Elem)
			}
		}
		switch {
		case s.Type == "object":
			return cty.ObjectVal(out)
		case len(out) == 0:
			return cty.MapValEmpty(t.ElementType())
		}
		return cty.MapVal(out)
	}
	return cty.NullVal(t)
}

// FromCty is a cty value as a plugin gets it. null is nil. A value that is not
// known, wholly, is an error: unknown never reaches a plugin.
func FromCty(v cty.Value, t plugin.Type) (any, error) {
	shape, err := t.Parse()
	if err != nil {
		return nil, err
	}
	v, _ = v.UnmarkDeep()
	if !v.IsWhollyKnown() {
		return nil, errors.New("the value is not known yet")
	}
	return fromCty(v, shape)
}

func fromCty(v cty.Value, s *plugin.Shape) (any, error) {
	if v.IsNull() {
		return nil, nil
	}
	t := v.Type()
	switch s.Type {
	case plugin.Duration:
		if t == cty.String {
			d, err := time.ParseDuration(v.AsString())
			if err != nil {
				return nil, errors.New(`a duration is needed, such as "10s" or "1h30m"`)
			}
			return s.Normalize(d)
		}
		if t != cty.Number {
			return nil, fmt.Errorf("a duration is needed, such as \"10s\", and this is a %s", t.FriendlyName())
		}
		return number(v)
	case plugin.String, plugin.Number, plugin.Bool:
		if t == cty.Number {
			if _, err := number(v); err != nil { // as a text it would have all its digits
				return nil, err
			}
		}
		v, err := convert.Convert(v, ctyType(s))
		switch {
		case err != nil:
			return nil, fmt.Errorf("a %s is needed, and this is a %s", s, t.FriendlyName())
		case s.Type == plugin.String:
			return v.AsString(), nil
		case s.Type == plugin.Bool:
			return v.True(), nil
		}
		return number(v)
	case "list":
		if !t.IsTupleType() && !t.IsListType() && !t.IsSetType() {
			return nil, fmt.Errorf("a list is needed, and this is a %s", t.FriendlyName())
		}
		out := []any{}
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			x, err := fromCty(e, s.Elem)
			if err != nil {
				return nil, within(fmt.Sprintf("[%d]", len(out)), err)
			}
			out = append(out, x)
		}
		return out, nil
	}
	if !t.IsObjectType() && !t.IsMapType() {
		return nil, fmt.Errorf("a %s is needed, and this is a %s", s, t.FriendlyName())
	}
	out := map[string]any{}
	for it := v.ElementIterator(); it.Next(); {
		k, e := it.Element()
		elem := s.Elem
		if s.Type == "object" {
			if elem = s.Fields[k.AsString()]; elem == nil {
				return nil, within("."+k.AsString(), errors.New("there is no such field"))
			}
		}
		x, err := fromCty(e, elem)
		if err != nil {
			return nil, within(fmt.Sprintf("[%q]", k.AsString()), err)
		}
		out[k.AsString()] = x
	}
	return out, nil
}

// partError is what is wrong with a part of a value.
type partError struct {
	path string
	err  error
}

func (e *partError) Error() string { return e.path + ": " + e.err.Error() }
func (e *partError) Unwrap() error { return e.err }

func within(path string, err error) error {
	var part *partError
	if errors.As(err, &part) {
		return &partError{path + part.path, part.err}
	}
	return &partError{path, err}
}

func number(v cty.Value) (any, error) {
	f := v.AsBigFloat()
	if i, acc := f.Int64(); acc == big.Exact {
		return i, nil
	}
	x, _ := f.Float64()
	if math.IsInf(x, 0) {
		return nil, errors.New("the number is too large")
	}
	return x, nil
}

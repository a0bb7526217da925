package spec

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/gocty"

	"github.com/aim-control/aimlock/internal/text"
)

// decoder turns one spec into values and collects what is wrong with it. After
// an error it goes on wherever it can.
type decoder struct {
	file  *File
	read  reader
	diags hcl.Diagnostics
}

func (d *decoder) fail(rng hcl.Range, summary, format string, args ...any) {
	d.add(hcl.DiagError, rng, rng, summary, format, args...)
}

func (d *decoder) warn(rng hcl.Range, summary, format string, args ...any) {
	d.add(hcl.DiagWarning, rng, rng, summary, format, args...)
}

func (d *decoder) add(sev hcl.DiagnosticSeverity, rng, context hcl.Range, summary, format string, args ...any) {
	d.diags = append(d.diags, &hcl.Diagnostic{
		Severity: sev, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &rng, Context: &context,
	})
}

// bad is fail for the value of an attribute.
func (d *decoder) bad(a *hcl.Attribute, summary, format string, args ...any) {
	d.add(hcl.DiagError, a.Expr.Range(), a.Range, summary, format, args...)
}

// content takes a body apart. Unknown arguments and blocks are errors.
func (d *decoder) content(body hcl.Body, schema *hcl.BodySchema) *hcl.BodyContent {
	c, diags := body.Content(schema)
	misplaced(body, schema, diags)
	// HCL finds arguments that may not stand there in the order of a map.
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int { return cmp.Compare(start(a), start(b)) })
	d.diags = append(d.diags, diags...)
	return c
}

func start(d *hcl.Diagnostic) int {
	if d.Subject == nil {
		return -1
	}
	return d.Subject.Start.Byte
}

// single returns the only block of a type, or nil; further ones are errors.
func (d *decoder) single(c *hcl.BodyContent, typ string) *hcl.Block {
	var first *hcl.Block
	for _, b := range c.Blocks {
		switch {
		case b.Type != typ:
		case first == nil:
			first = b
		default:
			d.fail(b.DefRange, "Duplicate "+typ+" block", "There is a %s block already at %s: one is the most.", typ, first.DefRange)
		}
	}
	return first
}

// placeholders are what the agent replaces in the arguments of a command.
var placeholders = map[string]bool{"staged": true, "destination": true}

// value evaluates an attribute. There is nothing to refer to in a spec.
func (d *decoder) value(a *hcl.Attribute) (cty.Value, bool) {
	for _, t := range a.Expr.Variables() {
		if name := t.RootName(); placeholders[name] {
			d.add(hcl.DiagError, t.SourceRange(), a.Range, "Placeholder is not escaped",
				`The agent puts in the path where an argument holds ${%s}. Write $${%s} here, so that it reaches the agent.`, name, name)
			return cty.NilVal, false
		}
	}
	v, diags := a.Expr.Value(nil)
	d.diags = append(d.diags, diags...)
	if diags.HasErrors() {
		return cty.NilVal, false
	}
	if v.IsNull() || !v.IsWhollyKnown() {
		d.bad(a, "Value is missing", "%q is null: give it a value, or leave it out.", a.Name)
		return cty.NilVal, false
	}
	return v, true
}

// str reads a string; ok is false where it is absent or wrong.
func (d *decoder) str(c *hcl.BodyContent, name string) (s string, a *hcl.Attribute, ok bool) {
	if a = c.Attributes[name]; a == nil {
		return "", nil, false
	}
	v, ok := d.value(a)
	if !ok {
		return "", a, false
	}
	if v.Type() != cty.String {
		d.bad(a, "Wrong type", "%q must be a string in quotes, and this is %s.", name, friendly(v))
		return "", a, false
	}
	return v.AsString(), a, true
}

// text is str for a string that must not be empty.
func (d *decoder) text(c *hcl.BodyContent, name string) (string, *hcl.Attribute, bool) {
	s, a, ok := d.str(c, name)
	if ok && s == "" {
		d.bad(a, "Empty string", "%q must not be empty.", name)
		return "", a, false
	}
	if ok && len(s) > maxCommand {
		d.bad(a, "Too long", "%q may have %d bytes.", name, maxCommand)
		return "", a, false
	}
	return s, a, ok
}

// number reads a whole number from lo to hi.
func (d *decoder) number(c *hcl.BodyContent, name string, lo, hi int) (int, *hcl.Attribute, bool) {
	a := c.Attributes[name]
	if a == nil {
		return 0, nil, false
	}
	v, ok := d.value(a)
	if !ok {
		return 0, a, false
	}
	var n int
	switch {
	case v.Type() != cty.Number:
		d.bad(a, "Wrong type", "%q must be a number, and this is %s.", name, friendly(v))
	case !v.AsBigFloat().IsInt():
		d.bad(a, "Not a whole number", "%q must be a whole number.", name)
	case gocty.FromCtyValue(v, &n) != nil || n < lo || n > hi:
		d.bad(a, "Number out of range", "%q must be %d to %d.", name, lo, hi)
	default:
		return n, a, true
	}
	return 0, a, false
}

// duration reads a duration from lo to hi.
func (d *decoder) duration(c *hcl.BodyContent, name string, lo, hi time.Duration) (time.Duration, *hcl.Attribute, bool) {
	s, a, ok := d.str(c, name)
	if !ok {
		return 0, a, false
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		d.bad(a, "Invalid duration", "%q must be a duration such as \"90s\", \"10m\" or \"1h30m\", and not %q.", name, s)
	case v < lo || v > hi:
		d.bad(a, "Duration out of range", "%q must be %s to %s.", name, text.Duration(lo), text.Duration(hi))
	default:
		return v, a, true
	}
	return 0, a, false
}

// strings reads a list of strings.
func (d *decoder) strings(c *hcl.BodyContent, name string) ([]string, *hcl.Attribute, bool) {
	a := c.Attributes[name]
	if a == nil {
		return nil, nil, false
	}
	v, ok := d.value(a)
	if !ok {
		return nil, a, false
	}
	typ := v.Type()
	if !typ.IsTupleType() && !typ.IsListType() && !typ.IsSetType() {
		d.bad(a, "Wrong type", "%q must be a list of strings, such as [\"a\", \"b\"], and this is %s.", name, friendly(v))
		return nil, a, false
	}
	var out []string
	for it := v.ElementIterator(); it.Next(); {
		i, e := it.Element()
		if e.Type() != cty.String || e.IsNull() {
			d.bad(a, "Wrong type", "%q must be a list of strings: item %s is %s.", name, index(i), friendly(e))
			return nil, a, false
		}
		out = append(out, e.AsString())
	}
	return out, a, true
}

func index(v cty.Value) string {
	if s, err := convert.Convert(v, cty.String); err == nil && !s.IsNull() {
		return s.AsString()
	}
	return "?"
}

func friendly(v cty.Value) string {
	if v.IsNull() {
		return "null"
	}
	n := v.Type().FriendlyName()
	if strings.HasPrefix(n, "o") {
		return "an " + n
	}
	return "a " + n
}

// meant returns ` Did you mean "x"?` for what is close to a known word.
func meant(given string, known []string) string {
	best, dist := "", 4
	for _, k := range known {
		if n := levenshtein.Distance(given, k, nil); n < dist && n < len(k) {
			best, dist = k, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" Did you mean %q?", best)
}

// each calls f for every error that was joined into err.
func each(err error, f func(error)) {
	if err == nil {
		return
	}
	if j, ok := errors.AsType[interface {
		error
		Unwrap() []error
	}](err); ok {
		for _, e := range j.Unwrap() {
			f(e)
		}
		return
	}
	f(err)
}

package policies

import (
	"math/big"
	"strconv"
	"strings"
	"unicode"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// maxReason bounds a rule's reason: it goes into records and onto terminals.
const maxReason = 1000

// reasonText renders the rule's reason over the facts. A part that is unknown,
// null or an error becomes a word: a reason never decides anything.
func (r *Rule) reasonText(s *scope) string {
	if r.reason == nil {
		return r.when.describe(s)
	}
	var b strings.Builder
	parts := []hclsyntax.Expression{r.reason.hcl}
	if tpl, ok := r.reason.hcl.(*hclsyntax.TemplateExpr); ok {
		parts = tpl.Parts
	}
	for _, part := range parts {
		v, diags := (&expr{run: part.Value, rng: r.reason.rng}).value(s.ctx)
		if diags.HasErrors() {
			v = cty.DynamicVal
		}
		b.WriteString(text(v))
		if b.Len() > maxReason {
			break
		}
	}
	return clip(printable(strings.TrimSpace(b.String())), maxReason)
}

// describe lists the facts that an expression read.
func (e *expr) describe(s *scope) string {
	var b strings.Builder
	for _, name := range e.used {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name + " is " + clip(text(s.ctx.Variables[name]), 80))
	}
	return clip(printable(b.String()), maxReason)
}

// text is a value as people read it in a sentence.
func text(v cty.Value) string {
	switch {
	case !v.IsKnown():
		return "unknown"
	case v.IsNull():
		return "none"
	case v.Type() == cty.Number:
		return number(v.AsBigFloat())
	case !v.Type().IsPrimitiveType():
		return string(ValueJSON(v))
	}
	s, err := convert.Convert(v, cty.String)
	if err != nil {
		return "unknown"
	}
	return s.AsString()
}

// number renders whole numbers in full and others with one decimal.
func number(f *big.Float) string {
	if !sane(f) {
		return f.Text('g', 6)
	}
	if f.IsInt() {
		return f.Text('f', 0)
	}
	x, _ := f.Float64()
	return strconv.FormatFloat(x, 'f', 1, 64)
}

// printable replaces what could move a terminal's cursor or hide text: facts
// come from records that anybody may have written.
func printable(s string) string {
	if plain(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return '?'
		}
		return r
	}, s)
}

// plain reports whether s holds only what shows, and nothing but ASCII: most
// texts do, and need no second look.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

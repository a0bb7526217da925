// Package hclsafe parses HCL that somebody else wrote. HCL's parser and evaluator
// recurse as deep as the text is nested, and Go ends the whole process when a stack
// outgrows its limit: a megabyte of brackets does. So the tokens are looked at
// before they are parsed.
//
// It imports HCL and nothing of the rest.
package hclsafe

import (
	"bytes"
	"fmt"
	"regexp"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

const (
	// MaxDepth bounds brackets, blocks, quotes and directives within one another.
	MaxDepth = 64
	// MaxOperators bounds the operators, and the steps of a reference, that stand
	// in one expression and in those around it: each is one more level of the tree.
	MaxOperators = 8192
)

// ParseConfig is hclsyntax.ParseConfig. The file is nil where it is no text, or is
// nested too deeply.
func ParseConfig(src []byte, filename string) (*hcl.File, hcl.Diagnostics) {
	if diags := CheckText(src, filename); diags.HasErrors() {
		return nil, diags
	}
	tokens, _ := hclsyntax.LexConfig(src, filename, hcl.InitialPos)
	if diags := Check(tokens); diags.HasErrors() {
		return nil, diags
	}
	return hclsyntax.ParseConfig(src, filename, hcl.InitialPos)
}

// CheckText refuses what is not UTF-8, or holds a zero byte, by one error: of a file
// that is no text the parser has something to say at every character.
func CheckText(src []byte, filename string) hcl.Diagnostics {
	at := bytes.IndexByte(src, 0)
	for i := 0; i < len(src) && (at < 0 || i < at); {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			at = i
			break
		}
		i += n
	}
	if at < 0 {
		return nil
	}
	pos := hcl.Pos{Line: 1 + bytes.Count(src[:at], []byte("\n")), Byte: at}
	pos.Column = 1 + utf8.RuneCount(src[1+bytes.LastIndexByte(src[:at], '\n'):at])
	end := pos
	end.Byte++
	end.Column++
	return hcl.Diagnostics{{
		Severity: hcl.DiagError, Summary: "Invalid text",
		Detail:  "This is not text in UTF-8: it is another kind of file, or was saved in another encoding.",
		Subject: &hcl.Range{Filename: filename, Start: pos, End: end},
	}}
}

// ParseTemplate is hclsyntax.ParseTemplate.
func ParseTemplate(src []byte, filename string) (hclsyntax.Expression, hcl.Diagnostics) {
	tokens, _ := hclsyntax.LexTemplate(src, filename, hcl.InitialPos)
	if diags := Check(tokens); diags.HasErrors() {
		return nil, diags
	}
	return hclsyntax.ParseTemplate(src, filename, hcl.InitialPos)
}

// ParseExpression is hclsyntax.ParseExpression.
func ParseExpression(src []byte, filename string, start hcl.Pos) (hclsyntax.Expression, hcl.Diagnostics) {
	tokens, _ := hclsyntax.LexExpression(src, filename, start)
	if diags := Check(tokens); diags.HasErrors() {
		return nil, diags
	}
	return hclsyntax.ParseExpression(src, filename, start)
}

// hugeNumber would fill the memory where it is made a text: with all its digits.
var hugeNumber = regexp.MustCompile(`[eE][+-]?[0-9]{4}`)

// level is one bracket, block or quote that is open.
type level struct {
	kind hclsyntax.TokenType
	// operators since the last comma, or the last line of a block.
	operators int
}

// Check refuses tokens whose tree would be deeper than a stack.
func Check(tokens hclsyntax.Tokens) hcl.Diagnostics {
	open := []level{{}}
	directives, operators := 0, 0
	fail := func(rng hcl.Range, summary, detail string, args ...any) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(detail, args...), Subject: &rng}}
	}
	for i, t := range tokens {
		top := &open[len(open)-1]
		switch t.Type {
		case hclsyntax.TokenNumberLit:
			if hugeNumber.Match(t.Bytes) {
				return fail(t.Range, "Number too large", "An exponent of more than three digits is not sensible.")
			}
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote,
			hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			if t.Type == hclsyntax.TokenOBrack || t.Type == hclsyntax.TokenOParen {
				top.operators++
				operators++
			}
			open = append(open, level{kind: t.Type})
			if t.Type == hclsyntax.TokenTemplateControl {
				directives += step(tokens[i+1:])
			}
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote,
			hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			if len(open) > 1 {
				operators -= top.operators
				open = open[:len(open)-1]
			}
		case hclsyntax.TokenComma:
			operators -= top.operators
			top.operators = 0
		case hclsyntax.TokenNewline, hclsyntax.TokenComment:
			if len(open) == 1 || top.kind == hclsyntax.TokenOBrace {
				operators -= top.operators
				top.operators = 0
			}
		case hclsyntax.TokenPlus, hclsyntax.TokenMinus, hclsyntax.TokenStar, hclsyntax.TokenSlash, hclsyntax.TokenPercent,
			hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenBang, hclsyntax.TokenQuestion, hclsyntax.TokenColon,
			hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual, hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq,
			hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq, hclsyntax.TokenDot:
			top.operators++
			operators++
		}
		switch {
		case len(open)-1+directives > MaxDepth:
			return fail(t.Range, "Nested too deeply", "Brackets, blocks, quotes and directives are nested more than %d deep here.", MaxDepth)
		case operators > MaxOperators:
			return fail(t.Range, "Expression too long", "This expression has more than %d operators. Split it up.", MaxOperators)
		}
	}
	return nil
}

// step is by how much a directive changes how deep those behind it are nested.
// next is what follows its opening bracket.
func step(next hclsyntax.Tokens) int {
	for _, t := range next {
		switch {
		case t.Type == hclsyntax.TokenNewline || t.Type == hclsyntax.TokenComment:
			continue
		case t.Type != hclsyntax.TokenIdent:
			return 0
		}
		switch string(t.Bytes) {
		case "if", "for":
			return 1
		case "endif", "endfor":
			return -1
		}
		return 0
	}
	return 0
}

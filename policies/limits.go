package policies

import (
	"fmt"
	"math/big"
	"regexp"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/aim-control/aimlock/internal/hclsafe"
)

// What a set of policies may be at most. The parser and the evaluator recurse,
// so that depth and length of an expression must be bounded before they run.
const (
	maxFileSize  = 1 << 20
	maxTotalSize = 8 << 20
	maxFiles     = 1000
	maxRules     = 20000
	maxDepth     = 64
	maxTokens    = 8192 // of one argument
	maxConsts    = 1000 // locals and variables
)

// hugeNumber is a number, or a text that would be converted to one, whose
// digits would fill the memory when it is written out.
var hugeNumber = regexp.MustCompile(`^[0-9.]*[eE][+-]?[0-9]{4}`)

// maxExponent bounds the numbers that sources give, in powers of two.
const maxExponent = 4096

// sane reports whether the number v can be written out.
func sane(v *big.Float) bool {
	return !v.IsInf() && v.MantExp(nil) < maxExponent && v.MantExp(nil) > -maxExponent
}

// checkShape refuses what would exhaust the parser's stack.
func checkShape(tokens hclsyntax.Tokens) hcl.Diagnostics {
	var open []hclsyntax.TokenType
	count := 0
	fail := func(rng hcl.Range, summary, detail string, args ...any) hcl.Diagnostics {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(detail, args...), Subject: &rng}}
	}
	for _, t := range tokens {
		count++
		switch t.Type {
		case hclsyntax.TokenNumberLit, hclsyntax.TokenQuotedLit, hclsyntax.TokenStringLit:
			if hugeNumber.Match(t.Bytes) {
				return fail(t.Range, "Number too large", "An exponent of more than three digits is not sensible.")
			}
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote,
			hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			open = append(open, t.Type)
			if len(open) > maxDepth {
				return fail(t.Range, "Nested too deeply", "Brackets, blocks and quotes are nested more than %d deep here.", maxDepth)
			}
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote,
			hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
		case hclsyntax.TokenNewline, hclsyntax.TokenComment:
			if len(open) == 0 || open[len(open)-1] == hclsyntax.TokenOBrace {
				count = 0
			}
		}
		if count > maxTokens {
			return fail(t.Range, "Argument too long", "This argument has more than %d words and signs. Split it up.", maxTokens)
		}
	}
	return hclsafe.Check(tokens)
}

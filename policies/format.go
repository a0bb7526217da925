package policies

import (
	"bytes"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/aim-control/aimlock/internal/hclsafe"
)

// Format returns src in the canonical layout: two spaces of indentation, equal
// signs in line, no spaces at the ends of lines, one line break at the end of
// the file and at most one empty line in a row. Only the syntax must be right.
// Formatting what is formatted changes nothing.
func Format(filename string, src []byte) ([]byte, hcl.Diagnostics) {
	if len(src) > maxFileSize {
		var l loader
		l.add(source{name: filename, bytes: src})
		return nil, l.diags
	}
	if diags := hclsafe.CheckText(src, filename); diags.HasErrors() {
		return nil, diags
	}
	tokens, _ := hclsyntax.LexConfig(src, filename, hcl.Pos{Line: 1, Column: 1})
	if diags := checkShape(tokens); diags.HasErrors() {
		return nil, diags
	}
	if _, diags := hclsyntax.ParseConfig(src, filename, hcl.Pos{Line: 1, Column: 1}); diags.HasErrors() {
		for i, d := range diags {
			diags[i] = explainSyntax(d, src)
		}
		return nil, diags
	}
	src = bytes.TrimPrefix(src, []byte("\xef\xbb\xbf"))
	out := hclwrite.Format(bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n")))
	return squeeze(out, filename), nil
}

// squeeze removes empty lines that are one too many, but not those of a text
// over several lines.
func squeeze(src []byte, filename string) []byte {
	tokens, _ := hclsyntax.LexConfig(src, filename, hcl.Pos{Line: 1, Column: 1})
	var out bytes.Buffer
	at, breaks, started := 0, 0, false
	for _, t := range tokens {
		if t.Type == hclsyntax.TokenNewline {
			breaks++
			if breaks <= 2 && started {
				out.WriteByte('\n')
			}
			at = t.Range.End.Byte
			continue
		}
		if t.Type == hclsyntax.TokenEOF {
			break
		}
		between := src[at:t.Range.Start.Byte]
		out.Write(between)
		out.Write(t.Bytes)
		at, started = t.Range.End.Byte, true
		breaks = 0
		if n := len(t.Bytes); n > 0 && t.Bytes[n-1] == '\n' {
			breaks = 1
		}
	}
	text := bytes.TrimRight(out.Bytes(), "\n")
	if len(text) == 0 {
		return nil
	}
	return append(text, '\n')
}

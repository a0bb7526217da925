package policies

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// maxShown bounds how many diagnostics are printed: each one scans its file.
const maxShown = 50

// maxLine bounds a line of a file that is printed, in bytes.
const maxLine = 4096

// longLine says whether a line that d is about is too long to be printed.
func longLine(files map[string]*hcl.File, d *hcl.Diagnostic) bool {
	if d.Subject == nil || files[d.Subject.Filename] == nil {
		return false
	}
	src, at := files[d.Subject.Filename].Bytes, *d.Subject
	if d.Context != nil {
		at = hcl.RangeOver(at, *d.Context)
	}
	start, end := min(max(at.Start.Byte, 0), len(src)), min(max(at.End.Byte, 0), len(src))
	start = bytes.LastIndexByte(src[:start], '\n') + 1
	if n := bytes.IndexByte(src[max(start, end):], '\n'); n >= 0 {
		end = max(start, end) + n
	} else {
		end = len(src)
	}
	for line := range bytes.SplitSeq(src[start:end], []byte("\n")) {
		if len(line) > maxLine {
			return true
		}
	}
	return false
}

// WriteDiagnostics prints diagnostics with the lines that they are about, for a
// terminal of the given width (0: no wrapping). What a file holds cannot
// control the terminal.
func WriteDiagnostics(w io.Writer, files map[string]*hcl.File, diags hcl.Diagnostics, width uint, color bool) {
	diags = distinct(diags)
	shown := diags
	if len(shown) > maxShown {
		shown = shown[:maxShown]
	}
	var b bytes.Buffer
	dw := hcl.NewDiagnosticTextWriter(&b, files, width, color)
	for _, d := range shown {
		if d.Subject == nil {
			_, _ = fmt.Fprintln(&b, oneLine(d))
			continue
		}
		w := dw
		if longLine(files, d) {
			w = hcl.NewDiagnosticTextWriter(&b, nil, width, color)
		}
		_ = w.WriteDiagnostic(d) // a buffer does not fail
	}
	if n := len(diags) - len(shown); n > 0 {
		_, _ = fmt.Fprintf(&b, "… and %d more.\n", n)
	}
	rest := b.Bytes()
	var out []byte
	for color && len(rest) > 0 {
		at := colorCode.FindIndex(rest)
		if at == nil {
			break
		}
		out = append(out, cleanBytes(rest[:at[0]])...)
		out = append(out, rest[at[0]:at[1]]...)
		rest = rest[at[1]:]
	}
	_, _ = w.Write(append(out, cleanBytes(rest)...))
}

// oneLine is a diagnostic of no place in a file, such as of one that cannot be read:
// it has nothing to quote, and is written as any other error.
func oneLine(d *hcl.Diagnostic) string {
	kind := "Error"
	if d.Severity == hcl.DiagWarning {
		kind = "Warning"
	}
	words := kind + ": " + d.Summary
	if d.Detail != "" {
		words += ": " + strings.TrimSuffix(d.Detail, ".")
	}
	return strings.Join(strings.Fields(words), " ")
}

// distinct leaves out what was said before of the same line: a slip of paste brings
// one message for each of its characters.
func distinct(diags hcl.Diagnostics) hcl.Diagnostics {
	type said struct {
		severity                  hcl.DiagnosticSeverity
		summary, detail, filename string
		line                      int
	}
	seen := map[said]bool{}
	var out hcl.Diagnostics
	for _, d := range diags {
		s := said{severity: d.Severity, summary: d.Summary, detail: d.Detail}
		if d.Subject != nil {
			s.filename, s.line = d.Subject.Filename, d.Subject.Start.Line
		}
		if d.Subject == nil || !seen[s] {
			out = append(out, d)
		}
		seen[s] = true
	}
	return out
}

// colorCode is what HCL writes where it was asked for colour.
var colorCode = regexp.MustCompile(`\x1b\[(31|33|0|1;4)m`)

// cleanBytes replaces control characters, and what turns the direction of
// writing, by question marks.
func cleanBytes(src []byte) []byte {
	var out []byte
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		bad := r < 0x20 && r != '\n' && r != '\t' && r != '\r' || r >= 0x7f && r < 0xa0 || r == 0x061c ||
			r >= 0x200e && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
		if bad {
			if out == nil {
				out = append([]byte(nil), src...)
			}
			for j := i; j < i+n; j++ {
				out[j] = '?'
			}
		}
		i += n
	}
	if out == nil {
		return src
	}
	return out
}

// DiagnosticJSON is a diagnostic in the shape in which HashiCorp's tools print
// theirs, such as `terraform validate -json`.
type DiagnosticJSON struct {
	Severity string     `json:"severity"` // error, warning
	Summary  string     `json:"summary"`
	Detail   string     `json:"detail"`
	Range    *RangeJSON `json:"range,omitempty"`
	// Snippet is the first line that the diagnostic is about.
	Snippet *SnippetJSON `json:"snippet,omitempty"`
}

// RangeJSON is a range of a file. Lines and columns count from 1, bytes from 0.
type RangeJSON struct {
	Filename string  `json:"filename"`
	Start    PosJSON `json:"start"`
	End      PosJSON `json:"end"`
}

// PosJSON is a place in a file.
type PosJSON struct {
	Line   int `json:"line"`
	Column int `json:"column"`
	Byte   int `json:"byte"`
}

// SnippetJSON is a line of a file. The highlight is in bytes of Code.
type SnippetJSON struct {
	// Context is the block around it, such as `policy "p"`; null at the top of
	// a file.
	Context              *string `json:"context"`
	Code                 string  `json:"code"`
	StartLine            int     `json:"start_line"`
	HighlightStartOffset int     `json:"highlight_start_offset"`
	HighlightEndOffset   int     `json:"highlight_end_offset"`
}

// DiagnosticsJSON renders diagnostics for a machine.
func DiagnosticsJSON(files map[string]*hcl.File, diags hcl.Diagnostics) []DiagnosticJSON {
	out := make([]DiagnosticJSON, 0, len(diags))
	for _, d := range diags {
		j := DiagnosticJSON{Severity: "error", Summary: d.Summary, Detail: d.Detail}
		if d.Severity == hcl.DiagWarning {
			j.Severity = "warning"
		}
		if r := d.Subject; r != nil {
			j.Range = &RangeJSON{Filename: r.Filename,
				Start: PosJSON{Line: r.Start.Line, Column: r.Start.Column, Byte: r.Start.Byte},
				End:   PosJSON{Line: r.End.Line, Column: r.End.Column, Byte: r.End.Byte}}
			j.Snippet = snippet(files[r.Filename], *r)
		}
		out = append(out, j)
	}
	return out
}

// maxSnippet bounds the line of a snippet, in bytes.
const maxSnippet = 500

func snippet(f *hcl.File, r hcl.Range) *SnippetJSON {
	if f == nil || r.Start.Byte < 0 || r.Start.Byte > len(f.Bytes) {
		return nil
	}
	start, end := r.Start.Byte, r.Start.Byte
	for start > 0 && f.Bytes[start-1] != '\n' && end-start < maxSnippet {
		start--
	}
	for end < len(f.Bytes) && f.Bytes[end] != '\n' && end-start < maxSnippet {
		end++
	}
	out := &SnippetJSON{
		// Each byte that is replaced is replaced by one: offsets stay right.
		Code:                 string(cleanBytes(bytes.TrimSuffix(f.Bytes[start:end], []byte("\r")))),
		StartLine:            r.Start.Line,
		HighlightStartOffset: r.Start.Byte - start,
	}
	out.HighlightEndOffset = max(out.HighlightStartOffset, min(r.End.Byte-start, len(out.Code)))
	if block := blockAt(f, r.Start.Byte); block != "" {
		out.Context = &block
	}
	return out
}

// blockAt is the outermost block around a place, as it is written.
func blockAt(f *hcl.File, at int) string {
	body, ok := f.Body.(*hclsyntax.Body)
	if !ok {
		return ""
	}
	for _, b := range body.Blocks {
		if at >= b.TypeRange.Start.Byte && at <= b.CloseBraceRange.End.Byte {
			var out strings.Builder
			out.WriteString(b.Type)
			for _, l := range b.Labels {
				fmt.Fprintf(&out, " %q", clip(printable(l), 100))
			}
			return out.String()
		}
	}
	return ""
}

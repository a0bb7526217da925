package policies

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
)

// maxShown bounds how many diagnostics are printed: each one scans its file.
const maxShown = 50

// WriteDiagnostics prints diagnostics with the lines that they are about, for a
// terminal of the given width (0: no wrapping). What a file holds cannot
// control the terminal.
func WriteDiagnostics(w io.Writer, files map[string]*hcl.File, diags hcl.Diagnostics, width uint, color bool) {
	shown := diags
	if len(shown) > maxShown {
		shown = shown[:maxShown]
	}
	var b bytes.Buffer
	dw := hcl.NewDiagnosticTextWriter(&b, files, width, color)
	for _, d := range shown {
		_ = dw.WriteDiagnostic(d) // a buffer does not fail
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

// DiagnosticJSON is a diagnostic as `policy check -json` prints it.
type DiagnosticJSON struct {
	Severity string     `json:"severity"` // error, warning
	Summary  string     `json:"summary"`
	Detail   string     `json:"detail"`
	Range    *RangeJSON `json:"range"`
	// Snippet is the first line that the diagnostic is about.
	Snippet string `json:"snippet,omitempty"`
}

// RangeJSON is a range of a file. Lines and columns count from 1.
type RangeJSON struct {
	File  string  `json:"file"`
	Start PosJSON `json:"start"`
	End   PosJSON `json:"end"`
}

// PosJSON is a place in a file.
type PosJSON struct {
	Line   int `json:"line"`
	Column int `json:"column"`
	Byte   int `json:"byte"`
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
			j.Range = &RangeJSON{File: r.Filename,
				Start: PosJSON{Line: r.Start.Line, Column: r.Start.Column, Byte: r.Start.Byte},
				End:   PosJSON{Line: r.End.Line, Column: r.End.Column, Byte: r.End.Byte}}
			if f := files[r.Filename]; f != nil {
				j.Snippet = lineAt(f.Bytes, r.Start.Byte)
			}
		}
		out = append(out, j)
	}
	return out
}

func lineAt(src []byte, at int) string {
	if at < 0 || at > len(src) {
		return ""
	}
	start, end := at, at
	for start > 0 && src[start-1] != '\n' {
		start--
	}
	for end < len(src) && src[end] != '\n' && end-start < 500 {
		end++
	}
	return string(cleanBytes(src[start:end]))
}

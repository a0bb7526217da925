package policies

import (
	"bytes"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
)

func TestALongLineIsNotPrinted(t *testing.T) {
	for n, shown := range map[int]bool{100: true, 200_000: false} {
		long := "x = \"" + strings.Repeat("y", n) + "\"\n"
		src := []byte("policy \"p\" {\n" + long + "}\n")
		_, diags := Parse("p.hcl", src)
		var b bytes.Buffer
		WriteDiagnostics(&b, map[string]*hcl.File{"p.hcl": {Bytes: src}}, diags, 0, false)
		out := b.String()
		if !strings.Contains(out, "p.hcl line 2") || strings.Contains(out, "yyyy") != shown || len(out) > 10_000 {
			t.Errorf("a line of %d bytes: %d bytes printed: %.300s", n, len(out), out)
		}
	}
}

// A slip of paste is said once a line, and not for each of its characters.
func TestTheSameIsSaidOnce(t *testing.T) {
	src := []byte("policy \"p\" {\n  locks = [‘a‘, ‘b‘]\n  x = ‘c‘\n}\n")
	_, diags := Parse("p.hcl", src)
	count := func(diags hcl.Diagnostics, line int) (n int) {
		for _, d := range diags {
			if d.Summary == "Invalid character" && d.Subject.Start.Line == line {
				n++
			}
		}
		return n
	}
	if count(diags, 2) < 2 {
		t.Fatalf("HCL says it once: %v", diags)
	}
	var b bytes.Buffer
	WriteDiagnostics(&b, map[string]*hcl.File{"p.hcl": {Bytes: src}}, diags, 0, false)
	if n := strings.Count(b.String(), "Invalid character"); n != count(distinct(diags), 2)+count(distinct(diags), 3) || count(distinct(diags), 2) != 1 {
		t.Errorf("it is said %d times:\n%s", n, b.String())
	}
}

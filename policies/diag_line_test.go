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

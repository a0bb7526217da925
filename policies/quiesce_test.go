package policies

import (
	"strings"
	"testing"
)

func TestAQuiesceOfAPolicyIsCapped(t *testing.T) {
	for quiesce, refused := range map[string]bool{"1h": false, "61m": true} {
		_, diags := Parse("p.hcl", []byte("policy \"p\" {\n  locks = [\"*\"]\n  break {\n    quiesce = \""+quiesce+"\"\n  }\n}\n"))
		got := false
		for _, d := range diags {
			got = got || strings.Contains(d.Summary, "Quiesce is too long")
		}
		if got != refused {
			t.Errorf("%s: %v", quiesce, diags.Errs())
		}
	}
}

package policies

import (
	"strings"
	"testing"
)

func TestAQuiesceOfAPolicyIsCapped(t *testing.T) {
	for quiesce, refused := range map[string]bool{"1h": false, "61m": true} {
		_, diags := Parse("p.hcl", []byte("policy \"p\" {\n  match = \"*\"\n  break {\n    quiesce = \""+quiesce+"\"\n  }\n}\n"))
		if got := strings.Contains(diags.Error(), "Quiesce is too long"); got != refused {
			t.Errorf("%s: %v", quiesce, diags)
		}
	}
}

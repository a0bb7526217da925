package policies

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Every function stands in docs/policies.md with an example that is right.
func TestDocsOfFunctions(t *testing.T) {
	src, err := os.ReadFile("../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [^|]+ \\| `(.+)` \\|$").FindAllStringSubmatch(string(src), -1) {
		name, example := m[1], m[2]
		if _, ok := functions[name]; !ok {
			t.Errorf("%q is documented and is no function", name)
			continue
		}
		documented[name] = true
		if !strings.Contains(example, name+"(") {
			t.Errorf("the example of %s does not call it: %s", name, example)
		}
		_, diags := Parse("docs", []byte("policy \"p\" {\n locks = [\"**\"]\n file = \"/run/lock/${lock.name}\"\n hot \"r\" {\n  when = "+example+"\n }\n}"))
		if len(diags) > 0 {
			t.Errorf("%s: %s", example, diags)
		}
	}
	for name := range functions {
		if !documented[name] {
			t.Errorf("docs/policies.md has no row for %s", name)
		}
	}
}

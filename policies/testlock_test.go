package policies

import (
	"fmt"
	"testing"
)

// The lock of a test block is named as on the command line: with a slash it is a whole
// key, with one at its start or without.
func TestLockOfATestBlock(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]LockID{
		"a.conf":             {Name: "a.conf", Key: "aimlock/locks/a.conf", Own: true},
		"aimlock/locks/a":    {Name: "a", Key: "aimlock/locks/a", Own: true},
		"ops/a/b":            {Name: "ops/a/b", Key: "ops/a/b"},
		"/ops/a/b":           {Name: "ops/a/b", Key: "ops/a/b"},
		"/terraform/x/.lock": {Name: "terraform/x/.lock", Key: "terraform/x/.lock"},
	} {
		set, diags := Parse("test.hcl", fmt.Appendf(nil, "policy \"p\" {\n  locks = [\"**\"]\n}\ntest \"t\" {\n  lock = %q\n  facts = {}\n  expect {\n    state = \"HELD\"\n  }\n}\n", name))
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		if got := set.Tests[0].Lock; got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

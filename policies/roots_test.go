package policies

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func setOf(t interface{ Fatal(...any) }, patterns ...string) *Set {
	quoted := make([]string, len(patterns))
	for i, p := range patterns {
		quoted[i] = fmt.Sprintf("%q", p)
	}
	set, diags := Parse("p.hcl", []byte("policy \"p\" {\n locks = ["+strings.Join(quoted, ", ")+"]\n}"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return set
}

func TestRoots(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		patterns []string
		want     []Root
	}{
		{[]string{"**"}, []Root{{true, ""}}},
		{[]string{"db-*", "web-?", "db-main"}, []Root{{true, "db-"}, {true, "web-"}}},
		{[]string{"/ops/**", "/ops/deploy/*", "db"}, []Root{{true, "db"}, {false, "ops/"}}},
		{[]string{"/opsx/a", "/ops/b*c"}, []Root{{false, "ops/b"}, {false, "opsx/a"}}},
		{[]string{"/**", "/ops/x", "a*"}, []Root{{true, "a"}, {false, ""}}},
	} {
		if diff := cmp.Diff(tc.want, setOf(t, tc.patterns...).Roots()); diff != "" {
			t.Errorf("%q:\n%s", tc.patterns, diff)
		}
	}
}

// Every lock that a policy is for stands below a root.
func TestRootsCover(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`/[ab/]{0,2}[ab*?]{1,4}[ab/]{0,2}`).Filter(func(s string) bool { return !strings.Contains(s, "***") })
		set := setOf(t, "x", pattern.Draw(t, "one"), pattern.Draw(t, "two"))
		key := rapid.StringMatching(`[ab/]{1,8}`).Draw(t, "key")
		if set.For(LockID{Name: key, Key: key}) == nil {
			return
		}
		for _, r := range set.Roots() {
			if !r.Own && strings.HasPrefix(key, r.Prefix) {
				return
			}
		}
		t.Fatalf("%s stands below none of %v", key, set.Roots())
	})
}

package acl_test

import (
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hclparse"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/keys"
)

// All roles' rules are HCL without a place left open, whatever the names.
func TestRules(t *testing.T) {
	t.Parallel()
	roles, err := acl.Roles()
	if err != nil {
		t.Fatal(err)
	}
	if len(roles) < 7 {
		t.Fatalf("%d roles", len(roles))
	}
	for _, r := range roles {
		if r.About == "" || len(r.About) > 160 || strings.Contains(r.About, "#") {
			t.Errorf("%s: about %q", r.Name, r.About)
		}
		if _, err := r.Rules(acl.Params{Prefix: "ops/aim/"}); (err != nil) != (r.Flags() != "") {
			t.Errorf("%s: flags %q, and without them: %v", r.Name, r.Flags(), err)
		}
		p := acl.Params{Prefix: "ops/aim/", Node: "n 1", ConsulNode: `host"1`, Configs: []string{"a.conf", `b"c`}, Locks: []string{"job"}}
		text, err := r.Rules(p)
		if err != nil {
			t.Errorf("%s: %v", r.Name, err)
			continue
		}
		for _, place := range []string{"PREFIX", "NODE", "CONFIG", "BUCKET", "LOCK", "# each", "# end"} {
			if strings.Contains(text, place) {
				t.Errorf("%s: %s is not filled in:\n%s", r.Name, place, text)
			}
		}
		if _, diags := hclparse.NewParser().ParseHCL([]byte(text), r.Name); diags.HasErrors() {
			t.Errorf("%s: %v\n%s", r.Name, diags, text)
		}
		if r.Configs {
			for _, key := range []string{keys.Prefix("ops/aim/").Actual("a.conf", "n 1"), keys.Prefix("ops/aim/").Desired(`b"c`, "n 1"), keys.Prefix("ops/aim/").Observed("job", `host"1`)} {
				if !strings.Contains(text, `key "`+key+`"`) {
					t.Errorf("%s has no rule for %s:\n%s", r.Name, key, text)
				}
			}
			if _, err := r.Rules(acl.Params{Prefix: "a/", Node: "n"}); err == nil {
				t.Errorf("%s needs no config", r.Name)
			}
			if _, err := r.Rules(acl.Params{Prefix: "a/", Configs: []string{"c"}}); err == nil {
				t.Errorf("%s needs no node", r.Name)
			}
		}
		if r.Locks {
			if _, err := r.Rules(acl.Params{Prefix: "a/"}); err == nil {
				t.Errorf("%s needs no lock", r.Name)
			}
		}
		if _, err := r.Rules(acl.Params{Prefix: "a/", Node: "..", Configs: []string{"c"}, Locks: []string{"l"}}); err == nil {
			t.Errorf("%s takes .. for a node", r.Name)
		}
	}
}

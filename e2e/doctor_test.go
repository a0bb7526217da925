package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/internal/doctor"
)

// What doctor asks Consul about a token's rights agrees with the rules that it was
// made with, for each role: nothing is missing, and of rules with one block left
// out, just that one.
func TestDoctorKnowsRights(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	roles, err := acl.Roles()
	if err != nil {
		t.Fatal(err)
	}
	// look gives what is said to be missing, and with which exit code.
	look := func(role, token string) (missing []string, code int) {
		r := harness.Run(t, cmdLimit, harness.Spec{
			Path: harness.Aimlock.Path(t),
			Args: []string{"doctor", "-json", "-role", role, "-node", "n1", "-consul-node", g.consul.Name, "-config-name", fleetConfig, "-lock", "job", "-lock", "night"},
			Env:  []string{"CONSUL_HTTP_ADDR=" + g.consul.Addr, "CONSUL_HTTP_TOKEN=" + token, "AIMLOCK_PREFIX=" + string(g.fleet.prefix)},
		})
		var all []doctor.Finding
		if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
			t.Fatalf("%s: %v: %s %s", role, err, r.Stdout, r.Stderr)
		}
		asked := false
		for _, f := range all {
			if f.Check != "rights" {
				continue
			}
			asked = true
			if f.Result == doctor.Failed {
				missing = append(missing, f.Detail+" "+f.Mend)
			}
		}
		if !asked {
			t.Errorf("%s: the rights were not looked at: %s", role, r.Stdout)
		}
		return missing, r.Code
	}
	for _, r := range roles {
		if got, code := look(r.Name, g.tokens[r.Name]); len(got) != 0 || code != 0 {
			t.Errorf("%s: with its own rules the token lacks %q, and the exit code is %d", r.Name, got, code)
		}
	}
	// Without the right to make sessions.
	rules := g.rules["orchestrator"]
	less := strings.Replace(rules, "session_prefix \"\" {\n  policy = \"write\"", "session_prefix \"\" {\n  policy = \"read\"", 1)
	if less == rules {
		t.Fatalf("the orchestrator has no such rule:\n%s", rules)
	}
	got, code := look("orchestrator", g.token("less", less))
	if len(got) != 1 || code != 1 || !strings.Contains(got[0], `session_prefix "" { policy = "write" }`) {
		t.Errorf("of a token that may make no session it says %q", got)
	}
	if got, code := look("orchestrator", g.tokens["observer"]); len(got) != 1 || code != 1 || !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "aimlock acl orchestrator") }) {
		t.Errorf("of an observer's token it says %q", got)
	}
}

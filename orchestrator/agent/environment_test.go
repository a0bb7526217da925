package agent

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

// The environment of commands holds no token of Consul.
func TestEnvironment(t *testing.T) {
	t.Setenv("CONSUL_HTTP_TOKEN", "secret")
	t.Setenv("AIMLOCK_CONFIG", "/etc/aimlock.hcl")
	r := newRig(t)
	d := entry(order(1, 1), "r1", "one\n")
	d.Validate = sh("env; exit 1")
	out := r.must(t, d, "one\n", records.ResultFailed)
	for _, bad := range []string{"CONSUL", "secret", "AIMLOCK_CONFIG="} {
		if strings.Contains(out.Report.Output, bad) {
			t.Errorf("%s in the environment:\n%s", bad, out.Report.Output)
		}
	}
	if !strings.Contains(out.Report.Output, "AIMLOCK_TOKEN=1\n") {
		t.Errorf("environment:\n%s", out.Report.Output)
	}
}

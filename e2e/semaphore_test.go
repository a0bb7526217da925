package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
)

const slotPolicy = `policy "batch" {
  locks = ["/ops/batch/*"]

  hot "in-the-way" {
    when = session.exists
  }

  break {
    approval = "auto"

    STEPS
  }
}
`

// Semaphores of the real consul lock -n: shown with slots, waiting and stale
// contenders; a slot is broken by destroy_session of an applied policy, and by
// nothing else.
func TestSemaphoreOfConsulLock(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	dir := t.TempDir()
	policy := func(name, steps string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.Replace(slotPolicy, "STEPS", steps, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	taking := policy("take.hcl", "step \"take\" {\n    }")
	ending := policy("destroy.hcl", "step \"destroy_session\" {\n    }")
	aimlock := func(args ...string) harness.Result {
		return harness.Run(t, time.Minute, harness.Spec{Path: harness.Aimlock.Path(t), Args: args, Env: c.Env()})
	}
	var contenders []*harness.Process
	contend := func() {
		contenders = append(contenders, harness.Start(t, harness.Spec{
			Path: harness.ConsulBin.Path(t), Args: []string{"lock", "-n", "2", "ops/batch", "sleep", "300"}, Env: c.Env(),
		}))
	}
	shows := func(what string, words ...string) {
		t.Helper()
		var out string
		harness.Eventually(t, time.Minute, what, func() bool {
			out = aimlock("lock", "status", "-now", "ops/batch/.lock").Stdout
			for _, w := range words {
				if !strings.Contains(out, w) {
					return false
				}
			}
			return true
		})
	}
	contend()
	contend()
	shows("two holders", "2 of 2 slots held", "Consul lock for 'sleep 300' at 'ops/batch'")
	contend()
	shows("one who waits", "2 of 2 slots held, 1 waiting")
	if out := aimlock("lock", "list").Stdout; strings.Count(out, "ops/batch/") != 1 {
		t.Errorf("a semaphore is one line:\n%s", out)
	}

	if out := aimlock("lock", "explain", "ops/batch/.lock").Stdout; !strings.Contains(out, "it is a semaphore, of which 2 slots are held") {
		t.Errorf("explain:\n%s", out)
	}
	if r := aimlock("lock", "request", "ops/batch/.lock"); r.Code != 1 || !strings.Contains(r.Stderr, "name the slot of one, such as ops/batch/") {
		t.Errorf("request: code %d, %s", r.Code, r.Stderr)
	}

	slot := aSlot(t, c.Client())
	for _, tc := range []struct {
		policy, lock, refusal string
		code                  int
	}{
		{ending, slot, "only an applied policy may break it", 5},
		{taking, slot, "take does not fit a slot", 5},
		{ending, "ops/batch/.lock", "each of its slots is broken by itself", 5},
	} {
		if r := aimlock("lock", "break", "-policy", tc.policy, tc.lock); r.Code != tc.code || !strings.Contains(r.Stderr, tc.refusal) {
			t.Errorf("break %s by %s: code %d, %s", tc.lock, filepath.Base(tc.policy), r.Code, r.Stderr)
		}
	}
	if r := aimlock("policy", "apply", ending); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	if r := aimlock("lock", "break", "-policy", ending, slot); r.Code != 0 {
		t.Fatalf("code %d: %s", r.Code, r.Stderr)
	}
	p, _, err := c.Client().KV().Get(slot, nil)
	if err != nil || p != nil && p.Session != "" {
		t.Errorf("after its break the slot is %+v, %v", p, err)
	}
	shows("the one who waited", "2 of 2 slots held")

	// Whoever dies stays in the list until the next contender comes.
	for _, p := range contenders {
		p.KillGroup()
	}
	shows("stale entries", "is in the list of holders, and is gone", "0 of 2 slots held")
}

// aSlot is the key of a contender that holds a slot.
func aSlot(t *testing.T, c *api.Client) string {
	t.Helper()
	list, _, err := c.KV().List("ops/batch/", nil)
	if err != nil {
		t.Fatal(err)
	}
	value := ""
	for _, p := range list {
		if strings.HasSuffix(p.Key, "/.lock") {
			value = string(p.Value)
		}
	}
	for _, p := range list {
		if p.Session != "" && strings.Contains(value, p.Session) {
			return p.Key
		}
	}
	t.Fatalf("no slot in %s", value)
	return ""
}

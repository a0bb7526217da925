package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// drifted is what `rollout status -json` and `rollout tick -json` say of files
// that somebody else changed.
type drifted struct {
	Drifted []struct {
		Node   string `json:"node"`
		Config string `json:"config"`
	} `json:"drifted"`
}

// TestDriftIsReported: what somebody changed by hand is found, named by status
// and by the next tick, and left alone, until the next rollout.
func TestDriftIsReported(t *testing.T) {
	t.Parallel()
	f := newFleet(t, harness.StartConsul(t, manyConns), "drift", 2, "")
	f.rollOut("one\n")
	hand(t, f.file(f.nodes[1]), "by hand\n")
	harness.Eventually(t, fleetLimit, "status names the node", func() bool {
		var d drifted
		f.json(&d, f.aimlock("rollout", "status", "-json", "app"))
		return len(d.Drifted) == 1 && d.Drifted[0].Node == f.nodes[1] && d.Drifted[0].Config == fleetConfig
	})
	r := harness.Run(t, fleetLimit, f.aimlock("rollout", "tick", "rollout.hcl"))
	if r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, f.nodes[1]) {
		t.Errorf("a tick says nothing of it: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	f.has(f.nodes[1], "by hand\n")
	f.rollOut("two\n")
	harness.Eventually(t, fleetLimit, "nothing drifts any more", func() bool {
		var d drifted
		f.json(&d, f.aimlock("rollout", "status", "-json", "app"))
		return len(d.Drifted) == 0
	})
}

// TestDriftIsPutBack: with drift = "restore" the file stands again, under the
// same order, whether it was changed, replaced or removed.
func TestDriftIsPutBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, harness.StartConsul(t, manyConns), "heal", 1, `drift = "restore"`)
	f.rollOut("one\n")
	node := f.nodes[0]
	order := f.order(node)
	for _, change := range []struct {
		name string
		do   func(path string) error
	}{
		{"changed", func(path string) error { return os.WriteFile(path, []byte("by hand\n"), 0o600) }},
		{"removed", os.Remove},
	} {
		if err := change.do(f.file(node)); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, fleetLimit, change.name+": the file is put back", func() bool {
			b, err := os.ReadFile(f.file(node))
			return err == nil && string(b) == "one\n"
		})
	}
	if o := f.order(node); o != order {
		t.Errorf("it was put back by order %s, and the rollout's is %s", o, order)
	}
}

// hand replaces a file as an editor does.
func hand(t *testing.T, path, text string) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), ".edited")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

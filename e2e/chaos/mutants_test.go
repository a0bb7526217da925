//go:build mutants

package chaos

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// mutants are guards of the protocol, each left out, and the faults that show on a
// real cluster that it is gone.
var mutants = []struct {
	name, file, old, new string
	faults               string
	rounds               string
}{
	{
		name:   "self-fencing",
		file:   "orchestrator/locksmith/session.go",
		old:    "	return left - LeaseMargin\n",
		new:    "	return max(left, time.Minute)\n",
		faults: "^holder's machine: (cut off|heard by nobody)$", rounds: "6",
	},
	{
		name:   "the durable quiesce of a break",
		file:   "orchestrator/locksmith/ending.go",
		old:    "	ops = append(ops, b.c.setFence(t.v.Snapshot, e.fence)...)\n",
		new:    "	ops = append(ops, consulkv.Delete(b.c.keys.Fence(name)))\n",
		faults: "^holder's machine: paused, for less", rounds: "6",
	},
	{
		name:   "the pause that a break owes is served",
		file:   "orchestrator/locksmith/wait.go",
		old:    "	if owe <= 0 {\n",
		new:    "	if owe <= 0 || owe > 0 {\n",
		faults: "^holder's machine: paused, for less", rounds: "6",
	},
	{
		name:   "recovery raises the epoch",
		file:   "orchestrator/locksmith/recover.go",
		old:    "	r.out.Epoch = max(r.out.Epoch+1, req.Epoch)\n",
		new:    "	r.out.Epoch = max(r.out.Epoch, req.Epoch)\n",
		faults: "^snapshot", rounds: "2",
	},
}

// TestMutants builds each mutant and sees the cluster's judge notice. The seed is
// of no matter: the faults are those that are about the guard.
func TestMutants(t *testing.T) {
	root := harness.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			bin := filepath.Join(t.TempDir(), "aimlock")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
			defer cancel()
			build := exec.CommandContext(ctx, "go", "build", "-overlay", harness.Overlay(t, m.file, m.old, m.new), "-o", bin, ".")
			build.Dir = root
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("the mutant does not build: %v\n%s", err, out)
			}
			c := exec.CommandContext(ctx, self, "-test.run=^TestChaos$", "-test.v", "-test.timeout=0", "-rounds", m.rounds, "-faults", m.faults)
			// The namespaces of this test are no matter to that one: it makes its own.
			c.Env = append(os.Environ(), "AIMLOCK_BIN="+bin)
			// What it keeps is of no use to anybody.
			c.Env = append(c.Env, "TMPDIR="+t.TempDir())
			out, err := c.CombinedOutput()
			text := string(out)
			if err == nil {
				t.Errorf("%s rounds of %s do not notice that it is gone:\n%s", m.rounds, m.faults, text)
				return
			}
			i := strings.Index(text, "VIOLATION: ")
			if i < 0 {
				t.Fatalf("the mutant was not tested: %v\n%s", err, text)
			}
			line, _, _ := strings.Cut(text[i:], "\n")
			t.Logf("noticed: %s", line)
		})
	}
}

// TestStand: the text of each mutant stands in the code.
func TestStand(t *testing.T) {
	for _, m := range mutants {
		harness.Overlay(t, m.file, m.old, m.new)
	}
}

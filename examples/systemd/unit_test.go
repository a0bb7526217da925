package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnits: systemd takes every line of the units, with and without the drop-ins, and
// calls none of them exposed.
func TestUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT RUN: systemd-analyze is not on PATH, so that nobody checks the units")
	}
	units, err := filepath.Glob("*.service")
	if err != nil || len(units) < 3 {
		t.Fatalf("%v %v", units, err)
	}
	for _, unit := range units {
		dir := t.TempDir()
		put(t, filepath.Join(dir, unit), unit)
		check(t, analyze, filepath.Join(dir, unit))
		if timer := strings.TrimSuffix(unit, ".service") + ".timer"; exists(timer) {
			put(t, filepath.Join(dir, timer), timer)
			check(t, analyze, filepath.Join(dir, timer))
		}
	}
	dropIns, err := filepath.Glob("agent-*.conf")
	if err != nil || len(dropIns) < 2 {
		t.Fatalf("%v %v", dropIns, err)
	}
	for _, d := range dropIns {
		dir := t.TempDir()
		unit := filepath.Join(dir, "aimlock-agent.service")
		put(t, unit, "aimlock-agent.service")
		if err := os.Mkdir(unit+".d", 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(unit+".d", d), d)
		check(t, analyze, unit)
	}
	for unit, most := range map[string]string{"aimlock-agent.service": "50", "aimlock-locksmith.service": "20"} {
		// Ten times the figure that it prints.
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--no-pager", "--threshold="+most, unit).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// put writes a unit with a program that every machine has: systemd looks for it.
func put(t *testing.T, to, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, []byte(strings.Replace(string(b), "/usr/bin/aimlock ", "/bin/sh ", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// check fails for everything that systemd says of the unit; what it says of the
// machine's others is not of this one.
func check(t *testing.T, analyze, path string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput()
	if strings.Contains(string(out), filepath.Base(path)) || strings.Contains(string(out), filepath.Dir(path)) || err != nil && len(out) == 0 {
		t.Errorf("%v: %s", err, out)
	}
}

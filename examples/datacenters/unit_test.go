package datacenters_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnit: systemd takes the unit, every line of it.
func TestUnit(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("NOT RUN: systemd-analyze is not on PATH, so that nobody checks aimlock-parent.service")
	}
	const name = "aimlock-parent.service"
	unit, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// It looks for the program too, which is not on every machine.
	text := strings.Replace(string(unit), "\nExecStart=/usr/bin/aimlock ", "\nExecStart=/bin/sh ", 1)
	if text == string(unit) {
		t.Fatal("the unit does not start aimlock")
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// What it says of the machine's other units is not of this one.
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput()
	if strings.Contains(string(out), name) || err != nil && len(out) == 0 {
		t.Errorf("%v: %s", err, out)
	}
}

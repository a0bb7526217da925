package harness

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// Overlay writes what has the Go tool compile a changed file in the place of one of
// the repository (go build -overlay): old, which must stand in it exactly once, is
// replaced by with. It returns the path of the overlay.
func Overlay(t testing.TB, file, old, with string) string {
	t.Helper()
	path := filepath.Join(Root(t), file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(src, []byte(old)); n != 1 {
		t.Fatalf("%s: the text of this mutant stands there %d times, and not once: write the mutant anew for the code as it is now:\n%s", file, n, old)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(changed, bytes.Replace(src, []byte(old), []byte(with), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

package plugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	goplugin "github.com/hashicorp/go-plugin"
)

// TestDocs builds the plugin of docs/plugins.md from the page itself, runs the page's
// test of it, and asks it.
func TestDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/plugins.md")
	if err != nil {
		t.Fatal(err)
	}
	_, src, ok := strings.Cut(string(page), "```go\n")
	src, rest, closed := strings.Cut(src, "```\n")
	_, test, tests := strings.Cut(rest, "```go\n")
	test, _, ends := strings.Cut(test, "```\n")
	if !ok || !closed || !tests || !ends {
		t.Fatal("the page has no program, or no test of it")
	}
	code := 0
	for line := range strings.Lines(src) {
		if strings.TrimSpace(line) != "" {
			code++
		}
	}
	if code > 30 {
		t.Errorf("the page promises 30 lines, and there are %d", code)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(src), 0o600); err != nil {
		t.Fatal(err)
	}
	bin, roster := filepath.Join(dir, "oncall"), filepath.Join(dir, "roster")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, filepath.Join(dir, "main.go")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "main_test.go"), []byte(test), 0o600); err != nil {
		t.Fatal(err)
	}
	suite := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", filepath.Join(dir, "main.go"), filepath.Join(dir, "main_test.go"))
	if out, err := suite.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestConformance/somebody/wanted") {
		t.Errorf("the page's own test: %v\n%s", err, out)
	}
	cfg := ClientConfig(nil)
	cfg.Cmd = exec.Command(bin)
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	c, err := Connect(t.Context(), gp)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := NewConfig(map[string]any{"file": roster})
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.Evidence(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Fact{{Name: "who", Unknown: true, Why: "open " + roster + ": no such file or directory"}, {Name: "who", Value: "ada"}} {
		got, err := e.Observe(t.Context(), &ObserveRequest{Lock: Lock{Name: "l"}})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]Fact{want}, got); d != "" {
			t.Error(d)
		}
		if err := os.WriteFile(roster, []byte("ada\ngrace\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

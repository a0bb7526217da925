package importcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestModule(t *testing.T) {
	all := list(t)
	if !slices.ContainsFunc(all, func(p Package) bool { return p.ImportPath == Module }) {
		t.Fatalf("go list does not show %s: the rules were applied to nothing", Module)
	}
	for _, line := range Check(all) {
		t.Error(line)
	}
}

// TestRules breaks each rule once, so that none of them can be void.
func TestRules(t *testing.T) {
	const consul = "github.com/hashicorp/consul/api"
	for _, tc := range []struct {
		name string
		pkgs []Package
		want string // the beginning of the one line; empty is none
	}{
		{"core imports library", mod("orchestrator", "github.com/hashicorp/hcl/v2"), "orchestrator imports github.com/hashicorp/hcl/v2: the core imports only"},
		{"core imports module", mod("orchestrator", own("internal/keys")), "orchestrator imports " + own("internal/keys") + ": the core imports only"},
		{"core opens a socket", mod("orchestrator", "net/http"), "orchestrator imports net/http: the core reads no clock"},
		{"core draws lots", mod("orchestrator", "math/rand/v2"), "orchestrator imports math/rand/v2: the core reads no clock"},
		{"core formats", mod("orchestrator", "fmt", "time"), ""},
		{"runner may use the network", mod("orchestrator/runner", "net/http", own("internal/consulkv")), ""},
		{"policies ask Consul", mod("policies", consul), "policies imports " + consul + ": policies are judged"},
		{"policies ask Consul by another", append(mod("policies", own("internal/x")), mod("internal/x", consul)...), "policies imports " + own("internal/x") + " imports " + consul},
		{"replay asks Consul", append(mod("internal/replay", own("orchestrator/evidence")), mod("orchestrator/evidence", consul)...), "internal/replay imports " + own("orchestrator/evidence") + " imports " + consul},
		{"SDK reaches in", mod("plugin/plugintest", own("orchestrator")), "plugin/plugintest imports " + own("orchestrator")},
		{"SDK reaches into the host", mod("plugin", own("plugin/host")), "plugin imports " + own("plugin/host")},
		{"host uses the rest", mod("plugin/host", own("orchestrator"), own("plugin")), ""},
		{"command from below", mod("orchestrator/agent", own("command")), "orchestrator/agent imports " + own("command") + ": only main"},
		{"command from main", []Package{{ImportPath: Module, Imports: []string{own("command")}}}, ""},
		{"keys", mod("internal/keys", own("internal/records")), "internal/keys imports"},
		{"records", mod("internal/records", own("orchestrator")), ""},
		{"consulkv", mod("internal/consulkv", own("internal/keys")), "internal/consulkv imports"},
		{"consulkv may show text", mod("internal/consulkv", own("internal/text")), ""},
		{"nomadapi", mod("internal/nomadapi", own("internal/consulkv")), "internal/nomadapi imports"},
		{"text", mod("internal/text", own("internal/keys")), "internal/text imports"},
		{"devconsul", mod("internal/devconsul", own("internal/consulkv")), "internal/devconsul imports"},
		{"runner parses", mod("orchestrator/runner", "github.com/hashicorp/hcl/v2/gohcl"), "orchestrator/runner imports github.com/hashicorp/hcl/v2/gohcl: HCL is read"},
		{"locksmith draws lots", mod("orchestrator/locksmith", "math/rand/v2"), "orchestrator/locksmith imports math/rand/v2: what is left to chance"},
		{"a name is no folder", mod("internal/keysmith", own("orchestrator/runner")), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, std := range []string{"net/http", "math/rand/v2", "fmt", "time"} {
				tc.pkgs = append(tc.pkgs, Package{ImportPath: std, Standard: true})
			}
			got := Check(tc.pkgs)
			switch {
			case tc.want == "" && len(got) > 0:
				t.Errorf("refused: %s", got)
			case tc.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], Module+"/"+tc.want)):
				t.Errorf("got %q\nwant one line that begins with %q", got, tc.want)
			}
		})
	}
}

// TestSleeps holds every package whose tests sleep to testing/synctest, where a sleep is
// no guess at how long something takes.
func TestSleeps(t *testing.T) {
	tests := 0
	// A bubble is often made by a helper in another file of the package.
	bubbles, asleep := map[string]bool{}, map[string][]string{}
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && entry.Name() != "..":
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		tests++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		bubbles[dir] = bubbles[dir] || bubble(file)
		if sleeps(file) {
			asleep[dir] = append(asleep[dir], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, paths := range asleep {
		if !bubbles[dir] {
			t.Errorf("%s sleep in real time: wait for a condition, or run it in a testing/synctest bubble", paths)
		}
	}
	if tests == 0 {
		t.Error("no test file was looked at")
	}
	for src, want := range map[string]bool{
		`package p; import "time"; func f() { time.Sleep(1) }`:                            true,
		`package p; import "time"; func f() { time.After(1) } // time.Sleep would be bad`: false,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "p_test.go", src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if sleeps(file) != want {
			t.Errorf("sleeps is %t for %s", !want, src)
		}
	}
}

func bubble(file *ast.File) bool {
	return slices.ContainsFunc(file.Imports, func(imp *ast.ImportSpec) bool { return imp.Path.Value == `"testing/synctest"` })
}

func sleeps(file *ast.File) bool {
	found := false
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
				found = true
			}
		}
		return !found
	})
	return found
}

func mod(path string, imports ...string) []Package {
	return []Package{{ImportPath: own(path), Imports: imports}}
}

func list(t *testing.T) []Package {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-json=ImportPath,Standard,Imports", Module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}

package importcheck

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestLogFields holds the fields of all logs to the table of docs/logs.md, so that a
// lock, a rollout, a node and a token have one name wherever they are told of.
func TestLogFields(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "logs.md"))
	if err != nil {
		t.Fatal(err)
	}
	known, used := map[string]bool{}, map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\|((?: ?`[a-z_]+`,?)+) \\|").FindAllSubmatch(doc, -1) {
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllSubmatch(row[1], -1) {
			known[string(m[1])] = true
		}
	}
	calls := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "e2e" || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !logs(call) || call.Ellipsis.IsValid() {
				return true
			}
			calls++
			fields := call.Args
			if call.Fun.(*ast.SelectorExpr).Sel.Name != "With" {
				fields = fields[1:]
			}
			at := strings.TrimPrefix(fset.Position(call.Pos()).String(), root+string(filepath.Separator))
			if len(fields)%2 != 0 {
				t.Errorf("%s: a field without a value", at)
			}
			for i := 0; i < len(fields); i += 2 {
				lit, ok := fields[i].(*ast.BasicLit)
				if !ok {
					t.Errorf("%s: a field's name is no literal", at)
					continue
				}
				name, err := strconv.Unquote(lit.Value)
				if err != nil || !known[name] {
					t.Errorf("%s: field %s is not in docs/logs.md", at, lit.Value)
				}
				used[name] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range known {
		if !used[name] {
			t.Errorf("docs/logs.md has the field %s, and no log does", name)
		}
	}
	if calls < 150 {
		t.Errorf("found %d logs: they are not looked for in the right way", calls)
	}
}

// logger is what loggers are called here, and chained are the methods that return one.
var (
	logger  = regexp.MustCompile(`(?i)log(ger)?$`)
	chained = []string{"With", "Named", "about", "marked"}
)

// logs tells whether a call writes a log or gives one fields.
func logs(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Trace", "Debug", "Info", "Warn", "Error", "With"}, sel.Sel.Name) {
		return false
	}
	switch x := sel.X.(type) {
	case *ast.Ident:
		return logger.MatchString(x.Name)
	case *ast.SelectorExpr:
		return logger.MatchString(x.Sel.Name)
	case *ast.CallExpr:
		s, ok := x.Fun.(*ast.SelectorExpr)
		return ok && slices.Contains(chained, s.Sel.Name)
	}
	return false
}

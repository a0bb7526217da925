package command

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each test that a page names is there: a promise that nothing holds is none.
func TestPagesNameTests(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	defined := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != ".." && strings.HasPrefix(e.Name(), ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			b, err := os.ReadFile(path)
			for _, m := range defined.FindAllSubmatch(b, -1) {
				there[string(m[1])] = true
			}
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)")
	for page, least := range map[string]int{"../SECURITY.md": 20, "../docs/safety.md": 80} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(named.FindAll(b, -1)); n < least {
			t.Errorf("%s names %d tests, and %d were there", page, n, least)
		}
	}
	for _, page := range append(pages, "../SECURITY.md", "../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllSubmatch(b, -1) {
			if !there[string(m[1])] {
				t.Errorf("%s names %s, which does not exist", page, m[1])
			}
		}
	}
	// Every promise of safety.md has a test beside it.
	b, err := os.ReadFile("../docs/safety.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(b), "\n| promise | shown by |\n|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for row := range strings.Lines(table) {
		if f := strings.Split(strings.Trim(row, "|\n "), " | "); len(f) != 2 || !named.MatchString(f[1]) {
			t.Errorf("no test shows %q", row)
		}
	}
}

package command

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each test that SECURITY.md names is there: a promise that nothing holds is none.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	err = filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != ".." && strings.HasPrefix(e.Name(), ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			b, err := os.ReadFile(path)
			tests.Write(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test|Fuzz)[A-Za-z]+").FindAllString(string(page), -1)
	if len(names) < 20 {
		t.Errorf("%d tests are named", len(names))
	}
	for _, n := range names {
		if n = strings.TrimPrefix(n, "`"); !strings.Contains(tests.String(), "func "+n+"(") {
			t.Errorf("SECURITY.md names %s, which does not exist", n)
		}
	}
}

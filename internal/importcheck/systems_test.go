package importcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// TestOtherSystems: every package and test of this module type-checks for the
// systems that are released and that the tests do not run on. It compiles nothing,
// which would take minutes where nothing is cached.
func TestOtherSystems(t *testing.T) {
	if raced {
		t.Skip("make lint runs it, faster")
	}
	t.Parallel()
	for _, target := range []struct{ system, arch string }{{"darwin", "arm64"}, {"linux", "arm64"}} {
		t.Run(target.system+"/"+target.arch, func(t *testing.T) {
			if target.system == runtime.GOOS && target.arch == runtime.GOARCH {
				t.Skip("it is the system that the tests run on")
			}
			own := 0
			for _, err := range typeCheck(t, target.system, target.arch, &own) {
				t.Error(err)
			}
			if own < 50 {
				t.Errorf("%d packages of the module were checked: go list does not show it", own)
			}
		})
	}
}

// source is what go list tells of a package.
type source struct {
	ImportPath, Dir string
	GoFiles         []string
	ImportMap       map[string]string
	Module          *struct{ Main bool }
	Standard        bool
}

// typeCheck checks all packages in the order of their imports, and counts those of
// the module. Of foreign packages it leaves the bodies of functions out.
func typeCheck(t *testing.T, system, arch string, own *int) (mistakes []error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-json=ImportPath,Dir,GoFiles,ImportMap,Module,Standard", Module+"/...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	checked := map[string]*types.Package{"unsafe": types.Unsafe}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p source
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return mistakes
		} else if err != nil {
			t.Fatal(err)
		}
		if p.ImportPath == "unsafe" || len(p.GoFiles) == 0 {
			continue
		}
		mine := p.Module != nil && p.Module.Main
		fset := token.NewFileSet()
		files, err := parse(fset, &p)
		if err != nil {
			return append(mistakes, err)
		}
		conf := types.Config{
			IgnoreFuncBodies: !mine,
			FakeImportC:      true,
			Sizes:            types.SizesFor("gc", arch),
			Importer:         imports(func(path string) *types.Package { return checked[mapped(&p, path)] }),
			Error: func(err error) {
				if mine {
					mistakes = append(mistakes, err)
				}
			},
		}
		if mine {
			*own++
		}
		// Its errors went to Error; of the standard library some are about what only
		// the compiler knows.
		checked[p.ImportPath], _ = conf.Check(p.ImportPath, fset, files, nil)
	}
}

func mapped(p *source, path string) string {
	if to, ok := p.ImportMap[path]; ok {
		return to
	}
	return path
}

func parse(fset *token.FileSet, p *source) ([]*ast.File, error) {
	files, errs := make([]*ast.File, len(p.GoFiles)), make([]error, len(p.GoFiles))
	var wg sync.WaitGroup
	for i, name := range p.GoFiles {
		if !filepath.IsAbs(name) {
			name = filepath.Join(p.Dir, name)
		}
		wg.Go(func() { files[i], errs[i] = parser.ParseFile(fset, name, nil, parser.SkipObjectResolution) })
	}
	wg.Wait()
	return files, errors.Join(errs...)
}

// imports finds what was checked before.
type imports func(path string) *types.Package

func (f imports) Import(path string) (*types.Package, error) {
	if p := f(path); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s was not checked", path)
}

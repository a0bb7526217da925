package spec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/hashicorp/hcl/v2"
	"github.com/rogpeppe/go-internal/txtar"
)

// TestLoad reads rollouts that stand in testdata as txtar archives, spec.hcl
// first, and shows the spec or what is wrong, with exact ranges. A case with
// the argument big makes big.conf of so many bytes, and one with dir a folder.
func TestLoad(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			t.Chdir(t.TempDir())
			for _, f := range txtar.Parse([]byte(d.Input)).Files {
				if err := os.MkdirAll(filepath.Dir(f.Name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(f.Name, f.Data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if d.HasArg("dir") {
				var name string
				d.ScanArgs(t, "dir", &name)
				if err := os.Mkdir(name, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if d.HasArg("big") {
				var n int64
				d.ScanArgs(t, "big", &n)
				f, err := os.Create("big.conf")
				if err == nil {
					err = f.Truncate(n)
				}
				if err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			f, diags := Load("spec.hcl")
			if d.Cmd == "snippet" {
				var b strings.Builder
				if err := hcl.NewDiagnosticTextWriter(&b, f.Files, 100, false).WriteDiagnostics(diags); err != nil {
					t.Fatal(err)
				}
				return b.String()
			}
			return show(t, f, diags)
		})
	})
}

func show(t *testing.T, f *File, diags hcl.Diagnostics) string {
	var b strings.Builder
	for _, d := range diags {
		where := ""
		if d.Subject != nil {
			where = d.Subject.String() + ": "
		}
		sev := "error"
		if d.Severity == hcl.DiagWarning {
			sev = "warning"
		}
		fmt.Fprintf(&b, "%s: %s%s; %s\n", sev, where, d.Summary, d.Detail)
	}
	if diags.HasErrors() {
		if f.Spec.Hash != "" {
			t.Error("a spec with errors has a hash")
		}
		return b.String()
	}
	if len(f.Spec.Hash) != 64 {
		t.Errorf("hash %q", f.Spec.Hash)
	}
	spec := f.Spec
	spec.Hash = ""
	out, err := json.MarshalIndent(spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "%s\n", out)
	for _, c := range spec.Configs {
		fmt.Fprintf(&b, "content of %s: %d bytes\n", c.Name, len(f.Contents[c.Name]))
	}
	fmt.Fprintf(&b, "fleet from %s: %v\n", f.Fleet, f.Fleet.Nodes)
	return b.String()
}

// TestHash: a rollout is resumed by the same content only.
func TestHash(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(name, s string) {
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hash := func() string {
		f, diags := Load("spec.hcl")
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		return f.Spec.Hash
	}
	spec := `
rollout "r" {
  config "a" {
    source      = "a.conf"
    destination = "/a"
  }
  fleet {
    consul {
      service = "s"
    }
  }
  stage "all" {
    percent = 100
  }
}
`
	write("a.conf", "1")
	write("spec.hcl", spec)
	first := hash()
	if hash() != first {
		t.Error("the same spec has two hashes")
	}
	write("spec.hcl", "# a comment\n"+spec)
	if hash() != first {
		t.Error("a comment changes the hash")
	}
	write("a.conf", "2")
	if hash() == first {
		t.Error("another content has the same hash")
	}
	write("a.conf", "1")
	write("spec.hcl", strings.Replace(spec, `"s"`, `"other"`, 1))
	if hash() == first {
		t.Error("another fleet has the same hash")
	}
}

// FuzzSpec: no panic, and every error has its place.
func FuzzSpec(f *testing.F) {
	for _, name := range []string{"testdata/good.txt", "testdata/bad.txt", "testdata/fleet.txt", "testdata/stages.txt"} {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range strings.Split(string(b), "\nload") {
			if _, c, ok := strings.Cut(c, "-- spec.hcl --\n"); ok {
				spec, fleet, _ := strings.Cut(c, "\n-- ")
				_, fleet, _ = strings.Cut(fleet, "--\n")
				f.Add([]byte(spec), []byte(fleet))
			}
		}
	}
	f.Fuzz(func(t *testing.T, spec, fleet []byte) {
		if len(spec) > 1<<16 || len(fleet) > 1<<16 {
			return
		}
		file := &File{Path: "spec.hcl", Contents: map[string][]byte{}, Templates: map[string]*Template{}, Files: map[string]*hcl.File{}}
		diags := file.decode(spec, func(name string, _ int64) ([]byte, error) {
			if strings.Contains(name, "missing") {
				return nil, os.ErrNotExist
			}
			return fleet, nil
		})
		for _, d := range diags {
			if d.Subject == nil || d.Summary == "" || d.Detail == "" {
				t.Errorf("a diagnostic without a place or a text: %+v", d)
			}
			if src := file.Files[d.Subject.Filename]; src == nil || d.Subject.Start.Byte > len(src.Bytes) || d.Subject.End.Byte > len(src.Bytes) {
				t.Errorf("a range outside of its file: %s", d.Subject)
			}
		}
		if !diags.HasErrors() && (len(file.Spec.Stages) == 0 || len(file.Spec.Configs) == 0 || file.Spec.Hash == "") {
			t.Errorf("no error, and no whole spec: %+v", file.Spec)
		}
	})
}

package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/hclsafe"
	"github.com/aim-control/aimlock/orchestrator"
)

// Limits of what is read.
const (
	// MaxFile bounds a spec.
	MaxFile = 1 << 20
	// MaxFleetFile bounds a fleet file.
	MaxFleetFile = 256 << 20
	// MaxContent bounds one config's content. What is over Consul's limit for
	// a value is chunked.
	MaxContent = 64 << 20
)

// File is a spec as it was read.
type File struct {
	Path string
	Spec orchestrator.Spec
	// Contents of the configs, by name; Templates of those that have one.
	Contents  map[string][]byte
	Templates map[string]*Template
	Fleet     Fleet
	// Files are all files that were read as HCL or as a fleet, for the
	// snippets of diagnostics.
	Files map[string]*hcl.File
	// Plugins are the blocks that belong to plugins, to be checked by who can ask
	// them what they take.
	Plugins []PluginBlock
}

// PluginBlock is a block that belongs to a plugin of a kind.
type PluginBlock struct {
	Kind, Name string
	Body       hcl.Body
	Range      hcl.Range
}

// Fleet is where the nodes come from.
type Fleet struct {
	// Sources in the order of the spec, at least one.
	Sources []orchestrator.Source
	// Nodes are the whole fleet where all sources are files; nil where it is not
	// known yet.
	Nodes []orchestrator.Node
}

// Load reads the spec at path and everything that it names. Diagnostics may be
// warnings only; with errors the file is not to be used, but for its Files.
func Load(path string) (*File, hcl.Diagnostics) {
	f := &File{Path: path, Contents: map[string][]byte{}, Templates: map[string]*Template{}, Files: map[string]*hcl.File{}}
	src, err := readFile(path, MaxFile)
	if err != nil {
		return f, hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Cannot read the rollout's file", Detail: sentence(err)}}
	}
	return f, f.decode(src, func(name string, limit int64) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return readFile(name, limit)
	})
}

// reader reads a file that a spec names.
type reader func(name string, limit int64) ([]byte, error)

func (f *File) decode(src []byte, read reader) hcl.Diagnostics {
	file, diags := hclsafe.ParseConfig(src, f.Path)
	f.Files[f.Path] = &hcl.File{Bytes: src}
	if file == nil {
		return diags
	}
	f.Files[f.Path] = file
	d := &decoder{file: f, read: read, diags: diags}
	if diags.HasErrors() {
		// What comes after a syntax error was not read: more errors would be
		// about what is there, and not seen.
		return diags
	}
	d.root(file.Body)
	if !d.diags.HasErrors() {
		f.Spec.Hash = f.hash()
	}
	return d.diags
}

// hash is over the spec, where its fleet comes from, and the contents, which
// are in the spec by their SHA-256.
func (f *File) hash() string {
	h := sha256.New()
	s := f.Spec
	s.Hash = ""
	service, path, sources := f.Fleet.source()
	b, err := json.Marshal(struct {
		Spec    orchestrator.Spec
		Service string
		Path    string
		Sources []orchestrator.Source `json:",omitempty"`
	}{s, service, path, sources})
	if err != nil {
		panic(fmt.Sprintf("spec: %v", err)) // strings and numbers only
	}
	_, _ = h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// readFile reads a regular file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	fi, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%q does not exist", name)
	case err != nil:
		return nil, err
	case fi.IsDir():
		return nil, fmt.Errorf("%q is a folder, and a file is needed", name)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%q is no regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%q has more than %d bytes (%d MiB), which is the most that is taken", name, limit, limit>>20)
	}
	return b, nil
}

package policies

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hclsafe"
)

// Set is the policies of one or more files, in order.
type Set struct {
	Policies []*Policy
	// Hash is the SHA-256, in hex, of what the files say: white space, comments,
	// file names and test blocks do not change it, the values of variables do.
	Hash string
	// Builtin marks a set that is shipped in the program.
	Builtin bool
	// Tests are the test blocks, which judge nothing.
	Tests []*Test
	// Values are the variables and local values, as "var.x" and "local.x".
	Values map[string]cty.Value
	// Given are the values that variables were given from outside, as Options.Vars
	// would give them: those of VarFiles as well.
	Given map[string]string
	// Files are the sources, by the name in diagnostics; those of VarFiles too.
	Files map[string]*hcl.File
	// Sources are the names of the policies' own files, in the order in which they
	// were read.
	Sources []string
}

// For returns the first policy that is for the lock, or nil.
func (s *Set) For(id LockID) *Policy {
	if s == nil {
		return nil
	}
	for _, p := range s.Policies {
		if p.Matches(id) {
			return p
		}
	}
	return nil
}

// Options are what LoadWith takes beside the paths.
type Options struct {
	// Vars are the values given to variable blocks, as HCL expressions or as
	// plain words.
	Vars map[string]string
	// VarFiles are files with values of variables, arguments of HCL. Of two that
	// name the same variable the later decides, and Vars before all of them.
	VarFiles []string
}

// Load reads files and folders (their *.hcl, sorted, not their subfolders).
// Without a path it is the shipped default; "builtin:NAME" is a shipped set.
//
// All diagnostics come at once. The Set is never nil: on an error it has no
// policies, but Files for printing snippets.
func Load(paths []string) (*Set, hcl.Diagnostics) { return LoadWith(paths, Options{}) }

// LoadWith is Load with options.
func LoadWith(paths []string, opts Options) (*Set, hcl.Diagnostics) {
	if len(paths) == 0 {
		paths = []string{BuiltinPrefix + BuiltinDefault}
	}
	var (
		l     loader
		total int
	)
	for _, path := range paths {
		sources, diags := expand(path)
		l.diags = append(l.diags, diags...)
		for _, src := range sources {
			total += len(src.bytes)
			if total > maxTotalSize || len(l.files) >= maxFiles {
				l.fail(nil, "Too much", "The policy files have more than %d MiB or are more than %d files in all. Name fewer of them with -policy.", maxTotalSize>>20, maxFiles)
				return l.finish(opts)
			}
			l.add(src)
		}
	}
	set, diags := l.finish(opts)
	set.Builtin = len(paths) == 1 && strings.HasPrefix(paths[0], BuiltinPrefix) && len(opts.Vars) == 0 && len(opts.VarFiles) == 0
	return set, diags
}

// Parse is Load of one file that is in memory already.
func Parse(filename string, src []byte) (*Set, hcl.Diagnostics) {
	return ParseWith(filename, src, Options{})
}

// ParseWith is Parse with options.
func ParseWith(filename string, src []byte, opts Options) (*Set, hcl.Diagnostics) {
	var l loader
	l.add(source{name: filename, bytes: src})
	return l.finish(opts)
}

// source is the text of one file.
type source struct {
	name  string
	bytes []byte
}

// expand reads what one -policy argument names.
func expand(path string) ([]source, hcl.Diagnostics) {
	fail := func(summary, detail string, args ...any) ([]source, hcl.Diagnostics) {
		return nil, hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(detail, args...)}}
	}
	if name, ok := strings.CutPrefix(path, BuiltinPrefix); ok {
		b, err := builtinSource(name)
		if err != nil {
			return fail("Unknown shipped policy", "%s.", err)
		}
		return []source{b}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail("Cannot read policies", "%s.", reason(path, err))
	}
	if !info.IsDir() {
		src, err := readFile(path)
		if err != nil {
			return fail("Cannot read policies", "%s.", reason(path, err))
		}
		return []source{src}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fail("Cannot read policies", "%s.", reason(path, err))
	}
	var (
		out   []source
		diags hcl.Diagnostics
	)
	for _, e := range entries { // sorted by name
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".hcl") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if len(out) > maxFiles {
			break
		}
		src, err := readFile(filepath.Join(path, e.Name()))
		if err != nil {
			_, d := fail("Cannot read policies", "%s.", reason(filepath.Join(path, e.Name()), err))
			diags = append(diags, d...)
			continue
		}
		out = append(out, src)
	}
	if len(out) == 0 && len(diags) == 0 {
		return fail("No policies", "The folder %s has no *.hcl file. Name a file or a folder with policies, or leave -policy away for the shipped default.", path)
	}
	return out, diags
}

// reason is an error of the file system without its doubled path.
func reason(path string, err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", path, pe.Err)
	}
	return fmt.Sprintf("%s: %v", path, err)
}

func readFile(path string) (source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return source{}, err
	}
	if !info.Mode().IsRegular() {
		return source{}, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return source{}, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return source{}, err
	}
	return source{name: path, bytes: b}, nil
}

// loader gathers files, then decodes them together: policies of one file can
// use locals and variables of another.
type loader struct {
	files    map[string]*hcl.File
	parsed   []parsedFile
	diags    hcl.Diagnostics
	unparsed bool // a file has syntax errors
}

type parsedFile struct {
	source
	body   *hclsyntax.Body
	tokens hclsyntax.Tokens
}

func (l *loader) fail(subject *hcl.Range, summary, detail string, args ...any) {
	l.diags = append(l.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(detail, args...), Subject: subject})
}

func (l *loader) add(src source) {
	if l.files == nil {
		l.files = map[string]*hcl.File{}
	}
	if _, ok := l.files[src.name]; ok {
		l.fail(nil, "File named twice", "%s is among the policy files twice. Name it once.", src.name)
		return
	}
	body, tokens := l.parse(src)
	if body == nil {
		l.unparsed = true
		return
	}
	l.parsed = append(l.parsed, parsedFile{source: src, body: body, tokens: tokens})
}

// parse returns the body of a file and what it is made of, or nil if it is not HCL.
func (l *loader) parse(src source) (*hclsyntax.Body, hclsyntax.Tokens) {
	if l.files == nil {
		l.files = map[string]*hcl.File{}
	}
	start := hcl.Pos{Line: 1, Column: 1}
	if len(src.bytes) > maxFileSize {
		l.files[src.name] = &hcl.File{}
		l.fail(nil, "File too large", "%s has more than %d bytes. Split it into several files of one folder.", src.name, maxFileSize)
		return nil, nil
	}
	l.files[src.name] = &hcl.File{Bytes: src.bytes}
	if diags := hclsafe.CheckText(src.bytes, src.name); diags.HasErrors() {
		l.diags = append(l.diags, diags...)
		return nil, nil
	}
	tokens, _ := hclsyntax.LexConfig(src.bytes, src.name, start) // the parser reports its errors
	if diags := checkShape(tokens); diags.HasErrors() {
		l.diags = append(l.diags, diags...)
		return nil, nil
	}
	file, diags := hclsyntax.ParseConfig(src.bytes, src.name, start)
	for _, d := range diags {
		l.diags = append(l.diags, explainSyntax(d, src.bytes))
	}
	if file != nil {
		l.files[src.name] = file
	}
	if diags.HasErrors() {
		return nil, nil
	}
	return file.Body.(*hclsyntax.Body), tokens
}

// explainSyntax adds the way out to the mistakes that are made most.
func explainSyntax(d *hcl.Diagnostic, src []byte) *hcl.Diagnostic {
	const oneLine = "Write each argument, and each nested block, on a line of its own."
	out := *d
	switch d.Summary {
	case "Invalid single-argument block definition", "Invalid argument definition":
		out.Detail += " " + oneLine
	case "Missing newline after argument", "Missing newline after block definition":
		if hint := bareDuration(d.Subject, src); hint != "" {
			out.Detail += hint
			break
		}
		out.Detail += " Arguments are not separated by commas."
	}
	return &out
}

// bareDuration says how a duration is written, with a space before it, where at is the
// unit of one without quotes: HCL takes it for a number, and for something after it.
func bareDuration(at *hcl.Range, src []byte) string {
	if at == nil || at.Start.Byte < 0 || at.End.Byte < at.Start.Byte || at.End.Byte > len(src) {
		return ""
	}
	before := bytes.TrimRight(src[:at.Start.Byte], "0123456789.")
	given := string(src[len(before):at.End.Byte])
	if len(before) == at.Start.Byte {
		return ""
	}
	if _, err := ParseDuration(given); err != nil {
		return ""
	}
	before = bytes.TrimRight(before, " \t")
	// An argument of its own is no expression with numbers.
	if n := len(before); n > 1 && before[n-1] == '=' && !bytes.ContainsRune([]byte("=<>!"), rune(before[n-2])) {
		return fmt.Sprintf(" Did you mean %q?", given)
	}
	return fmt.Sprintf(" Did you mean duration(%q)?", given)
}

// finish decodes what was added.
func (l *loader) finish(opts Options) (*Set, hcl.Diagnostics) {
	values := l.varFiles(opts.VarFiles)
	set := &Set{Files: l.files}
	if set.Files == nil {
		set.Files = map[string]*hcl.File{}
	}
	d := &decoder{diags: l.diags, partial: l.unparsed, src: map[string][]byte{}}
	for _, f := range l.parsed {
		d.src[f.name] = f.bytes
	}
	d.decode(l.parsed, opts, values)
	if d.diags.HasErrors() {
		return set, sorted(d.diags)
	}
	set.Policies, set.Tests, set.Values = d.policies, d.tests, d.consts
	set.Given = d.given
	for _, f := range l.parsed {
		set.Sources = append(set.Sources, f.name)
	}
	set.Hash = hash(l.parsed, d.vars)
	return set, sorted(d.diags)
}

// sorted puts diagnostics in the order of files and lines, so that the output
// is the same each time.
func sorted(diags hcl.Diagnostics) hcl.Diagnostics {
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int {
		switch {
		case a.Subject == nil && b.Subject == nil:
			return 0
		case a.Subject == nil:
			return -1
		case b.Subject == nil:
			return 1
		}
		return cmp.Or(
			strings.Compare(a.Subject.Filename, b.Subject.Filename),
			cmp.Compare(a.Subject.Start.Byte, b.Subject.Start.Byte),
		)
	})
	return diags
}

// hash is over the tokens, so that layout does not count. What it is over is
// public interface: two versions of aimlock must agree on it.
func hash(files []parsedFile, vars map[string]cty.Value) string {
	h := sha256.New()
	write := func(s string) { _, _ = fmt.Fprintf(h, "%d:%s\n", len(s), s) }
	write("aimlock policies 1")
	for _, f := range files {
		var skip []hcl.Range
		for _, b := range f.body.Blocks {
			if b.Type == "test" {
				skip = append(skip, b.Range(), hcl.RangeBetween(b.Range(), b.CloseBraceRange))
			}
		}
		newline := true
		for _, t := range f.tokens {
			if slices.ContainsFunc(skip, func(r hcl.Range) bool {
				return t.Range.Start.Byte >= r.Start.Byte && t.Range.Start.Byte < r.End.Byte
			}) {
				continue
			}
			switch t.Type {
			case hclsyntax.TokenEOF:
				continue
			case hclsyntax.TokenComment:
				if len(t.Bytes) == 0 || t.Bytes[len(t.Bytes)-1] != '\n' {
					continue // within a line
				}
				fallthrough
			case hclsyntax.TokenNewline:
				if !newline {
					write("\n")
				}
				newline = true
				continue
			}
			newline = false
			write(string(t.Bytes))
		}
		if !newline {
			write("\n")
		}
	}
	for _, name := range sortedKeys(vars) {
		write(name)
		write(string(ValueJSON(vars[name])))
	}
	return hex.EncodeToString(h.Sum(nil))
}

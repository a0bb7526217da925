package command

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/hashicorp/hcl/v2"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// maxPolicyFile is more than policies takes: what is larger is refused there.
const maxPolicyFile = 2 << 20

func newPolicyFmt(m *Meta) *command {
	check, diff := false, false
	return &command{
		Meta:     m,
		Synopsis: "Bring policy files into the canonical layout",
		Usage:    "[options] PATH…",
		Description: `Rewrites files, and the *.hcl of folders, in place and prints the names of those
that it changed. A file with a syntax error is left alone. With - it reads stdin
and writes stdout.

With -check it changes nothing, and exit code 1 says that a file needs it. -diff
prints what changes, or would.`,
		Examples: []example{
			{"A folder", "aimlock policy fmt policies/"},
			{"In CI", "aimlock policy fmt -check -diff policies/"},
		},
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&check, "check", false, "Change nothing; print the names of what would change.")
			fs.BoolVar(&diff, "diff", false, "Print the changes as unified diffs.")
		},
		MinArgs:  1,
		MaxArgs:  -1,
		Complete: completeFiles("*.hcl"),
		Run: func(_ context.Context, in *input) error {
			if len(in.Args) == 1 && in.Args[0] == "-" {
				return m.formatStream(check, diff)
			}
			files, err := policyFiles(in.Args)
			if err != nil {
				return exitf(ExitUsage, "%w", err)
			}
			return m.formatFiles(files, check, diff)
		},
	}
}

// policyFiles are the files that the arguments name.
func policyFiles(args []string) ([]string, error) {
	var out []string
	for _, a := range args {
		info, err := os.Stat(a)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			if !info.Mode().IsRegular() {
				return nil, fmt.Errorf("%s: not a regular file", a)
			}
			out = append(out, a)
			continue
		}
		entries, err := os.ReadDir(a)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && strings.HasSuffix(e.Name(), ".hcl") && !strings.HasPrefix(e.Name(), ".") {
				out = append(out, filepath.Join(a, e.Name()))
			}
		}
	}
	return out, nil
}

func (m *Meta) formatStream(check, diff bool) error {
	src, err := io.ReadAll(io.LimitReader(m.Stdin, maxPolicyFile))
	if err != nil {
		return fmt.Errorf("read stdin: %w", err)
	}
	out, diags := policies.Format("<stdin>", src)
	if diags.HasErrors() {
		return m.formatErrors("<stdin>", src, diags)
	}
	same := bytes.Equal(src, out)
	if check && !same {
		m.Printf("<stdin>\n")
	}
	if diff {
		if err := m.formatDiff("<stdin>", src, out); err != nil {
			return err
		}
	}
	switch {
	case check && !same:
		return exit(ExitFailed)
	case !check && !diff:
		m.Printf("%s", out)
	}
	return nil
}

// formatDiff prints what formatting changes. What a file holds cannot control
// the terminal.
func (m *Meta) formatDiff(name string, old, formatted []byte) error {
	d, err := unifiedDiff("old/"+name, "new/"+name, string(old), string(formatted))
	if err != nil {
		return err
	}
	for line := range strings.Lines(d) {
		parts := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		for i, p := range parts {
			parts[i] = text.Printable(p)
		}
		m.Printf("%s\n", strings.Join(parts, "\t"))
	}
	return nil
}

func (m *Meta) formatFiles(files []string, check, diff bool) error {
	var failed error
	changed := false
	for _, name := range files {
		src, err := readBounded(name)
		if err != nil {
			return exitf(ExitUsage, "%w", err)
		}
		out, diags := policies.Format(name, src)
		if diags.HasErrors() {
			failed = m.formatErrors(name, src, diags)
			continue
		}
		if bytes.Equal(src, out) {
			continue
		}
		changed = true
		m.Printf("%s\n", name)
		if diff {
			if err := m.formatDiff(name, src, out); err != nil {
				return err
			}
		}
		if check {
			continue
		}
		if err := replaceFile(name, out); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	if failed == nil && check && changed {
		return exit(ExitFailed)
	}
	return failed
}

func (m *Meta) formatErrors(name string, src []byte, diags hcl.Diagnostics) error {
	return m.policyDiagnostics(&policies.Set{Files: map[string]*hcl.File{name: {Bytes: src}}}, diags)
}

func readBounded(name string) (b []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, maxPolicyFile))
}

// replaceFile keeps the file's mode; a symlink goes on pointing to it.
func replaceFile(name string, b []byte) error {
	target, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	info, err := os.Stat(target)
	if err != nil {
		return err
	}
	return renameio.WriteFile(target, b, info.Mode().Perm(), renameio.WithTempDir(filepath.Dir(target)), renameio.IgnoreUmask())
}

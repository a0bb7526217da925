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

	"github.com/aim-control/aimlock/policies"
)

// maxPolicyFile is more than policies takes: what is larger is refused there.
const maxPolicyFile = 2 << 20

func newPolicyFmt(m *Meta) *command {
	check := false
	return &command{
		Meta:     m,
		Synopsis: "Bring policy files into the canonical layout",
		Usage:    "[options] PATH…",
		Description: `Rewrites files, and the *.hcl of folders, in place and prints the names of those
that it changed. A file with a syntax error is left alone. With - it reads stdin
and writes stdout.

With -check it changes nothing, and exit code 1 says that a file needs it.`,
		Examples: []example{
			{"A folder", "aimlock policy fmt policies/"},
			{"In CI", "aimlock policy fmt -check policies/"},
		},
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&check, "check", false, "Change nothing; print what would change.")
		},
		MinArgs: 1,
		MaxArgs: -1,
		Run: func(_ context.Context, in *input) error {
			if len(in.Args) == 1 && in.Args[0] == "-" {
				return m.formatStream(check)
			}
			files, err := policyFiles(in.Args)
			if err != nil {
				return exitf(ExitUsage, "%w", err)
			}
			return m.formatFiles(files, check)
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

func (m *Meta) formatStream(check bool) error {
	src, err := io.ReadAll(io.LimitReader(m.Stdin, maxPolicyFile))
	if err != nil {
		return fmt.Errorf("read stdin: %w", err)
	}
	out, diags := policies.Format("<stdin>", src)
	if diags.HasErrors() {
		return m.formatErrors("<stdin>", src, diags)
	}
	if check {
		if !bytes.Equal(src, out) {
			m.Printf("<stdin>\n")
			return exit(ExitFailed)
		}
		return nil
	}
	m.Printf("%s", out)
	return nil
}

func (m *Meta) formatFiles(files []string, check bool) error {
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

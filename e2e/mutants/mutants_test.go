//go:build mutants

package mutants

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

const (
	locks  = "orchestrator/locksmith"
	agents = "orchestrator/agent"
)

// mutant is one guard left out.
type mutant struct {
	name string
	file string
	// old stands exactly once in file; it is replaced by new.
	old, new string
	// run picks the tests that must notice, in the packages of tests (those of
	// file's folder by default).
	run   string
	tests []string
}

// limit bounds one run of tests, the compilation included.
const limit = 5 * time.Minute

// share is for who cannot wait for all of them each time.
var share = flag.String("share", "", "run one part of the mutants, such as 2/3")

func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var list []mutant
	part, of := 0, 1
	if *share != "" {
		if n, err := fmt.Sscanf(*share, "%d/%d", &part, &of); n != 2 || err != nil || of < 1 || part < 1 || part > of {
			t.Fatalf("-share %q: want a part such as 2/3", *share)
		}
	}
	for i, m := range slices.Concat(guards, complaints) {
		if i%of != part%of {
			continue
		}
		if len(m.tests) == 0 {
			m.tests = []string{"./" + filepath.Dir(m.file)}
		}
		list = append(list, m)
	}
	// What is found broken without any mutation would prove nothing.
	t.Run("none", func(t *testing.T) {
		runs := map[string][]string{}
		for _, m := range list {
			k := strings.Join(m.tests, " ")
			if !slices.Contains(runs[k], m.run) {
				runs[k] = append(runs[k], m.run)
			}
		}
		for pkgs, names := range runs {
			if out, err := goTest(t, root, "", strings.Join(names, "|"), strings.Fields(pkgs)); err != nil {
				t.Fatalf("the tests fail as they are: %v\n%s", err, out)
			}
		}
	})
	if t.Failed() {
		return
	}
	for _, m := range list {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			overlay := harness.Overlay(t, m.file, m.old, m.new)
			out, err := goTest(t, root, overlay, m.run, m.tests)
			switch {
			case err == nil:
				t.Errorf("%s: no test of %q in %s notices that it is gone", m.file, m.run, strings.Join(m.tests, " "))
			case !bytes.Contains(out, []byte("--- FAIL: ")) && !bytes.Contains(out, []byte("panic: test timed out")):
				t.Fatalf("the mutant was not tested: %v\n%s", err, out)
			default:
				t.Logf("noticed by %s", strings.Join(noticed(out), ", "))
			}
		})
	}
}

// TestStand: the text of each mutant stands in the code. It is a matter of
// milliseconds, and so the first to tell of a guard that was rewritten.
func TestStand(t *testing.T) {
	for _, m := range slices.Concat(guards, complaints) {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) { harness.Overlay(t, m.file, m.old, m.new) })
	}
}

func goTest(t *testing.T, root, overlay, run string, pkgs []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	args := []string{"test", "-failfast", "-vet=off", "-timeout", "4m", "-run", "^(" + run + ")$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	c := exec.CommandContext(ctx, "go", append(args, pkgs...)...)
	c.Dir = root
	out, err := c.CombinedOutput()
	if err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
		return out, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	if bytes.Contains(out, []byte("no tests to run")) {
		return out, fmt.Errorf("no test is called %s", run)
	}
	return out, nil
}

// noticed are the names of the tests that failed.
func noticed(out []byte) []string {
	var names []string
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

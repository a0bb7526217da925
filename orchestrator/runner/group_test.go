package runner_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

var three = []string{"a.conf", "b.conf", "c.conf"}

// group is a rollout of three configs, all with the content.
func (f *fleet) group(content string, edit func([]orchestrator.Config), stages ...orchestrator.Stage) runner.Input {
	in := f.input(content, stages...)
	in.Spec.Configs, in.Contents = nil, map[string][]byte{}
	for _, c := range three {
		b := []byte(content + " " + c)
		sum := sha256.Sum256(b)
		hash := hex.EncodeToString(sum[:])
		in.Contents[c] = b
		in.Spec.Configs = append(in.Spec.Configs, orchestrator.Config{
			Name: c, SHA256: hash, Revision: hash[:12], Size: int64(len(b)), Destination: "/etc/" + c,
		})
	}
	if edit != nil {
		edit(in.Spec.Configs)
	}
	return in
}

// group's files of a node: "" where none stands.
func (f *fleet) files(node string) (all []string) {
	for _, c := range three {
		b, err := os.ReadFile(filepath.Join(f.dir, node, "root/etc", c))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// Three configs, of which one is not valid on one node: that node keeps all of
// its files, and the others get all of the new ones.
func TestAllOrNone(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	if out, err := f.runner().Start(t.Context(), f.group("one", nil, rest)); err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v %v", out, err)
	}
	in := f.group("two", func(cs []orchestrator.Config) {
		cs[1].Validate = &orchestrator.Command{Argv: []string{"/bin/sh", "-c", `test "$AIMLOCK_NODE" != n02`}}
	}, rest)
	in.Spec.Failure.MaxFailed = 1
	out, err := f.runner().Start(t.Context(), in)
	if err != nil || out.Header.Counts[orchestrator.ClassApplied] != 3 || out.Header.Counts[orchestrator.ClassFailed] != 1 {
		t.Fatalf("%+v %v", out, err)
	}
	if len(out.Header.Problems) != 1 || !strings.Contains(out.Header.Problems[0].Why, "b.conf: validate: sh ended with status 1") {
		t.Errorf("%+v", out.Header.Problems)
	}
	for _, n := range f.nodes {
		want := "two"
		if n.Name == "n02" {
			want = "one"
		}
		for i, got := range f.files(n.Name) {
			if got != want+" "+three[i] {
				t.Errorf("%s: %s is %q", n.Name, three[i], got)
			}
		}
	}
	// An agent from before there were groups knows no such action: it answers
	// failed, and changes nothing.
	key := prefix.Desired("b.conf", "n00")
	p, err := f.kv.Get(t.Context(), key)
	if err != nil || p == nil {
		t.Fatal(p, err)
	}
	var d records.Desired
	if err := records.Decode(key, p.Value, &d); err != nil || d.Action != records.ActionApplyWith || len(d.Configs) != 3 || d.Requires[0] != records.FeatureGroups {
		t.Errorf("%+v %v", d, err)
	}
}

package runner_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// perNode is a template of this process.
type perNode func(orchestrator.Node) string

func (f perNode) Render(nodes []orchestrator.Node, add func(int, []byte) error) error {
	for i, n := range nodes {
		if err := add(i, []byte(f(n))); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) templated(text string, stages ...orchestrator.Stage) runner.Input {
	if stages == nil {
		stages = []orchestrator.Stage{rest}
	}
	in := f.input(text, stages...)
	in.Spec.Configs[0].Template = true
	in.Contents = nil
	in.Templates = map[string]runner.Template{config: perNode(func(n orchestrator.Node) string {
		return text + " " + n.Name + " " + n.Meta["zone"] + "\n"
	})}
	return in
}

func (f *fleet) revisions() map[string]bool {
	f.t.Helper()
	folder := keys.Prefix(keys.DefaultPrefix).ConfigFolder(config)
	list, err := f.kv.Keys(f.t.Context(), folder, "/")
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]bool{}
	for _, k := range list {
		out[strings.Trim(strings.TrimPrefix(k, folder), "/")] = true
	}
	return out
}

// A rollout that goes on after a crash delivers what was rendered when it was
// planned, whatever the metadata has become; the next one renders anew, and in
// stages.
func TestResumedRolloutDeliversWhatWasRendered(t *testing.T) {
	f := newFleet(t, 3)
	for i := range f.nodes {
		f.nodes[i].Meta = map[string]string{"zone": "old"}
	}
	stages := []orchestrator.Stage{{Name: "one", Nodes: 1, Promote: orchestrator.PromoteManual}, {Name: "rest", Percent: 100}}
	in := f.templated("x", stages...)
	out, err := f.runner().Tick(t.Context(), in)
	if err != nil || out.Converged {
		t.Fatalf("%+v, %v", out, err)
	}
	for i := range f.nodes {
		f.nodes[i].Meta = map[string]string{"zone": "new"}
	}
	in = f.templated("x", stages...)
	in.Templates[config] = perNode(func(orchestrator.Node) string { t.Error("rendered anew"); return "" })
	if _, err := f.runner().Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Promote}); err != nil {
		t.Fatal(err)
	}
	f.until("the rollout's end", func() bool {
		out, err = f.runner().Tick(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return out.Header.FinishedAt != nil
	})
	for _, n := range f.nodes {
		if got, want := f.file(n.Name), "x "+n.Name+" old\n"; got != want {
			t.Errorf("%s has %q, want %q", n.Name, got, want)
		}
	}
	if got := out.Header.Configs[0].Renderings; got != 3 {
		t.Errorf("the header says %d renderings", got)
	}
	first := out.ID

	// Now that it has ended, the new metadata counts: through the stages.
	in = f.templated("x", stages...)
	out, err = f.runner().Tick(t.Context(), in)
	if err != nil || out.ID == first || out.Converged {
		t.Fatalf("%+v, %v", out, err)
	}
	f.until("the first stage", func() bool { return f.file("n00") == "x n00 new\n" })
	if got := f.file("n02"); got != "x n02 old\n" {
		t.Errorf("a change of metadata went past the stages: n02 has %q", got)
	}
}

func TestUnchangedContentIsWrittenOnce(t *testing.T) {
	f := newFleet(t, 2)
	if _, err := f.runner().Start(t.Context(), f.input("same\n", rest)); err != nil {
		t.Fatal(err)
	}
	prefix := keys.Prefix(keys.DefaultPrefix).ConfigFolder(config)
	before, err := f.kv.List(t.Context(), prefix)
	if err != nil || len(before) != 1 {
		t.Fatalf("%d contents, %v", len(before), err)
	}
	path := filepath.Join(f.dir, "n00", "root", "etc", "app.conf")
	was, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Another spec with the same content.
	in := f.input("same\n", rest)
	in.Spec.Name, in.Spec.Hash = "other", "other"
	in.Spec.Configs[0].Reload = &orchestrator.Command{Argv: []string{"/bin/false"}}
	out, err := f.runner().Start(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v, %v: reload ran where nothing changed", out, err)
	}
	after, err := f.kv.List(t.Context(), prefix)
	if err != nil || len(after) != 1 || after[0].ModifyIndex != before[0].ModifyIndex {
		t.Errorf("the content was written again: %v, %v", after, err)
	}
	if is, err := os.Stat(path); err != nil || !os.SameFile(was, is) {
		t.Errorf("the file was written again: %v", err)
	}
}

func TestPruneContents(t *testing.T) {
	f := newFleet(t, 2)
	r := f.runner()
	start := func(text string) *runner.Outcome {
		t.Helper()
		out, err := r.Start(t.Context(), f.templated(text))
		if err != nil || out.Header.State != orchestrator.Succeeded {
			t.Fatalf("%+v, %v", out, err)
		}
		return out
	}
	ids := []string{start("a").ID, start("b").ID, start("c").ID, start("d").ID}
	if n := len(f.revisions()); n != 8 {
		t.Fatalf("%d revisions, want 8", n)
	}
	prune := func(want, left int) {
		t.Helper()
		n, more, err := r.PruneContents(t.Context())
		if err != nil || n != want || more || len(f.revisions()) != left {
			t.Fatalf("deleted %d of %d, more %t, %v; %d are left of %d", n, want, more, err, len(f.revisions()), left)
		}
	}
	prune(0, 8) // all rollouts are kept

	// The first three rollouts are forgotten. What c brought is what stood before
	// d, and stays; what nobody has is left alone while a lock is held.
	for _, id := range ids[:3] {
		if _, err := f.kv.API().KV().DeleteTree(keys.Prefix(keys.DefaultPrefix).Rollout(id), nil); err != nil {
			t.Fatal(err)
		}
	}
	hold, err := f.locks().Acquire(t.Context(), locksmith.Request{Names: []string{config}, Operation: "test"})
	if err != nil {
		t.Fatal(err)
	}
	prune(0, 8)
	if err := hold.Release(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	prune(4, 4)
	prune(0, 4)

	// An unfinished rollout keeps everything.
	if out, err := r.Tick(t.Context(), f.templated("e", orchestrator.Stage{Name: "one", Nodes: 1, Promote: orchestrator.PromoteManual}, orchestrator.Stage{Name: "rest", Percent: 100})); err != nil || out.Converged {
		t.Fatalf("%+v, %v", out, err)
	}
	prune(0, 6)
}

// A content that is gone under a running rollout is no reason to deliver
// something else.
func TestContentIsGone(t *testing.T) {
	f := newFleet(t, 2)
	stages := []orchestrator.Stage{{Name: "one", Nodes: 1, Promote: orchestrator.PromoteManual}, {Name: "rest", Percent: 100}}
	if out, err := f.runner().Tick(t.Context(), f.templated("x", stages...)); err != nil || out.Converged {
		t.Fatalf("%+v, %v", out, err)
	}
	for sum := range f.revisions() {
		if _, err := f.kv.API().KV().DeleteTree(keys.Prefix(keys.DefaultPrefix).Config(config, sum), nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err := f.runner().Tick(t.Context(), f.templated("x", stages...))
	if err == nil || !strings.Contains(err.Error(), "rollout abort") {
		t.Errorf("it goes on: %v", err)
	}
}

func TestRenderingsAreBounded(t *testing.T) {
	f := newFleet(t, 0)
	for i := range 40 {
		f.nodes = append(f.nodes, orchestrator.Node{Name: fmt.Sprintf("m%02d", i)})
	}
	in := f.templated("x")
	in.Templates[config] = perNode(func(n orchestrator.Node) string { return n.Name + strings.Repeat("x", 4<<20) })
	in.Fleet = runner.StaticFleet(f.nodes)
	_, err := f.runner().Start(t.Context(), in)
	if err == nil || !strings.Contains(err.Error(), "128 MiB") {
		t.Errorf("%v", err)
	}
}

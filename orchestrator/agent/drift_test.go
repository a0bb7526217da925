package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

func drifts(what string) func(*records.Actual) bool {
	return func(a *records.Actual) bool {
		return a.Result == records.ResultApplied && a.Drift != nil && strings.Contains(a.Drift.What, what)
	}
}

// A file that somebody else changes, replaces or removes is reported, and never
// touched; and it is none any more once it stands as it was left.
func TestDriftIsReportedAndLeft(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	stop := run(t, cfg)
	d := b.publish(t, order(10, 1), "one\n", 100)
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	path := filepath.Join(cfg.Root, "etc/aim.conf")
	write := func(content string) {
		t.Helper()
		// As an editor does: another file takes its place.
		if err := os.WriteFile(path+"~", []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
	write("by hand\n")
	a := b.answer(t, cfg.Node, drifts("content"))
	if a.Drift.SHA256 != agent.SHA256([]byte("by hand\n")) || a.SHA256 != d.SHA256 || a.Drift.Since.IsZero() || a.Drift.Error != "" {
		t.Errorf("%+v, drift %+v", a, a.Drift)
	}
	if got := content(t, cfg); got != "by hand\n" {
		t.Errorf("it was touched: %q", got)
	}
	all, err := agent.ReadStatus(cfg.StateDir)
	if err != nil || len(all) != 1 || all[0].Drift == nil || all[0].State != records.ResultApplied {
		t.Errorf("status %+v, %v", all, err)
	}
	write("one\n")
	b.answer(t, cfg.Node, func(a *records.Actual) bool { return a.Order == d.Order && a.Drift == nil })

	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("its mode is 0600 in place of 0644"))

	// What was changed while no agent ran is found when one starts.
	stop()
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	run(t, cfg)
	b.answer(t, cfg.Node, drifts("removed"))

	// A newer order ends it; what stood before it is what a rollback brings back.
	next := b.publish(t, order(10, 2), "two\n", 100)
	b.desire(t, cfg.Node, next)
	if a := b.answer(t, cfg.Node, of(next.Order, records.ResultApplied)); a.Drift != nil || a.Previous != "" {
		t.Errorf("%+v", a)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("no regular file"))
}

// Where it is wanted the file is put back, by the steps of an order, and the
// answer to that order stays. What something rewrites is left in peace for a while.
func TestDriftIsRestored(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	d := b.publish(t, order(10, 1), "one\n", 100)
	d.Drift = records.DriftRestore
	ran := filepath.Join(cfg.Root, "ran")
	d.Validate = &records.Command{Argv: []string{"sh", "-c", "grep -q one \"$AIMLOCK_STAGED\" && echo validate >> " + ran}}
	d.Reload = &records.Command{Argv: []string{"sh", "-c", "echo reload >> " + ran}}
	b.desire(t, cfg.Node, d)
	first := b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	path := filepath.Join(cfg.Root, "etc/aim.conf")
	if err := os.WriteFile(path, []byte("by hand\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := b.answer(t, cfg.Node, func(a *records.Actual) bool { return a.Restored != nil })
	if a.Restored.Times != 1 || a.Drift != nil || a.Result != records.ResultApplied || a.Order != d.Order || !a.Time.Equal(first.Time) || a.Previous != first.Previous {
		t.Errorf("%+v", a)
	}
	if got := content(t, cfg); got != "one\n" {
		t.Errorf("file is %q", got)
	}
	if log, _ := os.ReadFile(ran); string(log) != "validate\nreload\nvalidate\nreload\n" {
		t.Errorf("ran %q", log)
	}
	// The second time it waits.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("removed"))
	if _, err := os.Stat(path); err == nil {
		t.Error("it was put back at once")
	}
	b.answer(t, cfg.Node, func(a *records.Actual) bool { return a.Restored != nil && a.Restored.Times == 2 && a.Drift == nil })
}

// A file that cannot be put back is as it was found, and the report says why.
func TestDriftThatCannotBeRestored(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	d := b.publish(t, order(10, 1), "one\n", 100)
	d.Drift = records.DriftRestore
	flag := filepath.Join(cfg.Root, "sick")
	d.Healthy = &records.Command{Argv: []string{"sh", "-c", "! test -e " + flag}}
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	for _, f := range []string{flag, filepath.Join(cfg.Root, "etc/aim.conf")} {
		if err := os.WriteFile(f, []byte("by hand\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := b.answer(t, cfg.Node, func(a *records.Actual) bool { return a.Drift != nil && a.Drift.Error != "" })
	if !strings.Contains(a.Drift.Error, "healthy") || a.Result != records.ResultApplied || a.Order != d.Order {
		t.Errorf("%+v, drift %+v", a, a.Drift)
	}
	if got := content(t, cfg); got != "by hand\n" {
		t.Errorf("file is %q", got)
	}
}

// An agent may begin to watch while its first order of a config is under way: its
// folder is there, and no state in it yet.
func TestDriftAfterAFirstOrderThatWasUnderWay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cfg := b.config(t, "n1")
	if err := os.MkdirAll(filepath.Join(cfg.StateDir, "configs", conf), 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, cfg)
	d := b.publish(t, order(10, 1), "one\n", 100)
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	if err := os.WriteFile(filepath.Join(cfg.Root, "etc/aim.conf"), []byte("by hand\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("content"))
}

// Where the folder itself is replaced, what happens in the new one is seen.
func TestDriftInAFolderThatWasReplaced(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	d := b.publish(t, order(10, 1), "one\n", 100)
	b.desire(t, cfg.Node, d)
	b.answer(t, cfg.Node, of(d.Order, records.ResultApplied))
	dir := filepath.Join(cfg.Root, "etc")
	path := filepath.Join(dir, "aim.conf")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("removed"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, func(a *records.Actual) bool { return a.Order == d.Order && a.Drift == nil })
	if err := os.WriteFile(path, []byte("by hand\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.answer(t, cfg.Node, drifts("content"))
}

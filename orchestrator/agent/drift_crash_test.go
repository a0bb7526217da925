package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/records"
)

// An agent that dies while it puts a changed file back leaves a file that is
// whole, goes on after a restart, and answers its order as before.
func TestDriftRestoreKilled(t *testing.T) {
	t.Parallel()
	const config, byHand = "app.conf", "by hand\n"
	begin := func() (*rig, *records.Desired) {
		r := newRig(t)
		d := entry(order(2, 1), "r1", "one\n")
		d.Drift = records.DriftRestore
		if out, err := r.apply(t.Context(), config, d, from("one\n")); err != nil || out.Report.Result != records.ResultApplied {
			t.Fatalf("%+v, %v", out, err)
		}
		if err := os.WriteFile(r.path(), []byte(byHand), 0o640); err != nil {
			t.Fatal(err)
		}
		if found, err := r.lookForDrift(t.Context(), config); err != nil || !found.may {
			t.Fatalf("%+v, %v", found, err)
		}
		return r, d
	}
	content := func(string, *records.Desired) source { return from("one\n") }
	steps := 0
	r, _ := begin()
	r.step = func(string) { steps++ }
	if reps, err := r.putBackDrifted(t.Context(), config, nil, content); err != nil || reps[config].Restored == nil {
		t.Fatalf("%+v, %v", reps, err)
	}
	if steps < 8 {
		t.Fatalf("only %d steps", steps)
	}
	for i := range steps {
		r, d := begin()
		func() {
			left := i
			c := &rig{root: r.root, state: r.state, fence: r.newFence()}
			c.step = func(string) {
				if left--; left < 0 {
					panic(crash{})
				}
			}
			defer func() {
				if p := recover(); p != (crash{}) {
					t.Fatalf("step %d: it did not stop: %v", i, p)
				}
			}()
			_, _ = c.putBackDrifted(t.Context(), config, nil, content)
		}()
		if got := r.read(t); got != byHand && got != "one\n" {
			t.Fatalf("step %d: the file is %q", i, got)
		}
		if _, err := r.finish(t.Context(), config); err != nil {
			t.Fatalf("step %d: the restart: %v", i, err)
		}
		// The order is still in Consul: what the crash left open is done again.
		out, err := r.apply(t.Context(), config, d, from("one\n"))
		if err != nil || out.Refused != nil {
			t.Fatalf("step %d: the order again: %+v, %v", i, out, err)
		}
		if found, err := r.lookForDrift(t.Context(), config); err != nil || found.is && !found.may {
			t.Fatalf("step %d: %+v, %v", i, found, err)
		}
		if _, err := r.putBackDrifted(t.Context(), config, nil, content); err != nil {
			t.Fatalf("step %d: the second time: %v", i, err)
		}
		st := r.peek(config)
		if got := r.read(t); got != "one\n" || st.Phase != phaseDone || st.Report.Result != records.ResultApplied || st.Report.Order != d.Order || st.Report.Drift != nil {
			t.Errorf("step %d: in the end the file is %q, %s, %+v", i, got, st.Phase, st.Report)
		}
		for _, l := range r.leftovers(t) {
			if strings.HasPrefix(l, ".aimlock-") {
				t.Errorf("step %d: left over: %s", i, l)
			}
		}
	}
}

// What rewrites a file again and again is not fought for ever: the report says so,
// and the next order begins anew.
func TestDriftIsGivenUp(t *testing.T) {
	t.Parallel()
	srv, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	consul, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := New(Config{Node: "n1", StateDir: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root"), Consul: consul})
	if err != nil {
		t.Fatal(err)
	}
	const config = "app.conf"
	give := func(d *records.Desired, text string) {
		t.Helper()
		d.Drift = records.DriftRestore
		if err := consul.Put(t.Context(), a.cfg.Prefix.ConfigChunk(config, d.SHA256, 0), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if out, err := a.fence.apply(t.Context(), config, d, from(text)); err != nil || out.Report.Result != records.ResultApplied {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	path := filepath.Join(dir, "root", dest)
	rewrite := func() {
		t.Helper()
		if err := os.WriteFile(path, []byte("by another program\n"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	give(entry(order(2, 1), "r1", "one\n"), "one\n")
	d := &driftWatch{a: a, files: map[string]*watchedFile{}, dirs: map[string]bool{}, back: make(chan putBack)}
	f := d.file(config, configDir(a.cfg.StateDir, config))
	look := func() *records.Drift {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := d.look(ctx, config, f); err != nil {
			t.Fatal(err)
		}
		if f.busy {
			b := <-d.back
			d.ended(b)
			if b.err != nil {
				t.Fatal(b.err)
			}
		}
		return a.fence.peek(config).Report.Drift
	}
	for n := range restorePauses() {
		rewrite()
		f.last = time.Time{} // the pause before it is over
		if n > 0 {
			f.last = time.Now().Add(-restorePauses()[n])
		}
		if drift := look(); drift != nil || f.tries != n+1 {
			t.Fatalf("try %d: %+v, %d tries", n+1, drift, f.tries)
		}
	}
	rewrite()
	drift := look()
	if drift == nil || !strings.Contains(drift.Error, "put back 5 times") {
		t.Fatalf("after all of them: %+v", drift)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "by another program\n" {
		t.Errorf("it was put back once more: %q, %v", b, err)
	}
	if f.due.IsZero() || f.busy {
		t.Error("nobody looks at it any more")
	}
	give(entry(order(2, 2), "r2", "two\n"), "two\n")
	look()
	rewrite()
	if drift := look(); drift != nil || f.tries != 1 {
		t.Errorf("after the next order: %+v, %d tries", drift, f.tries)
	}
}

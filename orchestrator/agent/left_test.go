package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
)

// teller is told of files; it notes them with what stands, and refuses contents
// that begin with "bad".
func (r *rig) teller(t *testing.T) (told func() string) {
	t.Helper()
	var all []string
	r.tell = func(_ context.Context, left []Left) error {
		var say []string
		bad := false
		for _, l := range left {
			b, err := os.ReadFile(l.Path)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			if l.Exists != (err == nil) || l.Exists && l.SHA256 != sum256(b) {
				t.Errorf("told of %+v where %q stands (%v)", l, b, err)
			}
			bad = bad || strings.HasPrefix(string(b), "bad")
			say = append(say, l.Config+"="+strings.TrimSpace(string(b)))
		}
		all = append(all, strings.Join(say, ","))
		if bad {
			return errors.New("the command does not take it")
		}
		return nil
	}
	return func() string {
		defer func() { all = nil }()
		return strings.Join(all, " ")
	}
}

// Who is told of a file has a part in what the order comes to: between reload
// and healthy, and again when the last good file is put back.
func TestTell(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	told := r.teller(t)
	wants := func(want string) {
		t.Helper()
		if got := told(); got != want {
			t.Errorf("told of %q, want %q", got, want)
		}
	}
	var steps []string
	r.step = func(name string) { steps = append(steps, name) }
	one := entry(order(1, 1), "r1", "one\n")
	one.Reload, one.Healthy = sh("true"), sh("true")
	r.must(t, one, "one\n", records.ResultApplied)
	wants("aim.conf=one")
	reload, tell, healthy := slices.Index(steps, "after reload"), slices.Index(steps, "before tell"), slices.Index(steps, "before healthy")
	if reload < 0 || tell < reload || healthy < tell {
		t.Errorf("steps %v", steps)
	}
	r.must(t, entry(order(2, 1), "r2", "one\n"), "one\n", records.ResultApplied)
	wants("")
	rep := r.must(t, entry(order(3, 1), "r3", "bad\n"), "bad\n", records.ResultFailed).Report
	if rep.Error != "reload: the command does not take it" || r.read(t) != "one\n" {
		t.Errorf("%q, and %q stands", rep.Error, r.read(t))
	}
	wants("aim.conf=bad aim.conf=one")
	r.must(t, restoreEntry(order(3, 2), "r1"), "", records.ResultRolledBack)
	wants("aim.conf=")

	// An agent that is killed after the rename tells of it when it is back.
	ctx, cancel := context.WithCancel(t.Context())
	r.step = func(name string) {
		if name == "after rename" {
			cancel()
		}
	}
	if out, err := r.apply(ctx, conf, entry(order(4, 1), "r4", "bad again\n"), from("bad again\n")); err == nil {
		t.Fatalf("answered: %+v", out.Report)
	}
	told()
	r.step = func(string) {}
	out, err := r.finish(t.Context(), conf)
	if err != nil || out.Report == nil || out.Report.Result != records.ResultFailed {
		t.Fatalf("%+v %v", out.Report, err)
	}
	wants("aim.conf=bad again aim.conf=")
}

// Configs that are applied all or none are told of in one call, those that have
// changed.
func TestTellGroup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	told := r.teller(t)
	r.groupMust(t, entries(order(1, 1), "r1", trio, []string{"1", "1", "1"}), []string{"1", "1", "1"}, records.ResultApplied)
	if got := told(); got != "c.conf=1,a.conf=1,b.conf=1" {
		t.Error(got)
	}
	next := []string{"1", "bad", "2"}
	outs := r.groupMust(t, entries(order(2, 1), "r2", trio, next), next, records.ResultFailed)
	if got := told(); got != "a.conf=bad,b.conf=2 a.conf=1,b.conf=1" {
		t.Error(got)
	}
	if e := outs[0].Report.Error; !strings.Contains(e, "a.conf: reload: the command does not take it") {
		t.Error(e)
	}
	if got := r.files(t, trio); !same(got, []string{"1", "1", "1"}) {
		t.Errorf("%q stands", got)
	}
}

// What stands is read from the state folder alone, and never while it changes.
func TestReadLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	look := func() string {
		left, settled := ReadLeft(r.state, r.root, []string{conf, "other"})
		if !settled {
			return "unsettled"
		}
		if left[1] != (Left{Config: "other"}) {
			t.Errorf("of a config that was never here: %+v", left[1])
		}
		l := left[0]
		if !l.Exists {
			return "none"
		}
		if l.Path != r.path() {
			t.Errorf("path %s", l.Path)
		}
		return l.SHA256[:4] + fmt.Sprintf(" %o", l.Mode)
	}
	during := map[string]string{}
	r.step = func(name string) { during[name] = look() }
	if got := look(); got != "none" {
		t.Error(got)
	}
	// A first order that fails over a file of before: that one stands.
	if err := os.MkdirAll(filepath.Dir(r.path()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path(), []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := entry(order(1, 1), "r1", "bad\n")
	bad.Validate = sh("false")
	r.must(t, bad, "bad\n", records.ResultFailed)
	before := sum256([]byte("before\n"))[:4] + " 0"
	if got := look(); got != before {
		t.Error(got)
	}
	r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
	two := sum256([]byte("two\n"))[:4] + " 640"
	if got := look(); got != two {
		t.Error(got)
	}
	if during["before rename"] != "unsettled" || during["after rename"] != "unsettled" || during["before stage"] != before {
		t.Errorf("%v", during)
	}
	r.must(t, bad2(), "three\n", records.ResultFailed)
	if got := look(); got != two {
		t.Error(got)
	}
	r.must(t, restoreEntry(order(3, 2), "r2"), "", records.ResultRolledBack)
	if got := look(); got != sum256([]byte("before\n"))[:4]+" 600" {
		t.Error(got)
	}
}

func bad2() *records.Desired {
	d := entry(order(3, 1), "r3", "three\n")
	d.Healthy = sh("false")
	return d
}

// Follow tells of every change of a state, of a folder that is not there yet too,
// and waits for nothing where nothing happens.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := os.RemoveAll(r.state); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		Follow(ctx, r.state, []string{conf}, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	sees := func(content string) {
		t.Helper()
		limit := time.NewTimer(20 * time.Second)
		defer limit.Stop()
		for {
			select {
			case <-changed:
			case <-limit.C:
				t.Fatalf("%q was not seen", content)
			}
			if left, ok := ReadLeft(r.state, r.root, []string{conf}); ok && left[0].SHA256 == sum256([]byte(content)) {
				return
			}
		}
	}
	<-changed
	if err := folder(filepath.Join(r.state, "configs")); err != nil {
		t.Fatal(err)
	}
	r.must(t, entry(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
	sees("one\n")
	r.must(t, entry(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied)
	sees("two\n")
	cancel()
	<-done
}

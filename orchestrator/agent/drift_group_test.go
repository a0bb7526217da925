package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
)

// One file of several that belong together is put back, and the answers stay.
func TestDriftOfAGroupIsRestored(t *testing.T) {
	r := newRig(t)
	ds, want := entries(order(10, 1), "r1", trio, set("v1", trio)), set("v1", trio)
	for _, d := range ds {
		d.Drift = records.DriftRestore
	}
	r.groupMust(t, ds, want, records.ResultApplied)
	if err := os.WriteFile(filepath.Join(r.root, "etc/aim/a.conf"), []byte("by hand\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := r.lookForDrift(context.Background(), "a.conf")
	if err != nil || !found.is || !found.may || found.rep == nil || found.rep.Drift == nil {
		t.Fatalf("%+v, %v", found, err)
	}
	reps, err := r.putBackDrifted(context.Background(), "a.conf", nil, func(config string, _ *records.Desired) source {
		return from(want[slices.Index(trio, config)])
	})
	if err != nil || len(reps) != len(trio) {
		t.Fatalf("%+v, %v", reps, err)
	}
	if got := r.files(t, trio); !slices.Equal(got, want) {
		t.Errorf("files %q", got)
	}
	for c, rep := range reps {
		if rep.Result != records.ResultApplied || rep.Order != ds[0].Order || rep.Drift != nil || (rep.Restored != nil) != (c == "a.conf") {
			t.Errorf("%s: %+v", c, rep)
		}
	}
	// The group is whole: the same order again changes nothing.
	outs, err := r.groupDo(ds, want)
	if err != nil || slices.ContainsFunc(outs, func(o outcome) bool { return o.Changed || o.Report != nil }) {
		t.Errorf("%+v, %v", outs, err)
	}
}

// In a group some files are put back and others are to be left: one that is to
// be left and stands as it was left is no obstacle, and one that was changed too
// is never undone by what puts another back.
func TestDriftOfAGroupOfTwoMinds(t *testing.T) {
	r := newRig(t)
	ds, want := entries(order(10, 1), "r1", trio, set("v1", trio)), set("v1", trio)
	a, b := slices.Index(trio, "a.conf"), slices.Index(trio, "b.conf")
	ds[a].Drift = records.DriftRestore
	r.groupMust(t, ds, want, records.ResultApplied)
	putBack := func() (map[string]*records.Actual, error) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.root, "etc/aim/a.conf"), []byte("by hand\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if found, err := r.lookForDrift(context.Background(), "a.conf"); err != nil || !found.may {
			t.Fatalf("%+v, %v", found, err)
		}
		return r.putBackDrifted(context.Background(), "a.conf", nil, func(config string, _ *records.Desired) source {
			return from(want[slices.Index(trio, config)])
		})
	}
	if reps, err := putBack(); err != nil || len(reps) != len(trio) {
		t.Fatalf("%+v, %v", reps, err)
	}
	if got := r.files(t, trio); !slices.Equal(got, want) {
		t.Fatalf("files %q", got)
	}

	if err := os.WriteFile(filepath.Join(r.root, "etc/aim/b.conf"), []byte("to stay\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	reps, err := putBack()
	if err == nil || !strings.Contains(err.Error(), "b.conf") {
		t.Errorf("err = %v, want one that names b.conf", err)
	}
	if rep := reps["a.conf"]; rep == nil || rep.Drift == nil || !strings.Contains(rep.Drift.Error, "b.conf") {
		t.Errorf("a.conf reports %+v, want a drift that says what is in the way", rep)
	}
	if got := r.files(t, trio); got[a] != "by hand\n" || got[b] != "to stay\n" {
		t.Errorf("files %q: a file that is to be left was touched", got)
	}
	// What is to be left starts nothing.
	if reps, err := r.putBackDrifted(context.Background(), "b.conf", nil, nil); err != nil || reps != nil {
		t.Errorf("%+v, %v", reps, err)
	}
}

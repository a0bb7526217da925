package agent

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// An order of somebody who does not know of the one before it is refused, however
// high its index: Consul has lost that one. A raised epoch makes the next pass.
func TestOrderGivenInIgnorance(t *testing.T) {
	t.Parallel()
	after := func(d *records.Desired, o orchestrator.Order) *records.Desired {
		d.After = &o
		return d
	}
	r := newRig(t)
	step := func(what string, d *records.Desired, content string, refused bool) *records.Actual {
		t.Helper()
		out, err := r.apply(t.Context(), conf, d, from(content))
		if err != nil || out.Report == nil {
			t.Fatalf("%s: %+v, %v", what, out, err)
		}
		if (out.Refused != nil) != refused || (out.Report.Result == records.ResultRefused) != refused {
			t.Fatalf("%s: %+v, refused: %v", what, out.Report, out.Refused)
		}
		return out.Report
	}
	step("the first", after(entry(order(5, 1), "one", "one\n"), orchestrator.Order{}), "one\n", false)
	step("the next", after(entry(order(9, 1), "two", "two\n"), order(5, 1)), "two\n", false)

	rep := step("after a restore", after(entry(order(30, 1), "three", "three\n"), order(5, 1)), "three\n", true)
	for _, want := range []string{"0.30.1", "0.5.1", "0.9.1", "`aimlock recover`"} {
		if !strings.Contains(rep.Error, want) {
			t.Errorf("%q does not name %s", rep.Error, want)
		}
	}
	if rep.Order != order(9, 1) || rep.Refused == nil || *rep.Refused != order(30, 1) || rep.Revision != entry(order(1, 1), "", "two\n").Revision || r.read(t) != "two\n" {
		t.Errorf("%+v, and the file is %q", rep, r.read(t))
	}
	step("from nothing", after(entry(order(31, 1), "three", "three\n"), orchestrator.Order{}), "three\n", true)
	// Said once, and no less refused.
	if out, err := r.apply(t.Context(), conf, after(entry(order(31, 1), "three", "three\n"), orchestrator.Order{}), from("three\n")); err != nil || out.Refused == nil || out.Report != nil || out.Standing == nil {
		t.Errorf("%+v, %v", out, err)
	}
	step("to go back, after a restore", after(restoreEntry(order(32, 1), "two"), order(5, 1)), "", true)
	if r.read(t) != "two\n" {
		t.Errorf("the file is %q", r.read(t))
	}
	if err := claim(r.state, "n1"); err != nil {
		t.Fatal(err)
	}
	if list, err := ReadStatus(r.state); err != nil || len(list) != 1 || list[0].State != records.ResultApplied || list[0].Error != "refused 0.32.1: `aimlock recover` (Consul went back)" {
		t.Errorf("%+v, %v", list, err)
	}

	step("by a giver who knows", after(entry(order(33, 1), "three", "three\n"), order(9, 1)), "three\n", false)
	step("by a giver of before there was this", entry(order(34, 1), "four", "four\n"), "four\n", false)
	recovered := entry(orchestrator.Order{Epoch: 1, Token: 2, Seq: 1}, "five", "five\n")
	step("of the next epoch", after(recovered, order(5, 1)), "five\n", false)
	if r.read(t) != "five\n" {
		t.Errorf("the file is %q", r.read(t))
	}
}

// Of a group none is taken if one was given in ignorance.
func TestGroupGivenInIgnorance(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if _, err := r.apply(t.Context(), "b.conf", entry(order(9, 1), "alone", "alone\n"), from("alone\n")); err != nil {
		t.Fatal(err)
	}
	contents := set("v2", trio)
	ds := entries(order(20, 1), "two", trio, contents)
	for _, d := range ds {
		d.After = &orchestrator.Order{}
	}
	outs, err := r.applyGroup(t.Context(), trio, ds, sources(contents))
	if err != nil {
		t.Fatal(err)
	}
	for i, out := range outs {
		if out.Refused == nil || out.Report == nil || out.Report.Result != records.ResultRefused || !strings.Contains(out.Report.Error, "b.conf: order 0.20.1") || !strings.Contains(out.Report.Error, "aimlock recover") {
			t.Errorf("%s: %+v", trio[i], out)
		}
	}
	if st, err := loadState(configDir(r.state, "a.conf"), "a.conf"); err != nil || !st.Mark.IsZero() {
		t.Errorf("%+v, %v", st, err)
	}
	for i, d := range ds {
		if d.After = nil; trio[i] == "b.conf" {
			o := order(9, 1)
			d.After = &o
		}
	}
	if outs, err = r.applyGroup(t.Context(), trio, ds, sources(contents)); err != nil || outs[0].Report == nil || outs[0].Report.Result != records.ResultApplied {
		t.Errorf("%+v, %v", outs, err)
	}
}

// An order that the node has accepted with another entry is refused, and the file
// stays: a restored Consul may hand out the index again at which the lock was taken.
func TestOrderOfTwoEntries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	apply := func(d *records.Desired, content string) outcome {
		t.Helper()
		out, err := r.apply(t.Context(), conf, d, from(content))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := apply(entry(order(5, 1), "one", "one\n"), "one\n"); out.Report == nil || out.Report.Result != records.ResultApplied {
		t.Fatalf("%+v", out)
	}
	if out := apply(entry(order(5, 1), "one", "one\n"), "one\n"); out.Standing == nil || out.Refused != nil {
		t.Fatalf("the same entry again: %+v", out)
	}
	restore := restoreEntry(order(5, 1), "one")
	for what, d := range map[string]*records.Desired{
		"of another rollout": entry(order(5, 1), "two", "one\n"), "of another content": entry(order(5, 1), "one", "two\n"),
		"of both": entry(order(5, 1), "two", "two\n"), "to go back": restore,
	} {
		out := apply(d, "two\n")
		if out.Refused == nil || out.Refused.Twin != "one" || !strings.Contains(out.Refused.Error(), "0.5.1") || !strings.Contains(out.Refused.Error(), "`aimlock recover`") {
			t.Errorf("%s: %+v", what, out)
		}
		rep := out.Report
		if rep == nil {
			rep = out.Standing
		}
		if rep == nil || rep.Result != records.ResultRefused || rep.Order != order(5, 1) || rep.Refused == nil || *rep.Refused != order(5, 1) || rep.Revision != entry(order(1, 1), "", "one\n").Revision {
			t.Errorf("%s: %+v", what, rep)
		}
		if r.read(t) != "one\n" {
			t.Fatalf("%s: the file is %q", what, r.read(t))
		}
	}
	if err := claim(r.state, "n1"); err != nil {
		t.Fatal(err)
	}
	if list, err := ReadStatus(r.state); err != nil || len(list) != 1 || list[0].State != records.ResultApplied || list[0].Error != "refused 0.5.1: `aimlock recover` (Consul went back)" {
		t.Errorf("%+v, %v", list, err)
	}
	if out := apply(entry(orchestrator.Order{Epoch: 1, Token: 2, Seq: 1}, "two", "two\n"), "two\n"); out.Report == nil || out.Report.Result != records.ResultApplied || r.read(t) != "two\n" {
		t.Errorf("of the next epoch: %+v, %q", out, r.read(t))
	}
}

// So it is where several configs belong together, whichever of them has it, and where
// the entry of one is not there yet.
func TestGroupOrderOfTwoEntries(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	contents := set("v1", trio)
	if outs, err := r.applyGroup(t.Context(), trio, entries(order(20, 1), "one", trio, contents), sources(contents)); err != nil || outs[0].Report.Result != records.ResultApplied {
		t.Fatalf("%+v, %v", outs, err)
	}
	next := set("v2", trio)
	ds := entries(order(20, 1), "two", trio, next)
	outs, err := r.applyGroup(t.Context(), trio, ds, sources(next))
	if err != nil {
		t.Fatal(err)
	}
	for i, out := range outs {
		if out.Refused == nil || out.Refused.Twin != "one" || out.Report == nil || out.Report.Result != records.ResultRefused {
			t.Errorf("%s: %+v", trio[i], out)
		}
	}
	if out, err := r.wait(t.Context(), trio[1], ds[1], "the entry of c.conf is missing"); err != nil || out.Refused == nil || out.Refused.Twin != "one" {
		t.Errorf("%+v, %v", out, err)
	}
	if st := r.peek(trio[0]); st == nil || st.Mark != order(20, 1) || st.Desired.Rollout != "one" {
		t.Errorf("%+v", st)
	}
}

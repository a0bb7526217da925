package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

var trio = []string{"c.conf", "a.conf", "b.conf"}

// entries makes the entries of a group; contents are in its order.
func entries(o orchestrator.Order, rollout string, configs, contents []string) []*records.Desired {
	ds := make([]*records.Desired, len(configs))
	for i, c := range configs {
		ds[i] = entry(o, rollout, contents[i])
		ds[i].Destination, ds[i].Configs = "/etc/aim/"+c, configs
		ds[i].Action, ds[i].Requires = records.ActionApplyWith, []string{records.FeatureGroups}
	}
	return ds
}

func restores(o orchestrator.Order, rollout string, configs []string) []*records.Desired {
	ds := entries(o, rollout, configs, make([]string, len(configs)))
	for i, d := range ds {
		ds[i] = &records.Desired{
			Version: 1, Order: o, Rollout: rollout, Destination: d.Destination, Configs: configs,
			Action: records.ActionRestore, Requires: d.Requires,
		}
	}
	return ds
}

func sources(contents []string) []source {
	all := make([]source, len(contents))
	for i, c := range contents {
		all[i] = from(c)
	}
	return all
}

// set are the contents of a group's revision: "v2 c.conf\n" and so on.
func set(v string, configs []string) []string {
	out := make([]string, len(configs))
	for i, c := range configs {
		out[i] = v + " " + c + "\n"
	}
	return out
}

type failer interface {
	Helper()
	Fatal(...any)
}

// files reads a group's files; "" is one that does not exist.
func (r *rig) files(t failer, configs []string) []string {
	t.Helper()
	out := make([]string, len(configs))
	for i, c := range configs {
		b, err := os.ReadFile(filepath.Join(r.root, "etc/aim", c))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out[i] = string(b)
	}
	return out
}

func (r *rig) groupDo(ds []*records.Desired, contents []string) (outcomes, error) {
	return r.applyGroup(context.Background(), ds[0].Configs, ds, sources(contents))
}

func (r *rig) groupMust(t testing.TB, ds []*records.Desired, contents []string, result string) outcomes {
	t.Helper()
	outs, err := r.groupDo(ds, contents)
	if err != nil {
		t.Fatalf("order %s: %v", ds[0].Order, err)
	}
	for i, out := range outs {
		if out.Report == nil || out.Report.Result != result || out.Report.Order != ds[i].Order {
			t.Fatalf("order %s: %s: %+v, want %s", ds[0].Order, ds[i].Configs[i], out.Report, result)
		}
	}
	return outs
}

func same(a, b []string) bool { return strings.Join(a, "\x00") == strings.Join(b, "\x00") }

func TestGroup(t *testing.T) {
	r := newRig(t)
	trace := filepath.Join(t.TempDir(), "trace")
	told := func() string {
		b, err := os.ReadFile(trace)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		_ = os.Remove(trace)
		return string(b)
	}
	reload, healthy := sh("echo reload >>"+trace), func(c string) *records.Command { return sh("echo healthy " + c + " >>" + trace) }
	with := func(ds []*records.Desired) []*records.Desired {
		for i, d := range ds {
			d.Reload, d.Healthy = reload, healthy(trio[i])
		}
		return ds
	}
	v1, v2 := set("v1", trio), set("v2", trio)
	r.groupMust(t, with(entries(order(1, 1), "r1", trio, v1)), v1, records.ResultApplied)
	if got := r.files(t, trio); !same(got, v1) {
		t.Fatalf("files %q", got)
	}
	if got := told(); got != "reload\nhealthy c.conf\nhealthy a.conf\nhealthy b.conf\n" {
		t.Errorf("commands: %q", got)
	}

	// One changes: the others are not written, and one reload is enough.
	one := append([]string(nil), v1...)
	one[1] = v2[1]
	before, err := os.Stat(filepath.Join(r.root, "etc/aim/c.conf"))
	if err != nil {
		t.Fatal(err)
	}
	outs := r.groupMust(t, with(entries(order(2, 1), "r2", trio, one)), one, records.ResultApplied)
	if outs[0].Changed || !outs[1].Changed || outs[2].Changed {
		t.Errorf("changed: %v %v %v", outs[0].Changed, outs[1].Changed, outs[2].Changed)
	}
	if after, err := os.Stat(filepath.Join(r.root, "etc/aim/c.conf")); err != nil || !os.SameFile(before, after) {
		t.Errorf("a file that stands was written again: %v", err)
	}
	if got := told(); got != "reload\nhealthy c.conf\nhealthy a.conf\nhealthy b.conf\n" {
		t.Errorf("commands: %q", got)
	}
	// None changes: nothing runs.
	r.groupMust(t, with(entries(order(3, 1), "r3", trio, one)), one, records.ResultApplied)
	if got := told(); got != "" {
		t.Errorf("commands: %q", got)
	}

	// The last one is not valid, or not healthy: none is applied, all say why.
	for i, edit := range []func(d *records.Desired){
		func(d *records.Desired) { d.Validate = sh("echo no such directive; exit 3") },
		func(d *records.Desired) { d.Healthy = sh("echo down; exit 3") },
		func(d *records.Desired) { d.Destination = "/etc/aim/c.conf" },
		func(d *records.Desired) { d.Requires = append(d.Requires, "telepathy") },
		func(d *records.Desired) { d.Size++ },
	} {
		ds := entries(order(uint64(10+i), 1), "r10", trio, v2)
		edit(ds[2])
		outs := r.groupMust(t, ds, v2, records.ResultFailed)
		if got := r.files(t, trio); !same(got, one) {
			t.Fatalf("case %d: files %q", i, got)
		}
		for k, out := range outs {
			if rep := out.Report; !strings.HasPrefix(rep.Error, "b.conf: ") || !strings.Contains(rep.Error, "3 configs that are applied all or none") ||
				rep.SHA256 != sum256([]byte(one[k])) {
				t.Errorf("case %d: %s: %+v", i, trio[k], rep)
			}
		}
		if l := r.leftovers(t); len(l) != 3 {
			t.Errorf("case %d: left over %v", i, l)
		}
		// An order that is answered stays answered.
		again, err := r.groupDo(ds, v2)
		if err != nil || again[0].Report != nil || again[0].Standing.Result != records.ResultFailed {
			t.Errorf("case %d: again %+v %v", i, again, err)
		}
	}

	// A newer order for one of them, alone, refuses the group's whole.
	alone := entry(order(30, 1), "r30", "alone\n")
	alone.Destination = "/etc/aim/a.conf"
	if out, err := r.apply(t.Context(), "a.conf", alone, from("alone\n")); err != nil || out.Report.Result != records.ResultApplied {
		t.Fatalf("%+v %v", out, err)
	}
	outs, err = r.groupDo(entries(order(29, 1), "r29", trio, v2), v2)
	if err != nil {
		t.Fatal(err)
	}
	for k, out := range outs {
		if out.Refused == nil || out.Report.Result != records.ResultRefused || *out.Report.Refused != order(29, 1) || !strings.Contains(out.Report.Error, "a.conf") {
			t.Errorf("%s: %+v", trio[k], out.Report)
		}
	}
	if got := r.files(t, trio); got[0] != one[0] || got[1] != "alone\n" || got[2] != one[2] {
		t.Errorf("files %q", got)
	}

	// Back to before r2, all of them.
	r.groupMust(t, with(restores(order(40, 1), "r2", trio)), make([]string, 3), records.ResultRolledBack)
	if got := r.files(t, trio); !same(got, v1) {
		t.Errorf("files %q", got)
	}
	// Before r1 there was nothing.
	r.groupMust(t, restores(order(41, 1), "r1", trio), make([]string, 3), records.ResultRolledBack)
	if got := r.files(t, trio); !same(got, make([]string, 3)) {
		t.Errorf("files %q", got)
	}
}

// A restore of which one part is not possible leaves all as it is.
func TestGroupRestoreAllOrNone(t *testing.T) {
	r := newRig(t)
	v1, v2 := set("v1", trio), set("v2", trio)
	r.groupMust(t, entries(order(1, 1), "r1", trio, v1), v1, records.ResultApplied)
	r.groupMust(t, entries(order(2, 1), "r2", trio, v2), v2, records.ResultApplied)
	// The copy of what stood is damaged.
	if err := os.WriteFile(filepath.Join(configDir(r.state, "b.conf"), blobDir, sum256([]byte(v1[2]))), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	outs := r.groupMust(t, restores(order(2, 2), "r2", trio), make([]string, 3), records.ResultFailed)
	if got := r.files(t, trio); !same(got, v2) {
		t.Errorf("files %q", got)
	}
	if !strings.HasPrefix(outs[0].Report.Error, "b.conf: what stood before") {
		t.Errorf("%s", outs[0].Report.Error)
	}
	// Where a file that was put back is not well, all stay put back: there are
	// no others.
	w := newRig(t)
	w.groupMust(t, entries(order(1, 1), "r1", trio, v1), v1, records.ResultApplied)
	w.groupMust(t, entries(order(2, 1), "r2", trio, v2), v2, records.ResultApplied)
	ds := restores(order(2, 2), "r2", trio)
	ds[1].Healthy = sh("exit 1")
	outs = w.groupMust(t, ds, make([]string, 3), records.ResultFailed)
	if got := w.files(t, trio); !same(got, v1) {
		t.Errorf("files %q", got)
	}
	for k, out := range outs {
		if out.Report.SHA256 != sum256([]byte(v1[k])) || !strings.Contains(out.Report.Error, "was put back, but") {
			t.Errorf("%+v", out.Report)
		}
	}
}

// An entry that waits takes nothing: neither mark nor file.
func TestGroupWaits(t *testing.T) {
	r := newRig(t)
	v1 := set("v1", trio)
	ds := entries(order(5, 1), "r5", trio, v1)
	out, err := r.wait(t.Context(), "a.conf", ds[1], "the entry of b.conf, which belongs with it, is missing")
	if err != nil || out.Report == nil || out.Report.Waiting == "" || !out.Report.Order.IsZero() || out.Report.Result != "" {
		t.Fatalf("%+v %v", out.Report, err)
	}
	if out, err = r.wait(t.Context(), "a.conf", ds[1], "the entry of b.conf, which belongs with it, is missing"); err != nil || out.Report != nil {
		t.Errorf("said twice: %+v %v", out.Report, err)
	}
	st, err := ReadStatus(r.withNode(t))
	if err != nil || len(st) != 1 || st[0].State != StateWaiting || !strings.Contains(st[0].Error, "b.conf") {
		t.Errorf("%+v %v", st, err)
	}
	r.groupMust(t, ds, v1, records.ResultApplied)
	if st, err = ReadStatus(r.state); err != nil || len(st) != 3 || st[0].State != records.ResultApplied || !same(st[0].Configs, trio) {
		t.Errorf("%+v %v", st, err)
	}
	// Of an older order nothing waits.
	if out, err = r.wait(t.Context(), "a.conf", entries(order(4, 1), "r4", trio, v1)[1], "x"); err != nil || out.Refused == nil {
		t.Errorf("%+v %v", out, err)
	}
}

func (r *rig) withNode(t testing.TB) string {
	t.Helper()
	if err := claim(r.state, "n1"); err != nil {
		t.Fatal(err)
	}
	return r.state
}

// TestGroupConcurrent lets groups and single orders, which share configs in
// every order of their names, work at once: nothing waits for ever, and in the
// end the newest of each config stands.
func TestGroupConcurrent(t *testing.T) {
	r := newRig(t)
	const n = 16
	errs := make(chan error, n)
	for i := range uint64(n) {
		f := &rig{root: r.root, state: r.state, fence: r.newFence()}
		f.lockWait = time.Minute
		go func() {
			o := order(i*5%n+1, 1)
			configs := [][]string{{"a.conf", "b.conf"}, {"b.conf", "a.conf"}, {"c.conf", "a.conf", "b.conf"}, {"b.conf"}}[i%4]
			c := set(o.String(), configs)
			if len(configs) == 1 {
				d := entry(o, "r", c[0])
				d.Destination = "/etc/aim/b.conf"
				_, err := f.apply(context.Background(), "b.conf", d, from(c[0]))
				errs <- err
				return
			}
			_, err := f.groupDo(entries(o, fmt.Sprint("r", i), configs, c), c)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, c := range trio {
		st, err := loadState(configDir(r.state, c), c)
		if err == nil && st.Mark.IsZero() {
			// It was only ever in groups that were refused.
			continue
		}
		if err != nil || st.Phase != phaseDone {
			t.Fatalf("%s: %+v %v", c, st, err)
		}
		if got := r.files(t, []string{c})[0]; st.Report.Result == records.ResultApplied && got != st.Mark.String()+" "+c+"\n" {
			t.Errorf("%s is %q under mark %s", c, got, st.Mark)
		}
	}
}

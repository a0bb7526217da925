package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// device is a machine without an agent, which keeps what it had before its last
// order.
type device struct {
	content, last string
	has, keeps    bool
	highest       plugin.Order
	calls         []string
	// refuse is what Apply says of a content that holds "poison".
	refuse error
	// unfenced is what its plugin says of itself; meta is what it was told of the node last.
	unfenced bool
	meta     map[string]string
	// mute is why it cannot be read; sumless: it tells no SHA-256.
	mute    error
	sumless bool
	// late is what comes in place of the answer to an Apply that was carried out.
	late error
}

func (d *device) Fencing() bool { return true }

func (d *device) Apply(_ context.Context, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	d.meta = r.Meta
	d.calls = append(d.calls, fmt.Sprintf("apply %s %s %s %s", r.Order, r.Destination, r.Mode, strings.TrimSpace(string(r.Content))))
	switch {
	case r.Order.Compare(d.highest) < 0:
		return nil, &plugin.StaleError{Highest: d.highest}
	case strings.Contains(string(r.Content), "poison"):
		return nil, d.refuse
	}
	d.highest, d.last, d.keeps = r.Order, d.content, d.has
	d.content, d.has = string(r.Content), true
	if d.late != nil {
		return nil, d.late
	}
	return &plugin.Applied{Highest: r.Order, SHA256: r.SHA256, Revision: r.Revision}, nil
}

func (d *device) Read(_ context.Context, r *plugin.ReadRequest) (*plugin.State, error) {
	d.meta = r.Meta
	s := &plugin.State{Exists: d.has, Highest: d.highest, Size: int64(len(d.content))}
	if d.has && !d.sumless {
		s.SHA256 = sum256([]byte(d.content))
	}
	if r.Content {
		s.Content = []byte(d.content)
	}
	return s, d.mute
}

func (d *device) Restore(_ context.Context, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	d.meta = r.Meta
	d.calls = append(d.calls, "restore "+r.Order.String())
	if !d.keeps {
		return nil, fmt.Errorf("nothing is kept: %w", plugin.ErrNotFound)
	}
	d.content, d.highest = d.last, r.Order
	return &plugin.Applied{Highest: r.Order}, nil
}

// one is Targets of one plugin, called "router", in this process.
type one struct {
	plugin.Target
	dev *device
}

func (o one) Known(name string) error {
	if name != "router" {
		return fmt.Errorf("plugin %s: there is no such plugin", name)
	}
	return nil
}

func (o one) Fenced(context.Context, string) (bool, error) { return !o.dev.unfenced, nil }

func (o one) Read(ctx context.Context, _ string, _ json.RawMessage, r *plugin.ReadRequest) (*plugin.State, error) {
	return o.Target.Read(ctx, r)
}

func (o one) Apply(ctx context.Context, _ string, _ json.RawMessage, r *plugin.ApplyRequest) (*plugin.Applied, error) {
	return o.Target.Apply(ctx, r)
}

func (o one) Restore(ctx context.Context, _ string, _ json.RawMessage, r *plugin.RestoreRequest) (*plugin.Applied, error) {
	return o.Target.Restore(ctx, r)
}

func newDevice(t *testing.T) (*rig, *device) {
	t.Helper()
	d := &device{refuse: errors.New("the device refuses line 1")}
	c, err := plugin.InProcess(plugin.Plugin{Name: "router", Version: "1.0.0", Target: func() plugin.Target { return d }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tg, err := c.Target(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.targets = one{tg, d}
	return r, d
}

// there is an entry with a target.
func there(o orchestrator.Order, rollout, content string) *records.Desired {
	d := entry(o, rollout, content)
	d.Action, d.Requires, d.Target = records.ActionApplyWith, []string{records.FeatureTargets}, &records.Target{Name: "router"}
	return d
}

func TestTarget(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	stands := func(want string) {
		t.Helper()
		if dev.content != want {
			t.Errorf("%q stands there, want %q; it was told %q", dev.content, want, dev.calls)
		}
		if _, err := os.Lstat(filepath.Join(r.root, "etc")); err == nil {
			t.Error("the agent has written to its own machine")
		}
	}
	d := there(order(1, 1), "r1", "one\n")
	d.Owner, d.Validate = "nobody-here", sh(`grep -q one "${staged}"`)
	out := r.must(t, d, "one\n", records.ResultApplied)
	stands("one\n")
	if out.Report.SHA256 != d.SHA256 || out.Report.Revision != d.Revision || dev.calls[0] != "apply 0-1-1 /etc/aim/aim.conf 0640 one" {
		t.Errorf("%+v, told %q", out.Report, dev.calls)
	}
	// The same content by a new order is the target's to say nothing of.
	r.must(t, there(order(1, 2), "r1", "one\n"), "one\n", records.ResultApplied)
	if dev.highest != (plugin.Order{Token: 1, Seq: 2}) {
		t.Errorf("the target has not heard of the order: %s", dev.highest)
	}
	// What is invalid never gets there.
	d = there(order(2, 1), "r2", "two\n")
	d.Validate = sh("exit 1")
	before := len(dev.calls)
	r.must(t, d, "two\n", records.ResultFailed)
	if len(dev.calls) != before {
		t.Errorf("told %q", dev.calls[before:])
	}
	// What fails there fails with its words, and the last good content is handed over.
	out = r.must(t, there(order(2, 2), "r2", "poison\n"), "poison\n", records.ResultFailed)
	stands("one\n")
	if out.Report.Error != "target router: the device refuses line 1" || dev.calls[len(dev.calls)-1] != "apply 0-2-2 /etc/aim/aim.conf 0640 one" || out.Report.SHA256 != sum256([]byte("one\n")) {
		t.Errorf("%+v, told %q", out.Report, dev.calls)
	}
	// So it is where the content was taken, and then is not healthy.
	d = there(order(2, 3), "r2", "two\n")
	d.Healthy = sh("exit 1")
	r.must(t, d, "two\n", records.ResultFailed)
	stands("one\n")
	// A rollback goes through the target too.
	r.must(t, there(order(3, 1), "r3", "three\n"), "three\n", records.ResultApplied)
	stands("three\n")
	back := restoreEntry(order(3, 2), "r3")
	back.Requires, back.Target = []string{records.FeatureTargets}, d.Target
	out = r.must(t, back, "", records.ResultRolledBack)
	stands("one\n")
	if out.Report.SHA256 != sum256([]byte("one\n")) {
		t.Errorf("%+v", out.Report)
	}
	// Nothing of it is a file of this machine that somebody could change.
	if found, err := r.lookForDrift(t.Context(), conf); err != nil || found.is {
		t.Errorf("%+v, %v", found, err)
	}
	if left, settled := ReadLeft(r.state, r.root, []string{conf}); !settled || left[0].Exists {
		t.Errorf("%+v, settled %v", left, settled)
	}
}

// TestTargetIsAhead: what the target has seen and this agent has not refuses the
// order, and nothing changes.
func TestTargetIsAhead(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	r.must(t, there(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
	dev.highest = plugin.Order{Token: 9, Seq: 4}
	calls := len(dev.calls)
	d := there(order(2, 1), "r2", "two\n")
	out := r.must(t, d, "two\n", records.ResultRefused)
	if dev.content != "one\n" || len(dev.calls) != calls+1 {
		t.Errorf("%q stands there, told %q", dev.content, dev.calls[calls:])
	}
	if out.Refused == nil || *out.Report.Refused != d.Order || out.Report.Order != order(9, 4) || out.Report.SHA256 != sum256([]byte("one\n")) ||
		!strings.Contains(out.Report.Error, "is older than 0.9.4, which target router has seen") {
		t.Errorf("%+v, %v", out.Report, out.Refused)
	}
	out, err := r.apply(t.Context(), conf, d, from("two\n"))
	if err != nil || out.Standing == nil || out.Standing.Result != records.ResultRefused || len(dev.calls) != calls+1 {
		t.Errorf("again: %+v, %v", out, err)
	}
	r.must(t, there(order(10, 1), "r3", "three\n"), "three\n", records.ResultApplied)
}

// TestTargetFirst: what stood there before this agent's first order only the target
// can bring back.
func TestTargetFirst(t *testing.T) {
	t.Parallel()
	for _, keeps := range []bool{true, false} {
		r, dev := newDevice(t)
		dev.content, dev.has = "by hand\n", keeps
		r.must(t, there(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
		back := restoreEntry(order(1, 2), "r1")
		back.Requires, back.Target = []string{records.FeatureTargets}, &records.Target{Name: "router"}
		if keeps {
			r.must(t, back, "", records.ResultRolledBack)
			if dev.content != "by hand\n" {
				t.Errorf("%q stands there", dev.content)
			}
			continue
		}
		out := r.must(t, back, "", records.ResultFailed)
		if !strings.Contains(out.Report.Error, "the target cannot bring it back") || out.Report.SHA256 != sum256([]byte("one\n")) {
			t.Errorf("%+v", out.Report)
		}
	}
}

// TestTargetMeta: the target is told of the node what the rollout was planned with, in
// every call.
func TestTargetMeta(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	d := there(order(1, 1), "r1", "one\n")
	d.Target.Meta = map[string]string{"address": "192.0.2.7"}
	back := restoreEntry(order(1, 2), "r1")
	back.Requires, back.Target = []string{records.FeatureTargets}, d.Target
	for _, c := range []struct {
		call string
		do   func()
	}{
		{"apply", func() { r.must(t, d, "one\n", records.ResultApplied) }},
		{"read", func() { r.look(t) }},
		{"restore", func() { r.must(t, back, "", records.ResultFailed) }},
	} {
		dev.meta = nil
		if c.do(); dev.meta["address"] != "192.0.2.7" {
			t.Errorf("%s: told %v", c.call, dev.meta)
		}
	}
}

func (r *rig) look(t *testing.T) drifted {
	t.Helper()
	found, err := r.lookThere(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestTargetFenced: an entry that counts on a fence is for a plugin that has one, also
// where it was accepted before the agent was given another.
func TestTargetFenced(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	d := there(order(1, 1), "r1", "one\n")
	d.Requires, d.Target.Fenced = append(d.Requires, records.FeatureFencedTargets), true
	r.must(t, d, "one\n", records.ResultApplied)
	dev.unfenced = true
	e := *d
	e.Order = order(2, 1)
	calls := len(dev.calls)
	out := r.must(t, &e, "one\n", records.ResultFailed)
	if len(dev.calls) != calls || !strings.Contains(out.Report.Error, `counts on a target that is fenced, and plugin "router" of this agent is not`) {
		t.Errorf("%+v, told %q", out.Report, dev.calls[calls:])
	}
	e.Order, dev.unfenced = order(3, 1), false
	r.step = func(at string) {
		if at == "after rename" {
			panic(crash{})
		}
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = r.apply(t.Context(), conf, &e, from("one\n"))
	}()
	again := r.newFence()
	again.targets, r.fence = r.targets, again
	dev.unfenced = true
	fin, err := r.finish(t.Context(), conf)
	if err != nil || fin.Report == nil || fin.Report.Result != records.ResultFailed || len(dev.calls) != calls {
		t.Errorf("%+v, %v, told %q", fin.Report, err, dev.calls[calls:])
	}
}

// TestTargetDrift: what somebody else has changed at the target is told, and put back
// where the spec says so.
func TestTargetDrift(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	d := there(order(1, 1), "r1", "one\n")
	r.must(t, d, "one\n", records.ResultApplied)
	drift := func(what string) {
		t.Helper()
		found := r.look(t)
		rep := found.rep
		switch {
		case what == "" && (found.is || rep == nil || rep.Drift != nil):
			t.Errorf("it drifts: %+v", found)
		case what != "" && (!found.is || rep == nil || rep.Drift == nil || rep.Drift.What != what):
			t.Errorf("want %q: %+v", what, found)
		}
	}
	if found := r.look(t); found.is || found.rep != nil {
		t.Errorf("it drifts: %+v", found)
	}
	dev.content = "by hand\n"
	drift("its content was changed at target router")
	dev.sumless = true
	dev.content = "one\n"
	drift("")
	dev.has = false
	drift("removed at target router")
	dev.has, dev.content, dev.highest = true, "of another\n", plugin.Order{Token: 7, Seq: 2}
	drift("a newer order, 0.7.2, was carried out at target router for somebody else")
	// What cannot be asked says nothing.
	dev.mute = errors.New("no route to host")
	if found, err := r.lookThere(t.Context(), conf); err == nil || found.is || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("%+v, %v", found, err)
	}
	dev.mute = nil
	// Left as it is, unless the order says otherwise.
	content := func(string, *records.Desired) source { return from("one\n") }
	state := func() *plugin.State { return r.look(t).there }
	if reps, err := r.putBackDrifted(t.Context(), conf, state(), content); err != nil || reps != nil {
		t.Errorf("%+v, %v", reps, err)
	}
	e := there(order(8, 1), "r2", "one\n")
	e.Drift = records.DriftRestore
	r.must(t, e, "one\n", records.ResultApplied)
	dev.content = "by hand\n"
	found := r.look(t)
	if !found.may {
		t.Errorf("it may not be put back: %+v", found)
	}
	reps, err := r.putBackDrifted(t.Context(), conf, found.there, content)
	if err != nil || dev.content != "one\n" || reps[conf].Restored == nil || reps[conf].Drift != nil || reps[conf].Result != records.ResultApplied || reps[conf].Order != e.Order {
		t.Errorf("%q stands there, %+v, %v", dev.content, reps[conf], err)
	}
	// What the target does not take is told, and the answer to the order stands.
	dev.content, dev.highest = "of another\n", plugin.Order{Token: 9, Seq: 1}
	found = r.look(t)
	reps, err = r.putBackDrifted(t.Context(), conf, found.there, content)
	if err != nil || dev.content != "of another\n" || reps[conf].Drift == nil || !strings.Contains(reps[conf].Drift.Error, "which target router has seen") || reps[conf].Result != records.ResultApplied {
		t.Errorf("%q stands there, %+v, %v", dev.content, reps[conf], err)
	}
	if !r.look(t).is {
		t.Error("it is forgotten")
	}
}

// TestTargetDriftMeanwhile: what a target told before an order came counts for nothing.
func TestTargetDriftMeanwhile(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	r.must(t, there(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
	dev.content = "by hand\n"
	late := *r.fence
	late.targets = slow{one{dev, dev}, func() { r.must(t, there(order(2, 1), "r2", "two\n"), "two\n", records.ResultApplied) }}
	if found, err := late.lookThere(t.Context(), conf); err != nil || found.is || found.rep != nil {
		t.Errorf("%+v, %v", found, err)
	}
	if found := r.look(t); found.is || dev.content != "two\n" {
		t.Errorf("%q stands there, %+v", dev.content, found)
	}
}

// slow is a target of which something happens while it answers.
type slow struct {
	one
	then func()
}

func (s slow) Read(ctx context.Context, name string, config json.RawMessage, r *plugin.ReadRequest) (*plugin.State, error) {
	st, err := s.one.Read(ctx, name, config, r)
	s.then()
	return st, err
}

func TestTargetUnknown(t *testing.T) {
	t.Parallel()
	r, dev := newDevice(t)
	d := there(order(1, 1), "r1", "one\n")
	d.Target.Name = "switch"
	out := r.must(t, d, "one\n", records.ResultFailed)
	if !strings.Contains(out.Report.Error, `plugin "switch"`) || !strings.Contains(out.Report.Error, "-config") {
		t.Error(out.Report.Error)
	}
	d = there(order(1, 2), "r1", "one\n")
	d.Configs = []string{conf, "other"}
	if err := r.checkTarget(d); err == nil {
		t.Error("a target among several configs passes")
	}
	r.targets = nil
	if out = r.must(t, there(order(1, 3), "r1", "one\n"), "one\n", records.ResultFailed); !strings.Contains(out.Report.Error, `plugin "router"`) {
		t.Error(out.Report.Error)
	}
	if len(dev.calls) > 0 || r.read(t) != "" {
		t.Errorf("told %q, and here stands %q", dev.calls, r.read(t))
	}
}

// TestTargetCrash ends the agent between any two of its writes: whatever comes next,
// the order is carried out there, once more where that is not known.
func TestTargetCrash(t *testing.T) {
	t.Parallel()
	for step := 0; ; step++ {
		r, dev := newDevice(t)
		r.must(t, there(order(1, 1), "r1", "one\n"), "one\n", records.ResultApplied)
		n, crashed := 0, false
		r.step = func(string) {
			if n++; n == step+1 {
				panic(crash{})
			}
		}
		func() {
			defer func() {
				if v := recover(); v != nil {
					if _, ok := v.(crash); !ok {
						panic(v)
					}
					crashed = true
				}
			}()
			_, _ = r.apply(t.Context(), conf, there(order(2, 1), "r2", "two\n"), from("two\n"))
		}()
		if !crashed {
			if step < 8 {
				t.Fatalf("only %d steps", step)
			}
			return
		}
		again := r.newFence()
		again.targets = r.targets
		r.fence = again
		if _, err := r.finish(t.Context(), conf); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		out, err := r.apply(t.Context(), conf, there(order(2, 1), "r2", "two\n"), from("two\n"))
		if err != nil || dev.content != "two\n" || dev.highest != (plugin.Order{Token: 2, Seq: 1}) {
			t.Fatalf("step %d: %q stands there, %+v, %v", step, dev.content, out, err)
		}
	}
}

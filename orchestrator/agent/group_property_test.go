package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// groupWorld is a node with three configs, and what must hold of it.
type groupWorld struct {
	*rig
	// given are the entries of each order, and its contents: they never change.
	given    map[orchestrator.Order][]*records.Desired
	contents map[orchestrator.Order][]string
	// accepted is the newest order of each config.
	accepted map[string]orchestrator.Order
	reported map[string]*records.Actual
}

// act runs do on a fence that may stop at any step, as a process that is killed.
func (w *groupWorld) act(rt *rapid.T, do func(*rig) error) (crashed bool) {
	r := &rig{root: w.root, state: w.state, fence: w.newFence()}
	r.recover = func(_ context.Context, config string) (*records.Actual, error) { return w.reported[config], nil }
	r.settled = func(config string, rep *records.Actual) { w.reported[config] = rep }
	left := rapid.IntRange(0, 90).Draw(rt, "crash after")
	r.step = func(name string) {
		for _, c := range trio {
			st := r.peek(c)
			if st == nil {
				continue
			}
			if st.Mark.Less(w.accepted[c]) {
				rt.Fatalf("%s: the mark of %s went back from %s to %s", name, c, w.accepted[c], st.Mark)
			}
			w.accepted[c] = st.Mark
		}
		if left--; left == 0 {
			panic(crash{})
		}
	}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case crash:
			crashed = true
		default:
			panic(p)
		}
	}()
	if err := do(r); err != nil {
		rt.Fatalf("%v", err)
	}
	return false
}

// order draws an order, and makes its entries where it is new: for some of the
// configs, or one alone.
func (w *groupWorld) order(rt *rapid.T) []*records.Desired {
	o := order(rapid.Uint64Range(1, 8).Draw(rt, "token"), rapid.Uint64Range(1, 2).Draw(rt, "seq"))
	if ds := w.given[o]; ds != nil {
		return ds
	}
	configs := rapid.SampledFrom([][]string{trio, {"a.conf", "b.conf"}, {"c.conf", "b.conf"}, {"a.conf"}, {"b.conf"}}).Draw(rt, "configs")
	rollout := fmt.Sprint("r", o.Token)
	contents := set(o.String(), configs)
	if rapid.IntRange(0, 3).Draw(rt, "in part") == 0 {
		// This file is as it was in some other order.
		contents[0] = set("v", configs)[0]
	}
	ds := entries(o, rollout, configs, contents)
	switch k := rapid.IntRange(0, 9).Draw(rt, "kind"); {
	case k < 2:
		ds = restores(o, rollout, configs)
	case k == 2:
		ds[len(ds)-1].Validate = &records.Command{Argv: []string{"/bin/false"}}
	case k == 3:
		ds[len(ds)-1].Healthy = &records.Command{Argv: []string{"/bin/false"}}
	}
	if len(configs) == 1 {
		ds[0].Configs = nil
	}
	w.given[o], w.contents[o] = ds, contents
	return ds
}

// whole checks that no order that is the newest of several configs stands for
// some of them only.
func (w *groupWorld) whole(rt *rapid.T) {
	files := map[string]string{}
	for i, got := range w.files(rt, trio) {
		files[trio[i]] = got
	}
	for o, ds := range w.given {
		if ds[0].Action == records.ActionRestore || len(ds) < 2 {
			continue
		}
		var have, not []string
		for i, c := range ds[0].Configs {
			st := w.peek(c)
			if st == nil || st.Mark != o || st.Phase != phaseDone {
				continue
			}
			if files[c] == w.contents[o][i] {
				have = append(have, c)
			} else {
				not = append(not, c)
			}
		}
		// A content that two orders share says nothing.
		have = slices.DeleteFunc(have, func(c string) bool { return files[c] == "v "+c+"\n" })
		if len(have) > 0 && len(not) > 0 {
			rt.Fatalf("of order %s stand %q, but not %q: %q", o, have, not, files)
		}
	}
}

// TestGroupProperty lets groups that share configs, orders of one config alone,
// restores, failing commands, crashes at any step, restarts and lost states come
// in any order: no mark goes back, and no order stands in part.
func TestGroupProperty(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		w := &groupWorld{
			rig:   &rig{root: filepath.Join(dir, strconv.Itoa(n), "root"), state: filepath.Join(dir, strconv.Itoa(n), "state")},
			given: map[orchestrator.Order][]*records.Desired{}, contents: map[orchestrator.Order][]string{},
			accepted: map[string]orchestrator.Order{}, reported: map[string]*records.Actual{},
		}
		if err := errors.Join(os.MkdirAll(w.root, 0o755), folder(filepath.Join(w.state, "configs"))); err != nil {
			rt.Fatal(err)
		}
		w.fence = w.newFence()
		defer func() { _ = os.RemoveAll(filepath.Join(dir, strconv.Itoa(n))) }()
		rt.Repeat(map[string]func(*rapid.T){
			"order": func(rt *rapid.T) {
				ds := w.order(rt)
				o, contents := ds[0].Order, w.contents[ds[0].Order]
				configs := ds[0].Configs
				if len(ds) == 1 {
					configs = []string{filepath.Base(ds[0].Destination)}
				}
				older := ""
				for _, c := range configs {
					if o.Less(w.accepted[c]) {
						older = c
					}
				}
				before := w.files(rt, configs)
				var outs outcomes
				crashed := w.act(rt, func(r *rig) (err error) {
					if len(ds) > 1 {
						outs, err = r.groupDo(ds, contents)
						return err
					}
					out, err := r.apply(context.Background(), configs[0], ds[0], from(contents[0]))
					outs = outcomes{out}
					return err
				})
				if crashed {
					return
				}
				results := map[string]bool{}
				for i, out := range outs {
					rep := out.Report
					if rep == nil {
						rep = out.Standing
					}
					if rep == nil {
						rt.Fatalf("order %s has no answer for %s", o, configs[i])
					}
					if out.Report != nil {
						w.reported[configs[i]] = rep
					}
					if out.Refused == nil && rep.Order == o {
						results[rep.Result] = true
					}
					if got := w.files(rt, configs[i:i+1])[0]; rep.Result == records.ResultApplied && rep.Order == o && got != contents[i] {
						rt.Fatalf("order %s of %s is applied, but the file is %q", o, configs[i], got)
					}
				}
				if len(results) > 1 {
					rt.Fatalf("order %s of %q has the answers %v", o, configs, results)
				}
				if older != "" && len(ds) == 1 && !same(before, w.files(rt, configs)) {
					rt.Fatalf("order %s of %s came after a newer one and changed the file", o, configs[0])
				}
			},
			"restart": func(rt *rapid.T) {
				for _, c := range trio {
					if w.act(rt, func(r *rig) error {
						out, err := r.finish(context.Background(), c)
						if out.Report != nil {
							w.reported[c] = out.Report
						}
						return err
					}) {
						return
					}
				}
				w.whole(rt)
			},
			"lose state": func(rt *rapid.T) {
				c := rapid.SampledFrom(trio).Draw(rt, "config")
				st := w.peek(c)
				if st == nil || st.Phase != phaseDone || w.reported[c] == nil || st.Mark != w.reported[c].Order || !finished(orNoGroup(st), w.peek) {
					rt.Skip("the report does not tell the mark, or the order is under way")
				}
				if err := os.RemoveAll(configDir(w.state, c)); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				for i, got := range w.files(rt, trio) {
					if got != "" && got[len(got)-1] != '\n' {
						rt.Fatalf("%s is %q", trio[i], got)
					}
				}
			},
		})
	})
}

// orNoGroup makes a state of which a group can be asked.
func orNoGroup(st *state) *state {
	if st.Desired != nil && len(st.Desired.Configs) > 0 {
		return st
	}
	c := *st
	c.Desired = &records.Desired{Configs: []string{st.Config}}
	return &c
}

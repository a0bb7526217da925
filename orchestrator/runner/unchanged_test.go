package runner_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// indexes are the Raft indexes of the orders and the answers of all nodes.
func (f *fleet) indexes() map[string]uint64 {
	f.t.Helper()
	out := map[string]uint64{}
	k := keys.Prefix(keys.DefaultPrefix)
	for _, root := range []string{k.DesiredRoot(), k.ActualRoot()} {
		list, err := f.kv.List(f.t.Context(), root)
		if err != nil {
			f.t.Fatal(err)
		}
		for _, p := range list {
			out[p.Key] = p.ModifyIndex
		}
	}
	return out
}

// moved names the nodes that were given an order since.
func (f *fleet) moved(before map[string]uint64) map[string]bool {
	f.t.Helper()
	out := map[string]bool{}
	for key, index := range f.indexes() {
		if before[key] != index {
			out[keys.LastSegment(key)] = true
		}
	}
	return out
}

// What a node has exactly, and has said so, costs nothing: no order, no write on
// the node, no answer. Everything else is ordered anew.
func TestUnchangedCostsNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	k := keys.Prefix(keys.DefaultPrefix)
	roll := func(what string, edit func(*orchestrator.Spec), wanted ...string) *orchestrator.Header {
		t.Helper()
		// A bake that nobody would wait for: where nothing changes none is due.
		in := f.input("one", orchestrator.Stage{Name: "canary", Nodes: 1}, orchestrator.Stage{Name: "rest", Percent: 100})
		in.Spec.Hash = what
		edit(&in.Spec)
		before := f.indexes()
		out, err := f.runner().Start(t.Context(), in)
		if err != nil || out.Header.State != orchestrator.Succeeded || out.Header.Counts != (orchestrator.Counts{orchestrator.ClassApplied: 4}) {
			t.Fatalf("%s: %+v, %v", what, out, err)
		}
		moved := f.moved(before)
		for _, n := range wanted {
			if !moved[n] {
				t.Errorf("%s: %s got no order", what, n)
			}
			delete(moved, n)
		}
		if len(moved) > 0 {
			t.Errorf("%s: %v were written to", what, moved)
		}
		return &out.Header
	}
	all := []string{"n00", "n01", "n02", "n03"}
	first := roll("first", func(*orchestrator.Spec) {}, all...)
	again := roll("other stages, a bake and all", func(s *orchestrator.Spec) {
		for i := range s.Stages {
			s.Stages[i].Bake = time.Hour
		}
	})
	if again.Token <= first.Token {
		t.Errorf("token %d after %d", again.Token, first.Token)
	}
	roll("a command more", func(s *orchestrator.Spec) {
		s.Configs[0].Reload = &orchestrator.Command{Argv: []string{"true"}, Timeout: time.Minute}
	}, all...)
	command := func(s *orchestrator.Spec) {
		s.Configs[0].Reload = &orchestrator.Command{Argv: []string{"true"}, Timeout: time.Minute}
	}
	same := roll("the same once more", command)

	// Who has lost his order, or whose answer tells of a drift, is not taken at
	// his word.
	if _, err := f.kv.API().KV().Delete(k.Desired(config, "n02"), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, "n03", "root/etc/app.conf"), []byte("by hand"), 0o600); err != nil {
		t.Fatal(err)
	}
	// An agent that starts looks at once.
	f.stop["n03"]()
	<-f.done["n03"]
	f.startAgent("n03")
	f.until("the drift to be told", func() bool {
		key := k.Actual(config, "n03")
		p, err := f.kv.Get(t.Context(), key)
		var a records.Actual
		return err == nil && p != nil && records.Decode(key, p.Value, &a) == nil && a.Drift != nil
	})
	// It drifts from what the last rollout wants of it, though another one ordered
	// that.
	if some, n, err := f.runner().Drift(t.Context(), same); err != nil || n != 1 || some[0].Node != "n03" {
		t.Errorf("drift: %+v, %d, %v", some, n, err)
	}
	roll("two of them in doubt", command, "n02", "n03")

	// After `aimlock recover` an order of the former epoch says nothing.
	if _, err := f.kv.CAS(t.Context(), k.Epoch(), []byte("7"), 0); err != nil {
		t.Fatal(err)
	}
	roll("another epoch", command, all...)
	roll("and again", command)
}

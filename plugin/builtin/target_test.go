package builtin_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/aim-control/aimlock/plugin"
)

// TestFileTarget writes, refuses, reads and restores, in this process and by a
// program of its own, one after the other on the same files: the fence is on disk.
func TestFileTarget(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := config(t, map[string]any{"state_dir": filepath.Join(dir, "state"), "root": filepath.Join(dir, "root"), "validate": []string{"grep", "-q", "good", "${staged}"}})
	path := filepath.Join(dir, "root", "n1", "etc", "c.conf")
	place := plugin.Place{Node: "n1", Config: "c.conf", Destination: "/etc/c.conf"}
	token := uint64(0)
	for name, c := range map[string]*plugin.Client{"in process": inProcess(t, "file_target"), "external": external(t, "file_target")} {
		t.Log(name)
		tg, err := c.Target(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		apply := func(o plugin.Order, rollout, content string) (*plugin.Applied, error) {
			sum := sha256.Sum256([]byte(content))
			return tg.Apply(t.Context(), &plugin.ApplyRequest{
				Place: place, Order: o, Rollout: rollout, Revision: hex.EncodeToString(sum[:6]), SHA256: hex.EncodeToString(sum[:]), Content: []byte(content), Mode: "0640",
			})
		}
		stands := func(want string) {
			t.Helper()
			got, err := os.ReadFile(path)
			if err != nil || string(got) != want {
				t.Errorf("%q stands, %v, want %q", got, err, want)
			}
		}
		token += 10
		order := plugin.Order{Epoch: 1, Token: token}
		next := func() plugin.Order { order.Seq++; return order }
		if a, err := apply(next(), name+"1", "good one"); err != nil || a.Highest != order {
			t.Fatalf("%+v, %v", a, err)
		}
		stands("good one")
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
			t.Error(fi.Mode(), err)
		}
		if a, err := apply(next(), name+"2", "good two"); err != nil || a.Unchanged {
			t.Errorf("%+v, %v", a, err)
		}
		stands("good two")
		if a, err := apply(order, name+"2", "good two"); err != nil || !a.Unchanged {
			t.Errorf("the same order again: %+v, %v", a, err)
		}
		// What somebody has changed meanwhile is not taken for what the order left.
		if err := os.WriteFile(path, []byte("by hand"), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := apply(order, name+"2", "good two"); err != nil || a.Unchanged {
			t.Errorf("the same order again, after a change by hand: %+v, %v", a, err)
		}
		stands("good two")
		var stale *plugin.StaleError
		if _, err := apply(plugin.Order{Epoch: 1, Token: token - 1, Seq: 99}, "old", "good, but old"); !errors.As(err, &stale) || stale.Highest != order {
			t.Errorf("an older order: %v", err)
		}
		stands("good two")
		// Of another rollout it is an order that was given twice.
		if _, err := apply(order, "other", "good three"); !errors.As(err, &stale) || stale.Highest != order {
			t.Errorf("the same order of another rollout: %v", err)
		}
		stands("good two")
		if _, err := apply(next(), name+"3", "bad"); err == nil || errors.Is(err, plugin.ErrStale) {
			t.Errorf("content that does not pass: %v", err)
		}
		stands("good two")
		if a, err := tg.Restore(t.Context(), &plugin.RestoreRequest{Place: place, Order: next(), Rollout: name + "2"}); err != nil || a.Highest != order {
			t.Errorf("%+v, %v", a, err)
		}
		stands("good one")
		s, err := tg.Read(t.Context(), &plugin.ReadRequest{Place: place, Content: true})
		if err != nil || !s.Exists || string(s.Content) != "good one" || s.Highest != order {
			t.Errorf("%+v, %v", s, err)
		}
		none := place
		none.Config, none.Destination = "other.conf", "/nowhere/else"
		if s, err := tg.Read(t.Context(), &plugin.ReadRequest{Place: none}); err != nil || s.Exists {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

func TestFileTargetConfig(t *testing.T) {
	t.Parallel()
	c := inProcess(t, "file_target")
	for _, values := range []map[string]any{
		{"state_dir": "/s"}, {"state_dir": "s", "node": "n"}, {"state_dir": "/s", "root": "r"}, {"state_dir": "/s", "node": "a/../b\x00"},
	} {
		if err := c.Validate(t.Context(), plugin.KindTarget, config(t, values)); !errors.Is(err, plugin.ErrInvalidConfig) {
			t.Errorf("%v: %v", values, err)
		}
	}
	tg, err := c.Target(t.Context(), config(t, map[string]any{"state_dir": t.TempDir(), "node": "n1"}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tg.Read(t.Context(), &plugin.ReadRequest{Place: plugin.Place{Node: "n2", Config: "c", Destination: "/d"}}); !errors.Is(err, plugin.ErrNotFound) {
		t.Error(err)
	}
}

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, description()) }

// TestConformance runs the far side's script in a shell of this machine: ssh would run
// the same words.
func TestConformance(t *testing.T) {
	var n atomic.Int64
	plugintest.Run(t, &plugintest.Subject{Cases: []plugintest.Case{{
		Name: "a shell", Kind: plugin.KindTarget, Config: `{"command": ["sh", "-c"]}`, Refused: []string{`{"command": []}`},
		Place: func(tb testing.TB) plugin.Place {
			tb.Helper()
			return plugin.Place{
				Node: fmt.Sprintf("n%d", n.Add(1)), Config: "app.conf",
				Destination: filepath.Join(tb.TempDir(), "it's $(here)", "app.conf"),
			}
		},
	}}})
}

// TestMark: the mark goes on before the config does, and a damaged one stops all
// writing.
func TestMark(t *testing.T) {
	t.Parallel()
	c, err := plugin.InProcess(description(), nil)
	if err != nil {
		t.Fatal(err)
	}
	tg, err := c.Target(t.Context(), plugin.Config(`{"command": ["sh", "-c"], "address_meta": "address"}`))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	place := plugin.Place{Node: "n1", Meta: map[string]string{"address": "192.0.2.1"}, Config: "app.conf", Destination: filepath.Join(dir, "app.conf")}
	apply := func() error {
		_, err := tg.Apply(t.Context(), &plugin.ApplyRequest{
			Place: place, Order: plugin.Order{Epoch: 1, Token: 7, Seq: 2}, Content: []byte("a\n"), Mode: "0600",
			SHA256: "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7",
		})
		return err
	}
	if err := apply(); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, ".app.conf.aimlock")
	if b, err := os.ReadFile(mark); string(b) != "1 7 2\n" {
		t.Error(string(b), err)
	}
	if info, err := os.Stat(place.Destination); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := apply(); err == nil {
		t.Error("written past a damaged mark")
	}
	place.Meta = nil
	if err := apply(); err == nil {
		t.Error("written to a node without an address")
	}
}

// TestDiesInTheMiddle: wherever the far side dies, the same order sent again writes the
// config, and what stood before it can still be restored.
func TestDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, at := range []string{".app.conf.aimlock.last", ".app.conf.aimlock", "app.conf"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			diesAt(t, at)
		})
	}
}

// diesAt has the far side's mv fail once where it would make the file called at.
func diesAt(t *testing.T, at string) {
	t.Helper()
	dir, bin := t.TempDir(), t.TempDir()
	dest, armed := filepath.Join(dir, "app.conf"), filepath.Join(bin, "armed")
	mv := fmt.Sprintf("#!/bin/sh\nfor to; do :; done\nif [ \"$to\" = %s ] && [ -e %s ]; then rm %s; exit 1; fi\nPATH=$OLD exec mv \"$@\"\n", filepath.Join(dir, at), armed, armed)
	if err := os.WriteFile(filepath.Join(bin, "mv"), []byte(mv), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := plugin.InProcess(description(), nil)
	if err != nil {
		t.Fatal(err)
	}
	path := os.Getenv("PATH")
	tg, err := c.Target(t.Context(), plugin.Config(fmt.Sprintf(`{"command": ["env", "OLD=%s", "PATH=%s:%s", "sh", "-c"]}`, path, bin, path)))
	if err != nil {
		t.Fatal(err)
	}
	place := plugin.Place{Node: "n1", Config: "app.conf", Destination: dest}
	apply := func(token uint64, content string) error {
		sum := sha256.Sum256([]byte(content))
		_, err := tg.Apply(t.Context(), &plugin.ApplyRequest{Place: place, Order: plugin.Order{Epoch: 1, Token: token, Seq: 1}, Content: []byte(content), SHA256: hex.EncodeToString(sum[:])})
		return err
	}
	stands := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(dest); err != nil || string(b) != want {
			t.Errorf("%q stands, %v, want %q", b, err, want)
		}
	}
	for token, content := range []string{"one\n", "two\n"} {
		if err := apply(uint64(token+1), content); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(armed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := apply(3, "three\n"); err == nil {
		t.Fatal("the config was written")
	}
	stands("two\n")
	if err := apply(2, "two\n"); at == "app.conf" && !errors.Is(err, plugin.ErrStale) {
		t.Errorf("an older order than the mark: %v", err)
	}
	if err := apply(3, "three\n"); err != nil {
		t.Fatal(err)
	}
	stands("three\n")
	if _, err := tg.Restore(t.Context(), &plugin.RestoreRequest{Place: place, Order: plugin.Order{Epoch: 1, Token: 3, Seq: 2}}); err != nil {
		t.Fatal(err)
	}
	stands("two\n")
}

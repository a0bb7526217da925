package main

import (
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

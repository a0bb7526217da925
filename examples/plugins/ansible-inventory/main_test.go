package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, description()) }

func TestConformance(t *testing.T) {
	all := []string{"db1.example", "web1.example", "web2.example"}
	plugintest.Run(t, &plugintest.Subject{Cases: []plugintest.Case{
		{
			Name: "all", Kind: plugin.KindFleet, Config: here(t, `"path": "%s/testdata/inventory.json"`), Nodes: all,
			Refused: []string{`{}`, `{"path": "a", "command": ["b"]}`, `{"path": "a", "group": ""}`},
		},
		{Name: "a group", Kind: plugin.KindFleet, Config: here(t, `"path": "%s/testdata/inventory.json", "group": "web", "vars": ["zone"]`), Nodes: all[1:]},
		{Name: "a command", Kind: plugin.KindFleet, Config: here(t, `"command": ["cat", "%s/testdata/inventory.json"]`), Nodes: all},
	}})
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	c, err := plugin.InProcess(description(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Fleet(t.Context(), plugin.Config(here(t, `"path": "%s/testdata/inventory.json", "vars": ["zone", "rack", "disks"]`)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := f.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{db1.example map[groups:db rack:7 zone:a]} {web1.example map[groups:web_a zone:a]} {web2.example map[groups:web_b zone:b]}]`
	if got := fmt.Sprint(l.Nodes); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if fmt.Sprint(l.Warnings) != "[db1.example: variable disks is no simple value, and is left out]" {
		t.Error(l.Warnings)
	}
}

// TestIncomplete: what is no whole inventory is an error, and never a small fleet.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	c, err := plugin.InProcess(description(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []string{
		`{"path": "/nonexistent/inventory.json"}`, `{"command": ["false"]}`, `{"command": ["echo", "[]"]}`, `{"command": ["echo", "{}"]}`,
		here(t, `"path": "%s/testdata/inventory.json", "group": "nobody"`), `{"command": ["echo", "{\"all\": {\"hosts\": 7}}"]}`,
	} {
		f, err := c.Fleet(t.Context(), plugin.Config(cfg))
		if err != nil {
			t.Fatal(cfg, err)
		}
		if l, err := f.List(t.Context()); err == nil {
			t.Errorf("%s lists %v", cfg, l.Nodes)
		}
	}
}

// here is a configuration with the folder of the tests in it.
func here(t *testing.T, text string) string {
	t.Helper()
	return "{" + fmt.Sprintf(text, folder(t)) + "}"
}

func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

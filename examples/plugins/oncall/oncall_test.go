package oncall_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

// install makes a folder with the plugin and what it depends on, as its README says.
func install(t *testing.T) (node, script string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("NOT RUN: node is not on PATH, and this plugin is written in JavaScript")
	}
	dir := t.TempDir()
	for _, name := range []string{"oncall.js", "plugin.proto", "go-plugin.proto", "health.proto", "package.json", "package-lock.json", ".npmrc"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--prefer-offline", "--loglevel=error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT RUN: the packages that this plugin needs cannot be installed: %v\n%s", err, out)
	}
	return node, filepath.Join(dir, "oncall.js")
}

// TestProtocol: the example's copy of the protocol is the protocol.
func TestProtocol(t *testing.T) {
	t.Parallel()
	copied, err := os.ReadFile("plugin.proto")
	if err != nil {
		t.Fatal(err)
	}
	if own, err := os.ReadFile(filepath.FromSlash("../../../plugin/proto/plugin.proto")); err != nil || string(own) != string(copied) {
		t.Errorf("plugin.proto is not that of plugin/proto: copy it (%v)", err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	node, script := install(t)
	state, err := json.Marshal(map[string]any{
		"shifts": []map[string]any{
			{"who": "mallory", "until": time.Now().Add(-time.Hour)},
			{"who": "eve\x1b[31m", "from": time.Now().Add(-time.Hour), "until": time.Now().Add(time.Hour)},
		},
		"acknowledged": []map[string]any{{"lock": "app.conf", "who": "eve", "until": time.Now().Add(time.Hour)}, {"lock": "old.conf", "who": "eve", "until": time.Now().Add(-time.Hour)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "oncall.json")
	if err := os.WriteFile(file, state, 0o600); err != nil {
		t.Fatal(err)
	}
	const token = "a-token-of-the-test"
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(state)
	}))
	t.Cleanup(served.Close)
	facts := func(name, config, lock string, want map[string]any) plugintest.Case {
		return plugintest.Case{Name: name, Kind: plugin.KindEvidence, Config: config, Lock: plugin.Lock{Name: lock}, Facts: want}
	}
	cases := []plugintest.Case{
		facts("a file", fmt.Sprintf(`{"source": %q}`, file), "app.conf", map[string]any{"on_call": "eve [31m", "acknowledged": true, "acknowledged_by": "eve"}),
		facts("over by now", fmt.Sprintf(`{"source": %q}`, file), "old.conf", map[string]any{"acknowledged": false, "acknowledged_by": nil}),
		facts("an address", fmt.Sprintf(`{"source": %q, "token": %q}`, served.URL, token), "app.conf", map[string]any{"acknowledged": true}),
		facts("a wrong token", fmt.Sprintf(`{"source": %q, "token": "another-token"}`, served.URL), "app.conf", map[string]any{"acknowledged": plugintest.Unknown}),
		facts("no file", `{"source": "/nonexistent/oncall.json"}`, "app.conf", map[string]any{"on_call": plugintest.Unknown, "acknowledged": plugintest.Unknown, "acknowledged_by": plugintest.Unknown}),
	}
	cases[0].Refused = []string{`{"source": "oncall.json"}`, fmt.Sprintf(`{"source": %q, "token": "a-token-of-the-test"}`, file)}
	plugintest.Run(t, &plugintest.Subject{Command: []string{node, script}, Plain: true, Cases: cases, Limit: 20 * time.Second})
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, description()) }

// host is a machine made of files: process 41 is that of a unit, and systemctl writes
// down what it is told.
type host struct{ proc, systemctl, told string }

func newHost(t *testing.T) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{filepath.Join(dir, "proc"), filepath.Join(dir, "systemctl"), filepath.Join(dir, "told")}
	for name, text := range map[string]string{
		"proc/sys/kernel/random/boot_id": "b0-07\n",
		"proc/41/stat":                   "41 (a) b (c) S 1 41 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1",
		"proc/41/cgroup":                 "0::/system.slice/deploy-7.service/worker\n",
		"proc/42/stat":                   "42 (sh) S 1 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4712 1 1 1",
		"proc/42/cgroup":                 "12:name=systemd:/system.slice/sshd.service\n0::/\n",
		"proc/43/stat":                   "43 (sh) S 1 43 43 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4713 1 1 1",
		"proc/43/cgroup":                 "0::/user.slice/user-0.slice/session-1.scope\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(h.systemctl, []byte("#!/bin/sh\necho \"$@\" >>"+h.told+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) config() string {
	return fmt.Sprintf(`{"allow": ["deploy-*.service"], "systemctl": %q, "proc": %q}`, h.systemctl, h.proc)
}

func (h *host) effects() string {
	b, err := os.ReadFile(h.told)
	if err != nil {
		return ""
	}
	return string(b)
}

func lock(t *testing.T, change func(h *plugin.Holder)) plugin.Lock {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	l := plugin.Lock{Name: "app.conf", Key: "aimlock/locks/app.conf", Token: 9, Holder: plugin.Holder{Host: name, PID: 41, BootID: "b0-07", StartTicks: 4711}}
	if change != nil {
		change(&l.Holder)
	}
	return l
}

func TestConformance(t *testing.T) {
	h := newHost(t)
	plugintest.Run(t, &plugintest.Subject{Cases: []plugintest.Case{
		{
			Name: "its unit", Kind: plugin.KindBreaker, Config: h.config(), Lock: lock(t, nil), Outcome: plugin.Done, Effects: h.effects,
			Refused: []string{`{"allow": []}`, `{"allow": ["[", "a"]}`},
		},
		{Name: "another host", Kind: plugin.KindBreaker, Config: h.config(), Lock: lock(t, func(h *plugin.Holder) { h.Host = "elsewhere" }), Outcome: plugin.NotApplicable, Effects: h.effects},
	}})
	for line := range strings.Lines(h.effects()) {
		if line != "stop -- deploy-7.service\n" {
			t.Errorf("systemctl was told %q", line)
		}
	}
}

// TestNothingElse: what is not surely the holder, or not allowed, is left alone.
func TestNothingElse(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c, err := plugin.InProcess(description(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Breaker(t.Context(), plugin.Config(h.config()))
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(h *plugin.Holder){
		"was started anew":      func(h *plugin.Holder) { h.BootID = "b0-06" },
		"process 41 is gone":    func(h *plugin.Holder) { h.StartTicks = 4710 },
		"process 44 is gone":    func(h *plugin.Holder) { h.PID = 44 },
		"does not say which":    func(h *plugin.Holder) { h.BootID = "" },
		"sshd.service":          func(h *plugin.Holder) { h.PID, h.StartTicks = 42, 4712 },
		"is that of no unit":    func(h *plugin.Holder) { h.PID, h.StartTicks = 43, 4713 },
		"pid 1 is no holder's":  func(h *plugin.Holder) { h.PID = 1 },
		"pid -1 is no holder's": func(h *plugin.Holder) { h.PID = -1 },
	} {
		res, err := b.Break(t.Context(), &plugin.BreakRequest{Lock: lock(t, change)})
		if err == nil && res.Outcome == plugin.Done || !strings.Contains(fmt.Sprint(res, err), want) {
			t.Errorf("%v, %v, want %q", res, err, want)
		}
	}
	if did := h.effects(); did != "" {
		t.Errorf("systemctl was told %q", did)
	}
}

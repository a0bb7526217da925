package plugin

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
)

// TestNegotiation: host and plugin meet at the newest version that both know.
func TestNegotiation(t *testing.T) {
	t.Parallel()
	c, err := Connect(t.Context(), external(t, "all", 1, 2))
	if err != nil || c.Info().Protocol != 1 {
		t.Fatalf("a host of 1 and 2 and a plugin of 1: %v", err)
	}
	_, err = Connect(t.Context(), external(t, "all", 2, 3))
	if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "the plugin speaks 1, this aimlock [2 3]") && !strings.Contains(err.Error(), "the plugin speaks 1, this aimlock [3 2]") {
		t.Errorf("a host of 2 and 3 and a plugin of 1: %v", err)
	}
}

// TestNoPlugin: what is no plugin, or spoils its handshake, is told as such.
func TestNoPlugin(t *testing.T) {
	t.Parallel()
	for which, want := range map[string]string{
		"noisy": `it printed "hello" where its handshake belongs`,
		"mute":  "it is no plugin of aimlock",
	} {
		if _, err := Connect(t.Context(), external(t, which)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", which, err)
		}
	}
}

// TestByHand: a person who runs a plugin is told what it is.
func TestByHand(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"=all")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "everything 1.2.3 is a plugin of aimlock (evidence, breaker, gate, target, fleet)") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestProcess: the log of a plugin's process is the host's, its stdout spoils nothing,
// cancellation reaches it, and its end is an error of the calls that it leaves.
func TestProcess(t *testing.T) {
	t.Parallel()
	var out syncBuffer
	cfg := ClientConfig(hclog.New(&hclog.LoggerOptions{Name: "plugin.everything", Output: &out, Level: hclog.Trace}))
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"=all")
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	c, err := Connect(t.Context(), gp)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // each prints a line to stdout
		if a, err := gate(t, c, `{"answer": "pass"}`).Ask(t.Context(), &Question{Gate: "g"}); err != nil || a.Verdict != Pass {
			t.Fatal(a, err)
		}
	}
	waitFor(t, func() bool { return strings.Contains(out.String(), "[INFO]  plugin.everything: asked: gate=g") })

	waiting := gate(t, c, `{"answer": "wait"}`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := waiting.Ask(ctx, &Question{Gate: "cancelled"}); ended <- err }()
	waitFor(t, func() bool { return strings.Contains(out.String(), "gate=cancelled") })
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	waitFor(t, func() bool { return strings.Contains(out.String(), "waited until: error=\"context canceled\"") })

	go func() { _, err := waiting.Ask(t.Context(), &Question{Gate: "killed"}); ended <- err }()
	waitFor(t, func() bool { return strings.Contains(out.String(), "gate=killed") })
	if err := cfg.Cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, ErrUnavailable) {
		t.Errorf("its process was killed: %v", err)
	}
}

// TestOrphan: a plugin ends by itself when its host is gone, and not before.
func TestOrphan(t *testing.T) {
	t.Parallel()
	gp := external(t, "all")
	if _, err := Connect(t.Context(), gp); err != nil {
		t.Fatal(err)
	}
	protocol, err := gp.Client()
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(orphanGrace + 100*time.Millisecond):
	case <-t.Context().Done():
	}
	if gp.Exited() {
		t.Fatal("it ended while its host was there")
	}
	// What a host that is killed leaves.
	if err := protocol.(*goplugin.GRPCClient).Conn.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, gp.Exited)
}

// TestPlain: for plugins that cannot speak TLS the host can leave it out.
func TestPlain(t *testing.T) {
	t.Parallel()
	cfg := ClientConfig(nil)
	cfg.AutoMTLS = false
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"=all")
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	c, err := Connect(t.Context(), gp)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := gate(t, c, `{"answer": "pass"}`).Ask(t.Context(), &Question{}); err != nil || a.Verdict != Pass {
		t.Error(a, err)
	}
}

// TestConnectEnds: a plugin that does not answer does not hold its host up.
func TestConnectEnds(t *testing.T) {
	t.Parallel()
	cfg := ClientConfig(nil)
	cfg.StartTimeout = 300 * time.Millisecond
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"=hang")
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, gp); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// waitFor waits for a condition, a minute at most.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatal("it does not come true")
		}
	}
}

package host

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// logBuffer may be written and read at once.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// pinned is this test binary, as a plugin with a fault.
func pinned(t testing.TB, fault, arg string) Spec {
	t.Helper()
	exe, err := filepath.EvalSymlinks(os.Args[0])
	if err == nil {
		exe, err = filepath.Abs(exe)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum, err := sums.of(exe)
	if err != nil {
		t.Fatal(err)
	}
	return Spec{Name: "p", Path: exe, Args: []string{"fault-plugin", fault, arg}, SHA256: sum, Env: []string{"GORACE"}, StartTimeout: 20 * time.Second, Timeout: 10 * time.Second}
}

// hosting is a host of one plugin. What it logs is the test's.
func hosting(t testing.TB, s Spec) (*Host, *logBuffer) {
	t.Helper()
	out := &logBuffer{}
	h := New(Config{Specs: []Spec{s}, Log: hclog.New(&hclog.LoggerOptions{Name: "aimlock.plugin", Output: out, Level: hclog.Debug})})
	t.Cleanup(func() {
		h.Close()
		if t.Failed() {
			t.Logf("the log:\n%s", out)
		}
	})
	return h, out
}

func ask(ctx context.Context, t testing.TB, h *Host) gates.Answer {
	t.Helper()
	k, err := h.Gate("p")
	if err != nil {
		return gates.Answer{Answer: orchestrator.Unknown, Why: err.Error()}
	}
	return k.Ask(ctx, question(&orchestrator.GatePlugin{Name: "p"}))
}

func question(p *orchestrator.GatePlugin) gates.Question {
	return gates.Question{Gate: orchestrator.Gate{Name: "g", Kind: orchestrator.GateKindPlugin, Plugin: p}}
}

func TestAGateIsAsked(t *testing.T) {
	t.Parallel()
	h, _ := hosting(t, pinned(t, noFault, ""))
	if a := ask(t.Context(), t, h); a.Answer != orchestrator.Pass || a.Why != "all is well" {
		t.Errorf("answered %+v", a)
	}
	p, err := h.Plugin("p")
	if err != nil {
		t.Fatal(err)
	}
	if state, _ := p.State(); state != "running" {
		t.Errorf("it is %s", state)
	}
	p.mu.Lock()
	proc := p.proc
	p.mu.Unlock()
	h.Close()
	if proc.alive() {
		t.Error("it lives on after Close")
	}
	if a := ask(t.Context(), t, h); a.Answer != orchestrator.Unknown || !strings.Contains(a.Why, ErrClosed.Error()) {
		t.Errorf("after Close: %+v", a)
	}
}

package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// calls ask a plugin as each kind, and tell what comes of it: "" for the answer of a
// plugin without a fault, and else what is said of the failure.
var calls = map[plugin.Kind]func(context.Context, testing.TB, *Host) string{
	plugin.KindEvidence: func(ctx context.Context, t testing.TB, h *Host) string {
		l := &plugin.Lock{Key: "k", Session: "s", Token: 7}
		want := map[string][]string{"p": {"on_call"}}
		now := time.Now()
		// On a machine with much to do the answer takes longer than anybody waits.
		h.Ask(ctx, l, want)
		f := h.Facts(l, want, time.Time{}, now)["plugin.p"]["on_call"]
		for strings.HasSuffix(f.Why, "has not answered yet") && ctx.Err() == nil {
			h.Ask(ctx, l, want)
			f = h.Facts(l, want, time.Time{}, now)["plugin.p"]["on_call"]
		}
		switch {
		case !f.Value.IsKnown() && f.Why == "":
			t.Error("the fact is unknown, and nothing says why")
		case !f.Value.IsKnown():
			return f.Why
		case f.Value.AsString() != "ann":
			t.Errorf("the fact is %q", f.Value.AsString())
		}
		return ""
	},
	plugin.KindBreaker: func(ctx context.Context, t testing.TB, h *Host) string {
		detail, err := h.Break(ctx, "p", nil, &plugin.BreakRequest{ID: "1", Step: 1})
		if err == nil && detail != "stopped" {
			t.Errorf("the step says %q", detail)
		}
		return said(err)
	},
	plugin.KindGate: func(ctx context.Context, t testing.TB, h *Host) string {
		a := ask(ctx, t, h)
		if a.Answer != orchestrator.Pass {
			if a.Answer != orchestrator.Unknown {
				t.Errorf("the gate answers %s", a.Answer)
			}
			return a.Why
		}
		return ""
	},
	plugin.KindTarget: func(ctx context.Context, t testing.TB, h *Host) string {
		got, err := h.Apply(ctx, "p", nil, &plugin.ApplyRequest{Place: plugin.Place{Node: "n", Config: "c"}, Content: []byte("x"), SHA256: sumOfX})
		if err == nil && got.Detail != "written" {
			t.Errorf("the target says %q", got.Detail)
		}
		return said(err)
	},
	plugin.KindFleet: func(ctx context.Context, t testing.TB, h *Host) string {
		l, err := h.Fleet(orchestrator.Source{Plugin: &orchestrator.PluginSource{Name: "p"}}, "p", nil)
		if err != nil {
			return err.Error()
		}
		got, err := l.List(ctx)
		if err == nil && (len(got.Nodes) != 1 || got.Nodes[0].Name != "n1") {
			t.Errorf("the fleet is %v", got.Nodes)
		}
		return said(err)
	},
}

const sumOfX = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"

func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestFaults is every kind with every fault. None is an answer, all are said, nothing
// is left of the plugin, and the next call to a good one is answered.
func TestFaults(t *testing.T) {
	t.Parallel()
	// What is said of each fault; "" is an answer all the same.
	faults := []struct{ fault, want string }{
		{crash, "it ended in the middle of the call: it ended with code 2; it wrote: "},
		{hang, "no answer within"},
		{garbage, `it printed "hello`},
		{wrongMagic, "it ended, or closed its stdout, before it said where it listens"},
		{"checksum", "wrong checksum, so it is not started"},
		{wrongVersion, plugin.ErrProtocol.Error()},
		{flood, ""},
		{tooLarge, "larger than max"},
		{forks, "it ended in the middle of the call: it ended with code 0"},
		{exits0, "it ended in the middle of the call: it ended with code 0"},
		{prints, ""},
	}
	slots := make(chan struct{}, 4)
	for _, k := range plugin.Kinds() {
		for _, f := range faults {
			t.Run(fmt.Sprintf("%s/%s", k, f.fault), func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				testFault(t, k, f.fault, f.want)
			})
		}
	}
}

func testFault(t *testing.T, k plugin.Kind, fault, want string) {
	left := filepath.Join(t.TempDir(), "left")
	s := pinned(t, fault, left)
	switch fault {
	case "checksum":
		s.SHA256 = strings.Repeat("0", 64)
	case hang:
		s.Timeout = 2 * time.Second
	case tooLarge:
		s.Timeout = time.Minute // to make it takes a while
	}
	h, out := hosting(t, s)
	got := calls[k](t.Context(), t, h)
	switch {
	case want == "" && got != "":
		t.Errorf("it failed: %s", got)
	case !strings.Contains(got, want):
		t.Errorf("it said %q, want %q in it", got, want)
	case want != "" && !strings.Contains(got, "plugin p: "):
		t.Errorf("%q does not name the plugin", got)
	case strings.ContainsAny(got, "\x1b\n"):
		t.Errorf("%q would reach a terminal", got)
	}
	if fault == flood {
		// The plugin has written all of it before it answered.
		h.Close()
		if lines := strings.Count(out.String(), "flood"); lines > 20*maxLogLines {
			t.Errorf("%d lines of a flood are in the log", lines)
		}
		if !strings.Contains(out.String(), "of the plugin's log: it writes more than") || strings.Contains(out.String(), "\x1b") {
			t.Error("the log does not tell of the lines that were dropped, or has an escape")
		}
	}
	p, err := h.Plugin("p")
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	proc := p.proc
	p.mu.Unlock()
	h.Close()
	if proc != nil && proc.alive() {
		t.Error("it lives on")
	}
	if raw, err := os.ReadFile(left); fault == forks {
		pid, convErr := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err := errors.Join(err, convErr); err != nil {
			t.Fatalf("it did not fork: %v", err)
		}
		if state, ok := hostproc.StateOf(pid); ok && state != 'Z' {
			t.Errorf("what it forked lives on: pid %d", pid)
		}
	}
}

func TestASecretStaysOutOfTheLog(t *testing.T) {
	t.Parallel()
	h, out := hosting(t, pinned(t, noFault, ""))
	i := &orchestrator.GatePlugin{Name: "p", Config: []byte(`{"token":"swordfish","wait":"3s"}`)}
	k, err := h.Gate("p")
	if err != nil {
		t.Fatal(err)
	}
	if a := k.Ask(t.Context(), question(i)); a.Answer != orchestrator.Pass {
		t.Fatalf("answered %+v", a)
	}
	h.Close()
	if log := out.String(); strings.Contains(log, "swordfish") || !strings.Contains(log, `configured as gate with {"token":"(secret)","wait":3}`) {
		t.Errorf("the log:\n%s", log)
	}
	if a := k.Ask(t.Context(), question(&orchestrator.GatePlugin{Name: "p", Config: []byte(`{"wait":"soon","other":1}`)})); a.Answer != orchestrator.Unknown {
		t.Errorf("answered %+v", a)
	}
}

// TestItIsStartedAgain: the process ends in the middle of a call, and the pause before
// the next one is said.
func TestItIsStartedAgain(t *testing.T) {
	t.Parallel()
	h, _ := hosting(t, pinned(t, exits0, ""))
	p, err := h.Plugin("p")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	p.now = func() time.Time { return now }
	if _, err := h.Break(t.Context(), "p", nil, &plugin.BreakRequest{ID: "1"}); !errors.Is(err, plugin.ErrUnavailable) {
		t.Fatalf("the first call: %v", err)
	}
	if _, err := h.Break(t.Context(), "p", nil, &plugin.BreakRequest{ID: "2"}); err == nil || !strings.Contains(err.Error(), "it is started again in") {
		t.Fatalf("the second call: %v", err)
	}
	starts := 1
	for starts < 4 {
		now = now.Add(maxPause * 2)
		if _, err := h.Break(t.Context(), "p", nil, &plugin.BreakRequest{ID: "3"}); err == nil || !strings.Contains(err.Error(), "in the middle of the call") {
			t.Fatalf("after the pause: %v", err)
		}
		starts++
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.starts) != starts {
		t.Errorf("it was started %d times, want %d", len(p.starts), starts)
	}
}

package gates

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
)

// secret is in the environment of every gate here, and must never be shown.
const secret = "s3cr3t-value"

var testEnv = map[string]string{"TOKEN": secret, "BROKEN": secret + "\r\nX-Other: 1", "NEWLINE": secret + "\n"}

func testSet(cfg Config) *Set {
	if cfg.LookupEnv == nil {
		cfg.LookupEnv = func(name string) (string, bool) { v, ok := testEnv[name]; return v, ok }
	}
	return New(cfg)
}

// want is an answer in short: "pass", "fail", "unknown", "pending", or "error"
// for one that could not be asked.
func short(a Answer) string {
	if a.Error {
		if a.Answer != orchestrator.Unknown {
			return "an error that is " + string(a.Answer)
		}
		return "error"
	}
	return string(a.Answer)
}

// check holds an answer to what is wanted, and to what all answers keep.
func check(t *testing.T, a Answer, want, why string) {
	t.Helper()
	if got := short(a); got != want {
		t.Errorf("answer %s, want %s: %+v", got, want, a)
	}
	if !strings.Contains(a.Why, why) {
		t.Errorf("why %q, want in it %q", a.Why, why)
	}
	if a.Why == "" {
		t.Error("it does not say why")
	}
	for _, s := range []string{a.Why, a.Value} {
		if strings.Contains(s, secret) {
			t.Errorf("a secret is shown: %q", s)
		}
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) || s != text.Printable(s) {
			t.Errorf("not fit to be shown: %q", s)
		}
	}
	if n := utf8.RuneCountInString(a.Why); n > maxWhy+1 { // the mark of what was cut off
		t.Errorf("why has %d runes", n)
	}
}

type kindFunc func(ctx context.Context, q Question) Answer

func (f kindFunc) Ask(ctx context.Context, q Question) Answer { return f(ctx, q) }

func TestSet(t *testing.T) {
	plugins := map[string]Kind{
		"yes": kindFunc(func(context.Context, Question) Answer {
			return Answer{Answer: orchestrator.Pass, Why: "as it was asked"}
		}),
		"odd":  kindFunc(func(context.Context, Question) Answer { return Answer{Answer: "PASS", Why: "in its own words"} }),
		"zero": kindFunc(func(context.Context, Question) Answer { return Answer{Why: "nothing was said"} }),
		"hangs": kindFunc(func(ctx context.Context, _ Question) Answer {
			<-ctx.Done()
			return Answer{Answer: orchestrator.Unknown, Why: "whatever"}
		}),
		"rude": kindFunc(func(context.Context, Question) Answer {
			return Answer{Answer: orchestrator.Fail, Value: "\x1b[2J" + strings.Repeat("v", 1000), Why: "\x1b]0;title\a" + strings.Repeat("w\n", 1000)}
		}),
	}
	s := testSet(Config{Plugin: func(name string) (Kind, error) {
		if k := plugins[name]; k != nil {
			return k, nil
		}
		return nil, fmt.Errorf("plugin %q is not there", name)
	}})
	plugin := func(name string) orchestrator.Gate {
		return orchestrator.Gate{Kind: orchestrator.GateKindPlugin, Plugin: &orchestrator.GatePlugin{Name: name}, Timeout: 20 * time.Millisecond}
	}
	for _, c := range []struct {
		name      string
		gate      orchestrator.Gate
		want, why string
	}{
		{"plugin", plugin("yes"), "pass", "as it was asked"},
		{"zero value", plugin("zero"), "unknown", "nothing was said"},
		{"word of its own", plugin("odd"), "unknown", "in its own words"},
		{"hangs", plugin("hangs"), "error", "no answer within 20ms"},
		{"escapes", plugin("rude"), "fail", "title"},
		{"missing plugin", plugin("other"), "unknown", `plugin "other" is not there`},
		{"no plugin", orchestrator.Gate{Kind: orchestrator.GateKindPlugin}, "unknown", "names no plugin"},
		{"newer kind", orchestrator.Gate{Kind: "moon_phase"}, "unknown", `no gate of kind "moon_phase"`},
		{"http of nothing", orchestrator.Gate{Kind: orchestrator.GateKindHTTP}, "unknown", "no URL"},
		{"prometheus of nothing", orchestrator.Gate{Kind: orchestrator.GateKindPrometheus}, "unknown", "no query"},
		{"exec of nothing", orchestrator.Gate{Kind: orchestrator.GateKindExec}, "unknown", "no command"},
		{"nomad of nothing", orchestrator.Gate{Kind: orchestrator.GateKindNomadDeploy}, "unknown", "names no job"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check(t, s.Ask(t.Context(), Question{Gate: c.gate}), c.want, c.why)
		})
	}

	err := s.Check([]orchestrator.Gate{plugin("yes"), {Name: "a", Kind: "moon_phase"}, {Name: "b", Kind: orchestrator.GateKindPlugin, Plugin: &orchestrator.GatePlugin{Name: "other"}}})
	if err == nil || !strings.Contains(err.Error(), `gate "a"`) || !strings.Contains(err.Error(), `gate "b"`) {
		t.Errorf("Check says %v", err)
	}
	if err := s.Check([]orchestrator.Gate{plugin("yes"), {Kind: orchestrator.GateKindExec}}); err != nil {
		t.Error(err)
	}
	if err := testSet(Config{}).Check([]orchestrator.Gate{plugin("yes")}); err == nil || !strings.Contains(err.Error(), "without plugins") {
		t.Errorf("Check says %v", err)
	}
}

// TestCancelled: who stops the orchestrator gets no answer that decides.
func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := testSet(Config{}).Ask(ctx, Question{Gate: orchestrator.Gate{Kind: orchestrator.GateKindExec, Exec: &orchestrator.GateExec{Command: []string{"true"}}}})
	if a.Answer != orchestrator.Unknown {
		t.Errorf("%+v", a)
	}
}

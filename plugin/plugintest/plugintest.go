package plugintest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/plugin"
)

// Subject is a plugin under test.
type Subject struct {
	// Command runs the plugin; none is the test binary itself, with [Main].
	Command []string
	// Env are variables NAME=VALUE that the plugin gets beside PATH, HOME, TMPDIR
	// and LANG.
	Env []string
	// Plain: it cannot speak TLS (auto_mtls = false).
	Plain bool
	// Cases are what it is asked: at least one for each of its kinds.
	Cases []Case
	// Limit bounds each call and each start; 0 is ten seconds.
	Limit time.Duration
}

// Case is one configuration of one kind, and what is to come of it. What does not
// belong to its kind is ignored.
type Case struct {
	Name string
	Kind plugin.Kind
	// Config is the configuration, as JSON; empty is {}.
	Config string
	// Refused are configurations that the plugin must refuse, as JSON. Each must be
	// refused at a path, not as a whole.
	Refused []string

	// Lock is what evidence and breakers are asked about.
	Lock plugin.Lock
	// Facts are what must be known, by name: the value, where a duration may be a
	// time.Duration or seconds; nil for a fact that cannot apply; [Any] for any value,
	// or [Unknown].
	Facts map[string]any

	// Outcome is what a break must come to; empty: anything but failed.
	Outcome plugin.Outcome
	// Effects describes what a break changes, such as the state of the unit that it
	// stops and how often it was asked to stop it; nil: that a dry run has no effect
	// and a request is done once is not looked at.
	Effects func() string

	// Question is what a gate is asked, and Verdict what it must answer; empty: any.
	Question plugin.Question
	Verdict  plugin.Verdict

	// Place makes a place that a target has nothing of yet: a new one at each call.
	Place func(tb testing.TB) plugin.Place

	// Nodes are the names that a fleet must list; nil: any.
	Nodes []string
}

// Any is any value of a fact.
var Any any = wish("any value") //nolint:gochecknoglobals // a constant

// Unknown is a fact that must be unknown.
var Unknown any = wish("unknown") //nolint:gochecknoglobals // a constant

type wish string

// Result is what one check found.
type Result struct {
	// Check is its name, and Case that of the case; empty: it is about the plugin.
	Check, Case string
	// Err is what is wrong; nil: nothing.
	Err error
	// Skipped says why it was not made; empty: it was.
	Skipped string
}

// Name is "case/check", or "check" alone.
func (r *Result) Name() string {
	if r.Case == "" {
		return r.Check
	}
	return r.Case + "/" + r.Check
}

// serveEnv tells the test binary to serve its plugin.
const serveEnv = "AIMLOCK_PLUGINTEST_SERVE"

// Main is the TestMain of a plugin's own tests: it runs them, or serves the plugin
// where the suite started the test binary for that.
func Main(m *testing.M, p plugin.Plugin) {
	if os.Getenv(serveEnv) != "" {
		_ = os.Unsetenv(serveEnv)
		plugin.Serve(p)
		return
	}
	os.Exit(m.Run()) //nolint:forbidigo // the end of TestMain
}

// Run runs the suite, each check as a test of its own.
func Run(t *testing.T, s *Subject) {
	t.Helper()
	for _, r := range Check(t, s) {
		t.Run(r.Name(), func(t *testing.T) {
			switch {
			case r.Skipped != "":
				t.Skip(r.Skipped)
			case r.Err != nil:
				t.Error(r.Err)
			}
		})
	}
}

// Check runs the suite and returns what it found, in a fixed order. It fails tb only
// where it cannot be run at all. It uses tb for its folders and what a case makes.
func Check(tb testing.TB, s *Subject) []Result {
	tb.Helper()
	if s.Limit <= 0 {
		s.Limit = 10 * time.Second
	}
	r := &run{tb: tb, s: s}
	defer r.stop()
	c, err := r.client()
	if err != nil {
		return []Result{{Check: "start", Err: err}}
	}
	results := []Result{{Check: "start"}}
	for _, ch := range general() {
		results = append(results, r.do(&ch, nil))
	}
	for i := range s.Cases {
		cs := &s.Cases[i]
		for _, ch := range checksOf(cs.Kind) {
			if c.Info().Kind(cs.Kind) == nil {
				results = append(results, Result{Check: ch.name, Case: cs.Name, Err: fmt.Errorf("the plugin is no %s", cs.Kind)})
				break
			}
			results = append(results, r.do(&ch, cs))
		}
	}
	for _, ch := range atEnd() {
		results = append(results, r.do(&ch, nil))
	}
	return results
}

// check is one check. It returns errSkip where it does not apply.
type check struct {
	name string
	run  func(ctx context.Context, r *run, c *plugin.Client, cs *Case) error
}

type skip string

func (s skip) Error() string { return string(s) }

// do makes a check. A plugin that died in the one before is started anew.
func (r *run) do(ch *check, cs *Case) Result {
	out := Result{Check: ch.name}
	if cs != nil {
		out.Case = cs.Name
	}
	c, err := r.client()
	if err != nil {
		out.Err = fmt.Errorf("it does not start any more: %w", err)
		return out
	}
	// A check makes several calls. Each has the limit; all have this.
	ctx, cancel := context.WithTimeout(r.tb.Context(), 6*r.s.Limit)
	defer cancel()
	err = ch.run(ctx, r, c, cs)
	if errors.Is(err, plugin.ErrUnavailable) && r.gone(ctx) {
		r.stop()
		err = fmt.Errorf("the plugin's process ended: %w", err)
	}
	var s skip
	switch {
	case errors.As(err, &s):
		out.Skipped = string(s)
	case err != nil:
		out.Err = err
	case r.died():
		out.Err = errors.New("the plugin's process ended")
	}
	return out
}

// limit is the context of one call.
func (r *run) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, r.s.Limit)
}

func (cs *Case) config() plugin.Config {
	if cs.Config == "" {
		return plugin.Config("{}")
	}
	return plugin.Config(cs.Config)
}

func checksOf(k plugin.Kind) []check {
	all := []check{{"validate", validates}, {"refuse", refuses}, {"instances", instances}}
	switch k {
	case plugin.KindEvidence:
		return append(all, evidenceChecks()...)
	case plugin.KindBreaker:
		return append(all, breakerChecks()...)
	case plugin.KindGate:
		return append(all, gateChecks()...)
	case plugin.KindTarget:
		return append(all, targetChecks()...)
	case plugin.KindFleet:
		return append(all, fleetChecks()...)
	}
	return all
}

// oneLine refuses a text for people that is not fit to be shown.
func oneLine(what, s string) error {
	if strings.ContainsAny(s, "\n\r\x1b\x00") {
		return fmt.Errorf("%s is not one plain line: %q", what, s)
	}
	return nil
}

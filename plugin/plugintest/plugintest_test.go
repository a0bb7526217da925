package plugintest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/plugintest"
)

func TestMain(m *testing.M) {
	if flaw("elsewhere") {
		_ = os.Unsetenv("PLUGIN_UNIX_SOCKET_DIR")
	}
	plugintest.Main(m, subject())
	if flaw("stays") { // it served, and was asked to end
		<-context.Background().Done()
	}
}

// about makes the suite's subject: this test binary with a flaw, if any, and the
// cases of some kinds.
func about(t *testing.T, flaw string, kinds ...plugin.Kind) *plugintest.Subject {
	t.Helper()
	dir := t.TempDir()
	lines := filepath.Join(dir, "lines")
	quote := func(s string) string { return fmt.Sprintf("%q", s) }
	cases := []plugintest.Case{
		{
			Name: "facts", Kind: plugin.KindEvidence, Config: `{"count": 7, "token": "hunter2hunter2"}`, Refused: []string{`{"count": -1}`},
			Lock:  plugin.Lock{Name: "app.conf", Holder: plugin.Holder{Host: "n1"}},
			Facts: map[string]any{"count": 7.0, "host": "n1"},
		},
		{Name: "no holder", Kind: plugin.KindEvidence, Facts: map[string]any{"count": plugintest.Any, "host": nil}},
		{
			Name: "a line", Kind: plugin.KindBreaker, Config: `{"path": ` + quote(lines) + `}`,
			Effects: func() string { b, _ := os.ReadFile(lines); return string(b) },
		},
		{Name: "enough", Kind: plugin.KindGate, Config: `{"least": 1}`, Question: plugin.Question{Updated: []string{"n1"}}, Verdict: plugin.Pass},
		{Name: "files", Kind: plugin.KindTarget, Config: `{"dir": ` + quote(dir) + `}`, Place: newPlace},
		{Name: "two", Kind: plugin.KindFleet, Config: `{"names": ["n1", "n2"]}`, Nodes: []string{"n1", "n2"}},
	}
	if len(kinds) > 0 {
		cases = slices.DeleteFunc(cases, func(c plugintest.Case) bool { return !slices.Contains(kinds, c.Kind) })
	}
	return &plugintest.Subject{Env: []string{flawEnv + "=" + flaw}, Cases: cases, Limit: 20 * time.Second}
}

// TestGood: a plugin that does as it should passes every check, none of them skipped
// for want of something to look at.
func TestGood(t *testing.T) {
	t.Parallel()
	for _, r := range plugintest.Check(t, about(t, "")) {
		switch {
		case r.Err != nil:
			t.Errorf("%s: %v", r.Name(), r.Err)
		case r.Skipped != "" && !strings.Contains(r.Skipped, "no configuration to refuse"):
			t.Errorf("%s is skipped: %s", r.Name(), r.Skipped)
		}
	}
}

// TestRun: the suite as authors run it.
func TestRun(t *testing.T) {
	t.Parallel()
	plugintest.Run(t, about(t, "gate only", plugin.KindGate))
}

// TestFlaws: each flaw is found by the check that it is for, and said in words that
// fit it. What else it trips stands with it.
func TestFlaws(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		flaw  string
		kind  plugin.Kind
		found string // check: a part of what it says
		also  []string
	}{
		{"no version", plugin.KindGate, "info: it tells no version", nil},
		{"no doc", plugin.KindGate, "info: fact count has no doc", nil},
		{"stays", plugin.KindGate, "end: asked to end, it did not, and was killed after", nil},
		{"moody", plugin.KindGate, "same info: a second process says something else", nil},
		{"accepts all", plugin.KindEvidence, `facts/refuse: it accepts {"count": -1}`, nil},
		{"blames all", plugin.KindEvidence, "facts/refuse: it refuses", nil},
		{"tells secrets", plugin.KindEvidence, "secrets: facts: its log holds the value of a secret", nil},
		{"wrong type", plugin.KindEvidence, "facts/observe: fact count is unknown: the plugin's answer is not as declared", []string{"facts/wanted", "no holder/observe", "no holder/wanted"}},
		{"all or nothing", plugin.KindEvidence, "facts/wanted: asked for count alone: ask for all", []string{"no holder/wanted"}},
		{"shell", plugin.KindEvidence, "facts/hostile holder: a command in the holder's record was run", []string{"no holder/hostile holder"}},
		{"panics", plugin.KindEvidence, "facts/hostile holder: observe: the plugin panicked", []string{"no holder/hostile holder"}},
		{"dies", plugin.KindEvidence, "facts/hostile holder: the plugin's process ended", []string{"no holder/hostile holder"}},
		{"forks", plugin.KindEvidence, "orphans: two seconds after it was killed, what it started runs on", nil},
		{"two lines", plugin.KindEvidence, "facts/observe: why host is unknown is not one plain line", []string{"facts/wanted", "facts/hostile holder", "no holder/observe", "no holder/wanted", "no holder/hostile holder"}},
		{"wet run", plugin.KindBreaker, "a line/dry run: a dry run has an effect", nil},
		{"lazy", plugin.KindBreaker, "a line/break: it says that it was done, and nothing changed", nil},
		{"no verdict", plugin.KindGate, "enough/ask: it answers unknown", nil},
		{"no reason", plugin.KindGate, "enough/ask: it answers pass and does not say on what", []string{"enough/any fleet"}},
		{"small fleets", plugin.KindGate, "enough/any fleet: 10,000 nodes: ask: the plugin panicked", nil},
		{"one place", plugin.KindTarget, "files/places", []string{"files/contents", "files/fence", "files/fence after a restart", "files/restore", "files/put back"}},
		{"forgets", plugin.KindTarget, "files/fence after a restart: the order 1-20-4 is written", nil},
		{"token only", plugin.KindTarget, "files/fence: the order 1-20-4 is written after 1-20-5", []string{"files/fence after a restart", "files/restore"}},
		{"not fenced", plugin.KindTarget, "files/fence: the order 1-20-4 is written after 1-20-5", []string{"files/fence after a restart", "files/writers at once", "files/restore"}},
		{"forgets the order", plugin.KindTarget, "files/fence: the order 1-20-4 is written after 1-20-5", []string{"files/fence after a restart", "files/writers at once", "files/restore"}},
		{"trims", plugin.KindTarget, "files/write: write 1:", []string{"files/contents", "files/fence", "files/fence after a restart", "files/restore", "files/put back", "files/places"}},
		{"absence fails", plugin.KindTarget, "files/absent: read what does not exist", []string{"files/instances", "files/cancelled", "orphans"}},
		{"restores nothing", plugin.KindTarget, "files/restore: restored:", nil},
		{"once for each order", plugin.KindTarget, "files/put back: write 3, from the third on by the order of the second", nil},
		{"shuffles", plugin.KindFleet, "two/list: the same list comes in another order", nil},
		{"twins", plugin.KindFleet, `two/list: the plugin lists node "n1" twice`, []string{"two/instances", "two/cancelled", "orphans"}},
	} {
		t.Run(tc.flaw, func(t *testing.T) {
			t.Parallel()
			s := about(t, tc.flaw, tc.kind)
			want, found := strings.Split(tc.found, ": ")[0], false
			for _, r := range plugintest.Check(t, s) {
				switch {
				case r.Check == "covered": // only the kind of the flaw is looked at
				case r.Name() == want && r.Err != nil && strings.Contains(r.Name()+": "+r.Err.Error(), tc.found):
					found = true
				case r.Err != nil && r.Name() == want:
					t.Errorf("%s finds something else: %v, want %s", want, r.Err, tc.found)
					found = true
				case r.Err != nil && r.Name() != want && !slices.Contains(tc.also, r.Name()):
					t.Errorf("%s fails too: %v", r.Name(), r.Err)
				}
			}
			if !found {
				t.Errorf("nothing finds it; want %s", tc.found)
			}
		})
	}
}

// TestPlain: a plugin that speaks no TLS is given a folder for its socket, as aimlock
// gives it, and must listen there.
func TestPlain(t *testing.T) {
	t.Parallel()
	for flaw, want := range map[string]string{"gate only": "", "elsewhere": "it must listen on a unix socket in the folder that PLUGIN_UNIX_SOCKET_DIR names"} {
		s := about(t, flaw, plugin.KindGate)
		s.Plain = true
		r := plugintest.Check(t, s)[0]
		if r.Check != "start" || (r.Err == nil) != (want == "") || r.Err != nil && !strings.Contains(r.Err.Error(), want) {
			t.Errorf("%s: %+v", flaw, r)
		}
	}
}

// TestNoPlugin: what is no plugin at all is told as such.
func TestNoPlugin(t *testing.T) {
	t.Parallel()
	results := plugintest.Check(t, &plugintest.Subject{Command: []string{"echo", "hello"}})
	if len(results) != 1 || results[0].Check != "start" || !strings.Contains(fmt.Sprint(results[0].Err), `it printed "hello" where its handshake belongs`) {
		t.Errorf("%+v", results)
	}
}

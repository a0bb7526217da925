package command

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aim-control/aimlock/internal/signals"
)

func TestParse(t *testing.T) {
	type result struct {
		Args, Command []string
		Wait          string
		Try           bool
		For           time.Duration
		Set           []string
	}
	for _, tc := range []struct {
		args string
		want result
		err  string
	}{
		{"", result{}, ""},
		{"a -wait 5s b -try", result{Args: []string{"a", "b"}, Wait: "5s", Try: true, Set: []string{"try", "wait"}}, ""},
		{"--wait=5s a", result{Args: []string{"a"}, Wait: "5s", Set: []string{"wait"}}, ""},
		{"-try=false a", result{Args: []string{"a"}, Set: []string{"try"}}, ""},
		{"-try a", result{Args: []string{"a"}, Try: true, Set: []string{"try"}}, ""},
		{"a -- cmd -wait 5s -- -x", result{Args: []string{"a"}, Command: []string{"cmd", "-wait", "5s", "--", "-x"}}, ""},
		{"-wait -- a", result{Args: []string{"a"}, Wait: "--", Set: []string{"wait"}}, ""},
		{"a - b", result{Args: []string{"a", "-", "b"}}, ""},
		{"a --", result{Args: []string{"a"}, Command: []string{}}, ""},
		{"a -wait", result{}, "flag needs an argument: -wait"},
		{"a -wiat 5s", result{}, "unknown flag -wiat. Did you mean -wait?"},
		{"-zebra=1", result{}, "unknown flag -zebra"},
		{"-for 90s a", result{Args: []string{"a"}, For: 90 * time.Second, Set: []string{"for"}}, ""},
		{"-for=2d12h a", result{Args: []string{"a"}, For: 60 * time.Hour, Set: []string{"for"}}, ""},
		{"-for soon", result{}, `invalid value "soon" for flag -for: parse error: write a duration such as 90s, 30m, 1h30m or 2d`},
		{"-try=maybe", result{}, `invalid boolean value "maybe" for -try: parse error`},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var got result
			fs := flag.NewFlagSet("", flag.ContinueOnError)
			fs.SetOutput(io.Discard)
			fs.StringVar(&got.Wait, "wait", "", "")
			fs.BoolVar(&got.Try, "try", false, "")
			fs.DurationVar(&got.For, "for", 0, "")
			in, err := parse(fs, strings.Fields(tc.args))
			if err != nil || tc.err != "" {
				if fmt.Sprint(err) != tc.err {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			got.Args, got.Command = in.Args, in.Command
			for _, name := range []string{"try", "wait", "for"} {
				if in.Set(name) {
					got.Set = append(got.Set, name)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReport(t *testing.T) {
	interrupted, cancel := context.WithCancelCause(t.Context())
	cancel(signals.Error{Signal: syscall.SIGTERM})
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		code int
		out  string
	}{
		{"nothing", t.Context(), nil, 0, ""},
		{"plain", t.Context(), errors.New("read x: gone"), 1, "Error: read x: gone\n"},
		{"usage", t.Context(), usagef("bad %s", "flag"), 2, "Error: bad flag\n"},
		{"wrapped keeps its code and all its text", t.Context(), fmt.Errorf("lock a: %w", exitf(ExitLost, "session gone")), 7, "Error: lock a: session gone\n"},
		{"refusal stands as it is", t.Context(), refused(ExitLockHot, "ERROR: a: HOT\nholder …\n"), 5, "ERROR: a: HOT\nholder …\n"},
		{"said already", t.Context(), exit(ExitNotConverged), 6, ""},
		{"ended by a signal", interrupted, fmt.Errorf("wait: %w", context.Canceled), 143, "Error: interrupted by signal: terminated\n"},
		{"ended by a signal, by cause", interrupted, fmt.Errorf("wait: %w", context.Cause(interrupted)), 143, "Error: interrupted by signal: terminated\n"},
		{"a failure of its own while interrupted", interrupted, errors.New("disk full"), 1, "Error: disk full\n"},
		{"cancelled for another reason", t.Context(), context.Canceled, 1, "Error: context canceled\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := report(tc.ctx, &out, tc.err); code != tc.code || out.String() != tc.out {
				t.Errorf("code %d, output %q\nwant %d, %q", code, out.String(), tc.code, tc.out)
			}
		})
	}
	if exit(ExitOK) != nil {
		t.Error("exit(ExitOK) is an error")
	}
}

// TestCommands holds every command to the same help text, and its examples to
// flags and arguments that it really takes.
func TestCommands(t *testing.T) {
	cliDoc, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, construct := range commands() {
		t.Run(name, func(t *testing.T) {
			c := construct(silent(t.Context()))
			c.name = name
			c.flagSet() // panics if a flag is registered twice
			if c.Hidden {
				return
			}
			if n := len(c.Synopsis); n == 0 || n >= 60 || strings.HasSuffix(c.Synopsis, ".") {
				t.Errorf("synopsis %q: want 1 to 59 bytes without a full stop", c.Synopsis)
			}
			if c.Description == "" || len(c.Examples) == 0 {
				t.Error("the help text lacks a description or examples")
			}
			for _, line := range strings.Split(verb{c}.Help(), "\n") {
				if len(line) > 100 {
					t.Errorf("help line of %d bytes, want at most 100: %s", len(line), line)
				}
			}
			if !bytes.Contains(cliDoc, []byte("`aimlock "+name)) {
				t.Errorf("docs/cli.md does not show `aimlock %s`", name)
			}
			if !slices.ContainsFunc(c.Examples, func(e example) bool { return strings.Contains(e.Line, "aimlock "+name) }) {
				t.Errorf("no example runs aimlock %s", name)
			}
			if c.MaxArgs != 0 && c.Complete == nil {
				t.Error("nothing completes its arguments")
			}
			for _, e := range c.Examples {
				if e.Title == "" {
					t.Errorf("example %q has no title", e.Line)
				}
				if found, err := checkLine(t.Context(), e.Line); err != nil || !found {
					t.Errorf("example %q: runs aimlock: %t, %v", e.Line, found, err)
				}
			}
			c.flagSet().VisitAll(func(f *flag.Flag) {
				if f.Usage == "" {
					t.Errorf("flag -%s has no usage", f.Name)
				}
			})
		})
	}
}

// TestParents holds the list of parents to the commands that exist or shall:
// a misspelt parent would vanish without a word.
func TestParents(t *testing.T) {
	for name := range commands() {
		if p, _, ok := strings.Cut(name, " "); ok && parents()[p] == "" && commands()[p] == nil {
			t.Errorf("command %q has no parent %q in parents or commands", name, p)
		}
	}
}

func TestPrintJSONLeavesTextAlone(t *testing.T) {
	var out bytes.Buffer
	m := newMeta(t.Context(), IO{Stdout: &out})
	if err := m.PrintJSON(map[string]string{"a": "<&>"}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "{\n  \"a\": \"<&>\"\n}\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSettingsByWeight(t *testing.T) {
	dir := t.TempDir()
	file := dir + "/aimlock.hcl"
	writeFile(t, file, `
prefix   = "file/"
policies = ["a", "/abs/b"]
consul {
  address    = "file:1"
  token_file = "token"
}
`)
	writeFile(t, dir+"/token", "secret\n")
	set := func(args []string, env map[string]string) *Meta {
		t.Helper()
		var errs bytes.Buffer
		m := newMeta(t.Context(), IO{Stdout: io.Discard, Stderr: &errs, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
		c := &command{Meta: m, Groups: groupConsul | groupPolicy, Run: func(context.Context, *input) error { return nil }}
		if err := c.execute(args); err != nil {
			t.Fatalf("%v\n%s", err, errs.String())
		}
		return m
	}
	m := set([]string{"-config", file}, nil)
	if m.Prefix != "file/" || !slices.Equal(m.PolicyPaths, []string{dir + "/a", "/abs/b"}) {
		t.Errorf("from the file: prefix %q, policies %q", m.Prefix, m.PolicyPaths)
	}
	if c, err := m.Consul(); err != nil || c.Addr() != "file:1" {
		t.Errorf("from the file: Consul %v, %v", c, err)
	}
	env := map[string]string{"AIMLOCK_CONFIG": file, "AIMLOCK_PREFIX": "env", "CONSUL_HTTP_ADDR": "env:2", "CONSUL_HTTP_TOKEN": "x"}
	m = set(nil, env)
	if m.Prefix != "env/" {
		t.Errorf("environment over file: prefix %q", m.Prefix)
	}
	if c, err := m.Consul(); err != nil || c.Addr() != "env:2" {
		t.Errorf("environment over file: Consul %v, %v", c, err)
	}
	m = set([]string{"-prefix=/flag/", "-http-addr", "flag:3", "-policy", "p1", "-policy", "p2"}, env)
	if m.Prefix != "flag/" || !slices.Equal(m.PolicyPaths, []string{"p1", "p2"}) {
		t.Errorf("flag over environment: prefix %q, policies %q", m.Prefix, m.PolicyPaths)
	}
	if c, err := m.Consul(); err != nil || c.Addr() != "flag:3" {
		t.Errorf("flag over environment: Consul %v, %v", c, err)
	}
	if m := set(nil, nil); m.Prefix != "aimlock/" || len(m.PolicyPaths) != 0 {
		t.Errorf("defaults: prefix %q, policies %q", m.Prefix, m.PolicyPaths)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Each command has a manual page, and no text of it is taken for a request of roff's.
func TestManPages(t *testing.T) {
	t.Parallel()
	pages := manPages(silent(t.Context()))
	for name, construct := range commands() {
		page, ok := pages[manName(name)]
		if construct(silent(t.Context())).Hidden {
			if ok {
				t.Errorf("%s is hidden, and has a page", name)
			}
			continue
		}
		for _, part := range []string{".TH AIMLOCK-", ".SH SYNOPSIS\n.PP\naimlock " + strings.ReplaceAll(name, "-", `\-`), ".SH DESCRIPTION\n", ".SH EXAMPLES\n", "aimlock(1)"} {
			if !strings.Contains(page, part) {
				t.Errorf("the page of %s lacks %q", name, part)
			}
		}
	}
	known := []string{"TH", "SH", "PP", "TP", "B", "nf", "fi"}
	for name, page := range pages {
		for _, l := range strings.Split(page, "\n") {
			if req, _, _ := strings.Cut(l, " "); strings.HasPrefix(req, ".") && !slices.Contains(known, req[1:]) {
				t.Errorf("%s: %q", name, l)
			}
			if strings.HasPrefix(l, "'") {
				t.Errorf("%s: %q", name, l)
			}
		}
	}
	cliDoc, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range exitMeanings() {
		if !bytes.Contains(cliDoc, fmt.Appendf(nil, "| %d | %s |", e.code, strings.ReplaceAll(e.what, "-detailed-exitcode", "`-detailed-exitcode`"))) {
			t.Errorf("docs/cli.md has other words for exit code %d than %q", e.code, e.what)
		}
	}
}

// Two letters that changed places are one slip; of two commands that are as near, the
// one is meant that changes nothing.
func TestSuggestedCommandChangesNothing(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ parent, given, want string }{
		{"rollout", "stauts", "status"}, {"rollout", "statr", "start"}, {"rollout", "plna", "plan"}, {"rollout", "lsit", "list"},
		{"rollout", "stat", "status"}, {"rollout", "sta", "status"}, {"rollout", "sk", "skip"}, {"x", "apple", ""},
	} {
		known := []string{"start", "status", "plan", "list", "skip"}
		err := unknownCommand(tc.parent, tc.given, known)
		if got := strings.Contains(err.Error(), "Did you mean"); got != (tc.want != "") || tc.want != "" && !strings.Contains(err.Error(), strconv.Quote(tc.want)) {
			t.Errorf("%s: %v, want %q", tc.given, err, tc.want)
		}
	}
}

// Who drives a rollout reads in the help which codes it may end with, in the words of
// the one table.
func TestHelpListsExitCodes(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"rollout start", "rollout tick"} {
		c := commands()[name](&Meta{})
		c.name = name
		help := verb{c}.Help()
		for _, e := range exitMeanings() {
			if !strings.Contains(help, fmt.Sprintf("\n  %-3d %s\n", e.code, e.what)) {
				t.Errorf("%s -h lacks exit code %d", name, e.code)
			}
		}
		if !strings.Contains(help, "130 it was interrupted") {
			t.Errorf("%s -h does not say what ^C ends with", name)
		}
	}
}

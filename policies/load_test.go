package policies

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const onePolicy = "policy %q {\n  locks = [\"**\"]\n  hot \"r\" {\n    when = holder.alive == false\n  }\n}\n"

func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(s *Set) string {
	var out []string
	for _, p := range s.Policies {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

func TestLoadFilesAndFolders(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{
		"20-b.hcl":     fmt.Sprintf(onePolicy, "b"),
		"10-a.hcl":     fmt.Sprintf(onePolicy, "a"),
		".hidden.hcl":  "not hcl {",
		"readme.txt":   "not hcl {",
		"30-local.hcl": "locals {\n  x = 1\n}\n",
	})
	if err := os.Mkdir(filepath.Join(dir, "sub.hcl"), 0o700); err != nil {
		t.Fatal(err)
	}
	other := write(t, t.TempDir(), map[string]string{"c.hcl": fmt.Sprintf(onePolicy, "c")})

	set, diags := Load([]string{filepath.Join(other, "c.hcl"), dir})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	if got := names(set); got != "c a b" {
		t.Errorf("the policies are %q, want them in the order of the paths, folders sorted: %q", got, "c a b")
	}
	if set.Builtin {
		t.Error("a set of files says that it is built in")
	}
}

func TestLoadReportsEverythingAtOnce(t *testing.T) {
	dir := write(t, t.TempDir(), map[string]string{
		"a.hcl": "policy \"a\" {\n  locks = [\"**\"]\n  hot \"r\" {\n    when = holdr.alive\n  }\n}\n",
		"b.hcl": "policy \"b\" {\n  locks = [",
		"c.hcl": "policy \"c\" {\n}\n",
	})
	missing := filepath.Join(dir, "missing.hcl")
	set, diags := Load([]string{dir, missing})
	var got []string
	for _, d := range diags {
		where := "-"
		if d.Subject != nil {
			where = filepath.Base(d.Subject.Filename)
		}
		got = append(got, where+": "+d.Summary)
	}
	want := []string{"-: Cannot read policies", "a.hcl: Unknown object", "b.hcl: Missing expression", "c.hcl: Missing required argument"}
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
	if len(set.Policies) != 0 {
		t.Error("an invalid set has policies")
	}
	var out bytes.Buffer
	WriteDiagnostics(&out, set.Files, diags, 0, false)
	for _, text := range []string{"Error: Cannot read policies: ", missing + ": no such file or directory\n", "   4:     when = holdr.alive", `Did you mean "holder"?`} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("the report lacks %q:\n%s", text, out.String())
		}
	}
}

func TestLoadRefusesWhatIsNoPolicyFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.hcl")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Skip(err)
	}
	empty := t.TempDir()
	for path, want := range map[string]string{
		fifo:                "not a regular file",
		"/dev/zero":         "not a regular file",
		empty:               "has no *.hcl file",
		"builtin:cautios":   `Did you mean "cautious"?`,
		dir + "/nothing":    "no such file",
		"a\x00b":            "invalid argument",
		"builtin:../doc.go": "no shipped policy",
	} {
		_, diags := Load([]string{path})
		if !diags.HasErrors() || !strings.Contains(diags.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", path, diags, want)
		}
	}
	file := filepath.Join(write(t, dir, map[string]string{"a.hcl": fmt.Sprintf(onePolicy, "a")}), "a.hcl")
	if _, diags := Load([]string{file, file}); !diags.HasErrors() || !strings.Contains(diags.Error(), "twice") {
		t.Errorf("a file named twice: %v", diags)
	}
}

// cpuTime is what this process has worked so far: unlike the time of a clock it
// does not depend on what else the machine does.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Big, deep and endless input is refused, or handled, within a bound.
func TestHostileInput(t *testing.T) {
	var many strings.Builder
	for i := range 10000 {
		if i%100 == 0 {
			fmt.Fprintf(&many, "policy \"p%d\" {\nlocks = [\"l%d\"]\n", i, i)
		}
		fmt.Fprintf(&many, "hot \"r%d\" {\nwhen = progress.age > %d && holder.alive\n}\n", i, i)
		if i%100 == 99 {
			many.WriteString("}\n")
		}
	}
	when := func(e string) string {
		return "policy \"p\" {\n  locks = [\"**\"]\n  hot \"r\" {\n    when = " + e + "\n  }\n}\n"
	}
	locals := "locals {\n  a0 = \"xxxxxxxxxxxxxxxx\"\n"
	for i := 1; i < 40; i++ {
		locals += fmt.Sprintf("  a%d = \"${local.a%d}${local.a%d}\"\n", i, i-1, i-1)
	}
	chain := "locals {\n  a0 = 1\n"
	for i := 1; i < 900; i++ {
		chain += fmt.Sprintf("  a%d = local.a%d\n", i, i-1)
	}
	for name, c := range map[string]struct{ src, want string }{
		"10,000 rules":       {many.String(), ""},
		"too large":          {strings.Repeat("#\n", maxFileSize), "File too large"},
		"a long comment":     {fmt.Sprintf(onePolicy, "a") + "#" + strings.Repeat("x", maxFileSize/2), ""},
		"a long string":      {when("holder.host == \"" + strings.Repeat("x", maxFileSize/2) + "\""), ""},
		"a long name":        {"policy \"" + strings.Repeat("x", 1000) + "\" {\n  locks = [\"**\"]\n}\n", "Invalid name"},
		"parentheses":        {when(strings.Repeat("(", 20000) + "true" + strings.Repeat(")", 20000)), "Nested too deeply"},
		"brackets":           {when(strings.Repeat("[", 20000)), "Nested too deeply"},
		"blocks":             {strings.Repeat("a {\n", 20000), "Nested too deeply"},
		"templates":          {when(strings.Repeat("\"${", 20000)), "Nested too deeply"},
		"not":                {when(strings.Repeat("!", 20000) + "true"), "Argument too long"},
		"and":                {when("true" + strings.Repeat(" && true", 20000)), "Argument too long"},
		"and over lines":     {when("(true" + strings.Repeat(" &&\n true", 20000) + ")"), "Argument too long"},
		"conditional":        {when(strings.Repeat("true ? true : ", 20000) + "true"), "Argument too long"},
		"index":              {when("file.kept_by" + strings.Repeat("[0]", 20000) + " == 1"), "Argument too long"},
		"and, allowed":       {when("holder.alive" + strings.Repeat(" && holder.alive", 900)), ""},
		"too many facts":     {when("holder.alive" + strings.Repeat(" && holder.alive", 1200)), "Expression too large"},
		"not, allowed":       {when(strings.Repeat("!", 8000) + "holder.alive"), ""},
		"laughs":             {locals + "}\n" + fmt.Sprintf(onePolicy, "a"), "Value too large"},
		"a chain of locals":  {chain + "}\n" + fmt.Sprintf(onePolicy, "a"), ""},
		"a huge number":      {when("progress.age > 1e123456789"), "Number too large"},
		"a huge text number": {when("progress.age > tonumber(\"1e123456789\")"), "Number too large"},
		"nested replace": {when(strings.Repeat("replace(", 20) + "\"aaaaaaaaaaaaaaaa\"" +
			strings.Repeat(", \"a\", \"aaaaaaaaaaaaaaaa\")", 20) + " == \"\""), "longer than"},
		"not UTF-8":    {when("holder.host == \"\xff\xfe\""), "Invalid"},
		"a NUL":        {when("holder.host == \"\x00\""), "Invalid text"},
		"a bare NUL":   {when("holder.\x00alive"), "Invalid"},
		"UTF-16":       {"\xff\xfep\x00o\x00", "Invalid"},
		"JSON":         {`{"policy": {"a": {"locks": ["**"]}}}`, "Argument or block definition required"},
		"HTML":         {"<!DOCTYPE html><html></html>", "Argument or block definition required"},
		"a rollout":    {"rollout \"x\" {\n}\n", "Unsupported block type"},
		"CRLF":         {strings.ReplaceAll(fmt.Sprintf(onePolicy, "a"), "\n", "\r\n"), ""},
		"a BOM before": {"\xef\xbb\xbf" + fmt.Sprintf(onePolicy, "a"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			start := cpuTime(t)
			set, diags := Parse("p.hcl", []byte(c.src))
			took := cpuTime(t) - start
			if c.want == "" && diags.HasErrors() {
				t.Fatal(clip(diags.Error(), 500))
			}
			if c.want != "" && (!diags.HasErrors() || !strings.Contains(diags.Error(), c.want)) {
				t.Fatalf("got %v, want an error with %q", clip(diags.Error(), 500), c.want)
			}
			var out bytes.Buffer
			WriteDiagnostics(&out, set.Files, diags, 80, false)
			if c.want != "" && out.Len() > 4<<20 {
				t.Errorf("the report has %d bytes", out.Len())
			}
			// A generous bound: it is there to notice what grows faster than its
			// input, also under the race detector.
			if took > 15*time.Second {
				t.Errorf("%d bytes took %s", len(c.src), took)
			}
			for _, p := range set.Policies {
				p.Judge(nil, nil, "", 0)
			}
		})
	}
}

func TestHashIsOfWhatIsSaid(t *testing.T) {
	base := fmt.Sprintf(onePolicy, "a")
	hash := func(src string, vars map[string]string) string {
		t.Helper()
		s, diags := ParseWith("x.hcl", []byte(src), Options{Vars: vars})
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		if len(s.Hash) != 64 {
			t.Fatalf("the hash is %q", s.Hash)
		}
		return s.Hash
	}
	want := hash(base, nil)
	for name, src := range map[string]string{
		"comments":       "# one\n\n" + strings.ReplaceAll(base, "{\n", "{ # two\n  // three\n\n"),
		"an in-line one": strings.ReplaceAll(base, "when =", "when /* x */ ="),
		"spaces":         strings.ReplaceAll(base, " = ", "    =    "),
		"a test":         base + "test \"t\" {\n  facts = {}\n  expect {\n    state = \"UNKNOWN\"\n  }\n}\n",
		"no end of line": strings.TrimSpace(base),
	} {
		if got := hash(src, nil); got != want {
			t.Errorf("%s change the hash", name)
		}
	}
	for name, src := range map[string]string{
		"a condition": strings.ReplaceAll(base, "false", "true"),
		"a name":      strings.ReplaceAll(base, `"r"`, `"s"`),
		"a joint":     strings.ReplaceAll(base, "holder.alive", "holder . alive == false && holder.alive"),
		"a rule more": strings.Replace(base, "hot \"r\"", "warm \"w\" {\n    when = holder.local\n  }\n  hot \"r\"", 1),
	} {
		if got := hash(src, nil); got == want {
			t.Errorf("%s does not change the hash", name)
		}
	}
	variable := "variable \"n\" {\n  default = 1\n}\n" + strings.ReplaceAll(base, "holder.alive == false", "progress.age > var.n")
	if hash(variable, nil) == hash(variable, map[string]string{"n": "2"}) {
		t.Error("the value of a variable does not change the hash")
	}
	if hash(variable, nil) != hash(variable, map[string]string{"n": "1"}) {
		t.Error("a variable that is given its default changes the hash")
	}
	// The same policies in two files, in the same order.
	two := base + fmt.Sprintf(onePolicy, "b")
	dir := write(t, t.TempDir(), map[string]string{"1.hcl": base, "2.hcl": fmt.Sprintf(onePolicy, "b")})
	s, diags := Load([]string{dir})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	if s.Hash != hash(two, nil) {
		t.Error("how policies are spread over files changes the hash")
	}
}

func TestShippedPolicies(t *testing.T) {
	for _, name := range BuiltinNames() {
		set, diags := Load([]string{"builtin:" + name})
		if len(diags) > 0 {
			t.Errorf("%s: %v", name, diags)
		}
		if !set.Builtin || !slices.ContainsFunc(set.Policies, func(p *Policy) bool { return p.Name == name }) {
			t.Errorf("%s: %+v", name, set)
		}
	}
	if _, err := Builtin("cautios"); err == nil || !strings.Contains(err.Error(), `Did you mean "cautious"?`) {
		t.Errorf("an unknown one: %v", err)
	}
	byNone, diags := Load(nil)
	byName, err := Builtin(BuiltinDefault)
	if err != nil || diags.HasErrors() || byNone.Hash != byName.Hash || !byNone.Builtin {
		t.Errorf("without paths the default is not in force: %v %v", diags, err)
	}
	own, foreign := LockID{Name: "cfg", Key: "aimlock/locks/cfg", Own: true}, LockID{Name: "ops/x", Key: "ops/x"}
	if byName.For(own) == nil || byName.For(foreign) != nil {
		t.Error("the default is for aimlock's own locks, and for no others")
	}
	other, err := Builtin(BuiltinForeign)
	if err != nil || other.For(foreign) == nil {
		t.Errorf("foreign-locks does not match a foreign lock: %v", err)
	}
	b := byName.Policies[0].Break
	if b.Approval != ApprovalAuto || b.Confirm != (Confirm{3, time.Second}) || *b.Budget != (Budget{3, time.Hour}) || b.Freeze == nil || len(b.Steps) != 3 {
		t.Errorf("the default's break is %+v", b)
	}
}

// policy apply runs all tests of what it applies: those of a shipped set must hold
// beside the one for other tools' locks too.
func TestShippedPoliciesTogether(t *testing.T) {
	for _, name := range []string{BuiltinDefault, BuiltinCautious} {
		set, diags := Load([]string{"builtin:" + name, "builtin:" + BuiltinForeign})
		if len(diags) > 0 {
			t.Errorf("%s: %v", name, diags)
		}
		for _, r := range set.RunTests(nil) {
			if len(r.Problems) > 0 {
				t.Errorf("%s, and %s: %s: %v", name, BuiltinForeign, r.Test.Name, r.Problems)
			}
		}
	}
}

// The shipped policies are held to what examples are.
func TestShippedPoliciesAreTested(t *testing.T) {
	for _, name := range BuiltinNames() {
		set, diags := Load([]string{"builtin:" + name})
		if len(diags) > 0 {
			t.Errorf("%s: %v", name, diags)
		}
		if len(set.Tests) < 4 {
			t.Errorf("%s has %d tests", name, len(set.Tests))
		}
		for _, r := range set.RunTests(nil) {
			for _, p := range r.Problems {
				t.Errorf("%s: test %q: %s", r.Test.Range, r.Test.Name, p)
			}
		}
		src, err := BuiltinSource(name)
		if err != nil {
			t.Fatal(err)
		}
		if out, diags := Format(name, src); diags.HasErrors() || !bytes.Equal(src, out) {
			t.Errorf("%s is not in the canonical layout: %v", name, diags)
		}
	}
	// Given after the default, those for foreign locks leave aimlock's own alone.
	set, diags := Load([]string{"builtin:default", "builtin:foreign-locks"})
	if len(diags) > 0 {
		t.Fatal(diags)
	}
	if p := set.For(LockID{Name: "cfg", Key: "aimlock/locks/cfg", Own: true}); p.Name != "default" {
		t.Errorf("an own lock is judged by %q", p.Name)
	}
}

// TestExamples holds every policy in examples/ to: no diagnostics at all, and
// its own tests pass.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/policies/*.hcl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	tests := 0
	for _, f := range files {
		set, diags := Load([]string{f})
		if len(diags) > 0 {
			t.Errorf("%s: %v", f, diags)
		}
		for _, r := range set.RunTests(nil) {
			tests++
			for _, p := range r.Problems {
				t.Errorf("%s: test %q: %s", r.Test.Range, r.Test.Name, p)
			}
		}
	}
	if tests == 0 {
		t.Error("no example has a test block")
	}
}

// Tests that should fail do.
func TestTestBlocksCanFail(t *testing.T) {
	set, diags := Parse("p.hcl", []byte(fmt.Sprintf(onePolicy, "a")+`
test "wrong" {
  facts = { holder = { alive = false } }
  expect {
    state  = "HELD"
    rule   = "x"
    policy = "b"
    reason = "y"
    frozen = true
    steps  = ["take"]
  }
}
`))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	res := set.RunTests(func(name string) bool { return name == "wrong" })
	if len(res) != 1 || len(res[0].Problems) != 6 {
		t.Errorf("got %+v, want six problems", res)
	}
	if got := set.RunTests(func(string) bool { return false }); len(got) != 0 {
		t.Errorf("tests ran that were not asked for: %+v", got)
	}
}

package command

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/aim-control/aimlock/orchestrator/spec"
	"github.com/aim-control/aimlock/policies"
)

// doc is one page of the documentation.
type doc struct {
	path  string
	lines []string
}

// at names a line for a message.
func (d doc) at(n int) string { return fmt.Sprintf("%s:%d", filepath.Base(d.path), n+1) }

// block is a code block of a page: its language and its lines, the first of
// which is line from.
type block struct {
	lang  string
	from  int
	lines []string
}

func docs(t *testing.T) []doc {
	t.Helper()
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no pages in docs: %v", err)
	}
	folders, err := filepath.Glob("../docs/*/*.md")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob("../examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []doc
	for _, path := range slices.Concat(paths, folders, examples, []string{"../README.md", "../CHANGELOG.md"}) {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		d := doc{path: path}
		for scanner := bufio.NewScanner(bytes.NewReader(src)); scanner.Scan(); {
			d.lines = append(d.lines, scanner.Text())
		}
		out = append(out, d)
	}
	return out
}

// split parts a page into its code blocks and its text, in which the lines of
// blocks are empty.
func (d doc) split(t *testing.T) (text []string, blocks []block) {
	t.Helper()
	var open *block
	indent := ""
	for n, line := range d.lines {
		// A block may stand in a list, indented with it.
		lang, fence := strings.CutPrefix(strings.TrimLeft(line, " "), "```")
		switch {
		case fence && open == nil:
			open, indent = &block{lang: lang, from: n + 1}, line[:strings.Index(line, "```")]
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, strings.TrimPrefix(line, indent))
		default:
			text = append(text, line)
			continue
		}
		text = append(text, "")
	}
	if open != nil {
		t.Errorf("%s: a code block is not closed", d.at(open.from-1))
	}
	return text, blocks
}

// TestDocs holds the documentation to what is there: links to files, lines of
// shell that run aimlock, commands that the text names, and HCL.
func TestDocs(t *testing.T) {
	shell, configs := 0, 0
	for _, d := range docs(t) {
		text, blocks := d.split(t)
		for n, line := range text {
			checkLinks(t, d, n, line)
			checkNames(t, d, n, line)
		}
		for _, b := range blocks {
			switch b.lang {
			case "sh":
				for n, line := range b.lines {
					found, err := checkLine(t.Context(), line)
					if err != nil {
						t.Errorf("%s: %s: %v", d.at(b.from+n), line, err)
					}
					if found {
						shell++
					}
				}
			case "hcl":
				checkHCL(t, d.at(b.from), strings.Join(b.lines, "\n")+"\n")
				configs++
			}
		}
	}
	if shell == 0 || configs == 0 {
		t.Errorf("%d lines of shell and %d HCL files were checked: want some of both", shell, configs)
	}
}

// TestDocsIndex holds docs/README.md to name every page.
func TestDocsIndex(t *testing.T) {
	index, err := os.ReadFile("../docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs(t) {
		page, err := filepath.Rel("../docs", d.path)
		if err != nil || strings.HasPrefix(page, "..") || page == "README.md" {
			continue
		}
		if !bytes.Contains(index, []byte("("+page)) {
			t.Errorf("docs/README.md does not lead to %s", page)
		}
	}
}

func checkLinks(t *testing.T, d doc, n int, line string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(line, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		target := d.path
		if m[1] != "" {
			target = filepath.Join(filepath.Dir(d.path), m[1])
		}
		if _, err := os.Stat(target); err != nil {
			t.Errorf("%s: link to a file that is not there: %v", d.at(n), err)
			continue
		}
		if m[2] != "" && filepath.Ext(target) == ".md" && !slices.Contains(anchors(t, target), m[2]) {
			t.Errorf("%s: %s has no heading #%s", d.at(n), target, m[2])
		}
	}
}

// anchors are the headings of a page, as a link names them: in lower case, without
// what is neither letter, digit, blank nor hyphen, and the second of two equal ones
// with a number.
func anchors(t *testing.T, path string) []string {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := doc{path: path, lines: strings.Split(string(src), "\n")}.split(t)
	heading, link, dropped := regexp.MustCompile(`^#{1,6} +(.*)$`), regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`), regexp.MustCompile(`[^\pL\pN_ -]`)
	var out []string
	seen := map[string]int{}
	for _, line := range text {
		head := heading.FindStringSubmatch(line)
		if head == nil {
			continue
		}
		name := link.ReplaceAllString(head[1], "$1")
		name = dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(name)), "")
		name = strings.ReplaceAll(name, " ", "-")
		if n := seen[name]; n > 0 {
			out = append(out, fmt.Sprintf("%s-%d", name, n))
		} else {
			out = append(out, name)
		}
		seen[name]++
	}
	return out
}

func checkNames(t *testing.T, d doc, n int, line string) {
	t.Helper()
	for _, m := range regexp.MustCompile("`aimlock ([a-z][a-z -]*[a-z])").FindAllStringSubmatch(line, -1) {
		words := strings.Fields(m[1])
		name := strings.Join(words[:min(2, len(words))], " ")
		if name == "help" || parents()[name] != "" || commands()[name] != nil || commands()[words[0]] != nil {
			continue
		}
		t.Errorf("%s: %q is no command", d.at(n), "aimlock "+name)
	}
}

// checkHCL reads a piece of HCL as what it is: a policy, a rollout, or any
// other file or fragment.
func checkHCL(t *testing.T, at, src string) {
	t.Helper()
	if got := string(hclwrite.Format([]byte(src))); got != src {
		t.Errorf("%s: not in the canonical format; this is:\n%s", at, got)
	}
	var diags hcl.Diagnostics
	// A part of a file may be warned of what it leaves out, a whole one of nothing.
	word, whole := firstWord(src), false
	switch {
	case word == "policy":
		_, diags = policies.Parse(at, []byte(src))
		whole = true
	case word == "variable" || word == "test":
		_, diags = policies.Parse(at, []byte(src+somePolicy+"}\n"))
	case word == "break":
		_, diags = policies.Parse(at, []byte(somePolicy+src+"}\n"))
	case strings.HasPrefix(src, "# aimlock.hcl\n"):
		_, _, diags = parseConfig(at, []byte(src))
		whole = true
	case word == "rollout":
		diags = loadSpec(t, src)
		whole = true
	case slices.Contains([]string{"config", "fleet", "stage", "gate", "retry", "window", "failure"}, word):
		diags = loadSpec(t, inRollout(src))
	case slices.Contains([]string{"consul_checks", "http", "prometheus", "exec", "nomad_deployment"}, word):
		diags = loadSpec(t, inRollout("gate \"g\" {\n"+src+"}\nstage \"s\" {\n  percent = 100\n  gate    = [\"g\"]\n}\n"))
	case word == "node" && !strings.HasPrefix(src, "node {"): // that is Nomad's
		diags = loadSpec(t, inRollout("fleet {\n  file {\n    path = \"fleet.hcl\"\n  }\n}\n"), "fleet.hcl", src)
	default:
		_, diags = hclsyntax.ParseConfig([]byte(src), at, hcl.InitialPos)
	}
	for _, diag := range diags {
		if whole || diag.Severity == hcl.DiagError {
			t.Errorf("%s: %v", at, diag)
		}
	}
}

// somePolicy is one that is not closed yet.
const somePolicy = `policy "default" {
  locks = ["**"]
  hot "holder-dead" {
    when = holder.alive == false
  }
`

func firstWord(src string) string {
	word, _, _ := strings.Cut(src, " ")
	return word
}

// inRollout makes a rollout of some of its blocks.
func inRollout(blocks string) string {
	for name, least := range map[string]string{
		"config": "config \"c\" {\n  source      = \"c\"\n  destination = \"/c\"\n}\n",
		"fleet":  "fleet {\n  file {\n    path = \"fleet.json\"\n  }\n}\n",
	} {
		if !regexp.MustCompile("(?m)^" + name + ` .*\{$`).MatchString(blocks) {
			blocks = least + blocks
		}
	}
	for _, m := range regexp.MustCompile(`gate\s*=\s*\[([^\]]+)\]`).FindAllStringSubmatch(blocks, -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			if !strings.Contains(blocks, "gate "+name+" {") {
				blocks += "gate " + name + " {\n  exec {\n    command = [\"true\"]\n  }\n}\n"
			}
		}
	}
	return "rollout \"r\" {\n" + blocks + "}\n"
}

// loadSpec reads a rollout from a folder with the files that it names; more are
// names of files and what stands in them.
func loadSpec(t *testing.T, src string, more ...string) hcl.Diagnostics {
	t.Helper()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		writeFile(t, path, content)
		return path
	}
	for _, m := range regexp.MustCompile(`source\s*=\s*"([^"]+)"`).FindAllStringSubmatch(src, -1) {
		file(m[1], "content\n")
	}
	file("fleet.json", `[{"node": "n1", "meta": {"zone": "a"}}, {"node": "n2", "meta": {"zone": "b"}}]`)
	for i := 0; i < len(more); i += 2 {
		file(more[i], more[i+1])
	}
	_, diags := spec.Load(file("rollout.hcl", src))
	return diags
}

// TestDocsOfFacts holds the table of facts in docs/policies.md to the schema.
func TestDocsOfFacts(t *testing.T) {
	src, err := os.ReadFile("../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for object, facts := range policies.Schema() {
		for name, def := range facts {
			what := def.Doc
			if len(def.Values) > 0 {
				what += ": " + strings.Join(def.Values, ", ")
			}
			row := fmt.Sprintf("| `%s.%s` | %s | %s |\n", object, name, def.Type.FriendlyName(), what)
			if !bytes.Contains(src, []byte(row)) {
				t.Errorf("docs/policies.md lacks the row\n%s", row)
			}
			rows++
		}
	}
	// The rows of facts are the only ones that begin with a name of two parts.
	if got := len(regexp.MustCompile("(?m)^\\| `[a-z]+\\.[a-z_]+` ").FindAll(src, -1)); got != rows {
		t.Errorf("docs/policies.md has %d rows of facts, the schema %d facts", got, rows)
	}
}

// TestDocsOfRoles: the commands that the ACL rules of a role say they are for exist.
func TestDocsOfRoles(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("../examples/acl/*.hcl")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no rules: %v", err)
	}
	some, found := regexp.MustCompile(`\b([a-z]+)\s+((?:[a-z]+\|)+[a-z]+)`), 0
	for _, path := range paths {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		comments := ""
		for line := range strings.Lines(string(src)) {
			if text, ok := strings.CutPrefix(line, "#"); ok {
				comments += text
			}
		}
		for _, m := range some.FindAllStringSubmatch(comments, -1) {
			for sub := range strings.SplitSeq(m[2], "|") {
				found++
				if ok, err := checkLine(t.Context(), "aimlock "+m[1]+" "+sub); err != nil && strings.Contains(err.Error(), "no command") || !ok {
					t.Errorf("%s: %s %s: %v", path, m[1], sub, err)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d commands were found", found)
	}
}

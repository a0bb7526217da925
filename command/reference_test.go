package command

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var updateReference = flag.Bool("update", false, "write docs/reference anew from the code")

const referenceDir = "../docs/reference"

// referencePages are the pages of docs/reference, each made of what the code itself
// goes by.
func referencePages() []referencePage {
	return []referencePage{
		{"commands.md", "Commands", "Every command with its flags, their defaults, and examples.", (*refWriter).commands},
		{"exit-codes.md", "Exit codes", "What a command's end says.", (*refWriter).exitCodes},
		{"environment.md", "Environment variables", "Every variable that is read, and those that programs are given.", (*refWriter).environment},
		{"hcl.md", "HCL", "Every block and argument of policies, rollouts, fleet files and aimlock.hcl.", (*refWriter).hcl},
		{"facts.md", "Facts", "What a policy may read.", (*refWriter).facts},
		{"functions.md", "Functions", "What expressions in policies and templates may call.", (*refWriter).functions},
		{"json.md", "JSON", "What -json prints, and every record in Consul.", (*refWriter).json},
		{"keys.md", "Keys", "Every key in Consul's KV store.", (*refWriter).keys},
		{"metrics.md", "Metrics", "What /metrics has, of locksmith, agent and rollout.", (*refWriter).metrics},
	}
}

type referencePage struct {
	name, title, about string
	write              func(*refWriter)
}

// TestReference holds docs/reference to the code, or writes it with -update:
//
//	go test ./command -run TestReference -update
func TestReference(t *testing.T) {
	t.Parallel()
	pages := map[string]string{}
	var index strings.Builder
	index.WriteString("# Reference\n\nThese pages are made from the code, and a test holds them to it.\n\n| page | what |\n|---|---|\n")
	for _, p := range referencePages() {
		w := &refWriter{t: t}
		w.printf("# %s\n\n", p.title)
		p.write(w)
		pages[p.name] = strings.TrimRight(w.String(), "\n") + "\n"
		fmt.Fprintf(&index, "| [%s](%s) | %s |\n", p.title, p.name, p.about)
	}
	pages["README.md"] = index.String()
	if t.Failed() {
		return
	}
	if *updateReference {
		if err := os.MkdirAll(referenceDir, 0o750); err != nil {
			t.Fatal(err)
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join(referenceDir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	const how = "go test ./command -run TestReference -update writes it anew"
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		is, err := os.ReadFile(filepath.Join(referenceDir, name))
		if err != nil {
			t.Errorf("%v: %s", err, how)
			continue
		}
		if line, was, want, ok := firstDifference(string(is), pages[name]); !ok {
			t.Errorf("docs/reference/%s:%d is\n\t%s\nand by the code\n\t%s\n%s", name, line, was, want, how)
		}
	}
	there, err := filepath.Glob(referenceDir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if _, ok := pages[filepath.Base(path)]; !ok {
			t.Errorf("%s is no page of the reference", path)
		}
	}
}

func firstDifference(a, b string) (line int, was, want string, same bool) {
	if a == b {
		return 0, "", "", true
	}
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(as), len(bs)) {
		at := func(l []string) string {
			if i < len(l) {
				return l[i]
			}
			return "(the end)"
		}
		if at(as) != at(bs) {
			return i + 1, at(as), at(bs), false
		}
	}
	return 0, "", "", false
}

// refWriter is one page in the making.
type refWriter struct {
	bytes.Buffer
	t *testing.T
}

func (w *refWriter) printf(format string, args ...any) { fmt.Fprintf(w, format, args...) }

// row is a line of a table.
func (w *refWriter) row(cells ...string) {
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(oneLine(c), "|", `\|`)
	}
	w.printf("| %s |\n", strings.Join(cells, " | "))
}

func (w *refWriter) table(head ...string) {
	w.row(slices.Clone(head)...)
	w.printf("%s|\n", strings.Repeat("|---", len(head)))
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// emptyMeta is what a command needs to tell what it is.
func emptyMeta() *Meta {
	return newMeta(context.Background(), IO{Stdout: io.Discard, Stderr: io.Discard, LookupEnv: func(string) (string, bool) { return "", false }})
}

// allCommands are the commands by their names.
func allCommands() []*command {
	var out []*command
	for _, name := range sortedNames() {
		c := commands()[name](emptyMeta())
		c.name = name
		out = append(out, c)
	}
	return out
}

func (w *refWriter) commands() {
	w.printf("`aimlock COMMAND -h` prints the same. What flags do that several commands share is said [at the end](#shared-flags).\n\n")
	shared := map[string]*flag.Flag{}
	for _, c := range allCommands() {
		own := flag.NewFlagSet("", flag.ContinueOnError)
		if c.Flags != nil {
			c.Flags(own)
		}
		of := flag.NewFlagSet("", flag.ContinueOnError)
		c.sharedFlags(of, c.Groups)
		var takes []string
		of.VisitAll(func(f *flag.Flag) {
			shared[f.Name] = f
			takes = append(takes, code("-"+f.Name))
		})
		w.printf("## aimlock %s\n\n", c.name)
		if c.Hidden {
			w.printf("Not in the list of `aimlock help`.\n\n")
		}
		if c.Synopsis != "" {
			w.printf("%s.\n\n", strings.TrimSuffix(c.Synopsis, "."))
		}
		w.printf("```\naimlock %s\n```\n\n", strings.TrimSpace(c.name+" "+c.Usage))
		if c.Description != "" {
			w.printf("```text\n%s\n```\n\n", strings.TrimSpace(c.Description))
		}
		w.flags(own)
		w.printf("Shared flags: %s.\n\n", strings.Join(takes, " "))
		if len(c.Examples) > 0 {
			w.printf("```sh\n")
			for i, e := range c.Examples {
				if i > 0 {
					w.printf("\n")
				}
				w.printf("# %s\n%s\n", e.Title, e.Line)
			}
			w.printf("```\n\n")
		}
	}
	w.printf("## Shared flags\n\n")
	w.table("flag", "default", "what")
	for _, name := range slices.Sorted(maps.Keys(shared)) {
		value, usage := flag.UnquoteUsage(shared[name])
		w.row(code(strings.TrimSpace("-"+name+" "+value)), code(shownDefault(shared[name])), usage)
	}
}

func (w *refWriter) flags(fs *flag.FlagSet) {
	none := true
	fs.VisitAll(func(f *flag.Flag) {
		if none {
			none = false
			w.table("flag", "default", "what")
		}
		value, usage := flag.UnquoteUsage(f)
		w.row(code(strings.TrimSpace("-"+f.Name+" "+value)), code(shownDefault(f)), usage)
	})
	if !none {
		w.printf("\n")
	}
}

func (w *refWriter) exitCodes() {
	w.table("exit", "meaning")
	for _, e := range exitMeanings() {
		w.row(fmt.Sprint(e.code), e.what)
	}
	w.printf("\nA command that a signal interrupted ends with 128 plus its number. `lock exec` passes on the exit code of its child, or\n128 plus the number of the signal that ended it; its own refusals print `ERROR:` first.\n")
}

package command

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/version"
)

// newMan is for packages: `make dist` runs it.
func newMan(m *Meta) *command {
	return &command{
		Meta:     m,
		Hidden:   true,
		Synopsis: "Write the manual pages, for packages",
		Usage:    "DIR",
		Description: `Writes a manual page for each command into DIR, as sections of man: aimlock.1,
aimlock-lock-exec.1 and so on.`,
		MinArgs: 1, MaxArgs: 1,
		Complete: completeDirs,
		Run: func(_ context.Context, in *input) error {
			if err := os.MkdirAll(in.Args[0], 0o755); err != nil {
				return err
			}
			for name, page := range manPages(m) {
				if err := os.WriteFile(filepath.Join(in.Args[0], name+".1"), []byte(page), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// manPages are the pages by their names, without the section.
func manPages(m *Meta) map[string]string {
	pages, see := map[string]string{}, []string{}
	var list roff
	for _, name := range sortedNames() {
		c := commands()[name](m)
		if c.name = name; c.Hidden {
			continue
		}
		page := manName(name)
		pages[page] = manPage(c)
		see = append(see, page)
		list.tagged(name, c.Synopsis)
	}
	var b roff
	b.head("aimlock", "rolls config files out under Consul locks, and breaks HOT locks safely")
	b.section("SYNOPSIS")
	b.text("aimlock <command> [options] [args]")
	b.section("DESCRIPTION")
	b.text("aimlock rolls a config file out to a fleet in stages under a Consul lock,\ndecides by policy when a lock is HOT, and breaks it safely.")
	b.section("COMMANDS")
	b.WriteString(list.String())
	b.section("EXIT STATUS")
	for _, e := range exitMeanings() {
		b.tagged(fmt.Sprint(e.code), e.what)
	}
	b.text("A command that a signal interrupted ends with 128 plus its number.")
	b.section("ENVIRONMENT")
	b.text("Consul's and Nomad's own variables count as for their own tools (CONSUL_HTTP_ADDR,\nCONSUL_HTTP_TOKEN, NOMAD_ADDR and the others), and AIMLOCK_CONFIG, AIMLOCK_PREFIX,\nAIMLOCK_LOG, AIMLOCK_JOURNAL, AIMLOCK_PLUGIN_DIR, AIMLOCK_NODE and AIMLOCK_STATE_DIR\nstand for flags. Without colours: NO_COLOR.")
	b.section("SEE ALSO")
	b.text(strings.Join(see, "(1), ") + "(1)")
	pages["aimlock"] = b.String()
	return pages
}

func sortedNames() []string {
	var names []string
	for name := range commands() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func manName(command string) string { return "aimlock-" + strings.ReplaceAll(command, " ", "-") }

func manPage(c *command) string {
	var b roff
	b.head(manName(c.name), c.Synopsis)
	b.section("SYNOPSIS")
	b.text("aimlock " + c.name + " " + c.Usage)
	b.section("DESCRIPTION")
	b.text(c.Description)
	for _, part := range []struct {
		title string
		add   func(*flag.FlagSet)
	}{
		{"OPTIONS", c.Flags},
		{"SHARED OPTIONS", func(fs *flag.FlagSet) { c.sharedFlags(fs, c.Groups) }},
	} {
		fs := flag.NewFlagSet("", flag.ContinueOnError)
		if part.add != nil {
			part.add(fs)
		}
		first := true
		fs.VisitAll(func(f *flag.Flag) {
			if first {
				b.section(part.title)
				first = false
			}
			value, usage := flag.UnquoteUsage(f)
			if shown := shownDefault(f); shown != "" {
				usage += "\nDefault: " + shown
			}
			b.tagged(strings.TrimSpace("-"+f.Name+" "+value), usage)
		})
	}
	b.section("EXAMPLES")
	for _, e := range c.Examples {
		b.text(e.Title + ":\n\n    " + e.Line)
	}
	b.section("EXIT STATUS")
	b.text("See aimlock(1).")
	b.section("SEE ALSO")
	b.text("aimlock(1)")
	return b.String()
}

// roff is a manual page in the making. Everything that is written as text is
// escaped; see groff_man(7) and groff_char(7).
type roff struct{ strings.Builder }

func roffEscape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
}

// line writes a line of text, which is no request of roff's however it begins.
func (b *roff) line(s string) {
	if s = roffEscape(s); strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	b.WriteString(s + "\n")
}

func (b *roff) head(name, synopsis string) {
	fmt.Fprintf(b, ".TH %s 1 \"\" \"aimlock %s\" \"aimlock\"\n.SH NAME\n", strings.ToUpper(name), version.Get().Version)
	b.line(name + " - " + synopsis)
}

func (b *roff) section(title string) { b.WriteString(".SH " + title + "\n") }

// text writes paragraphs; lines that are indented stand as they are.
func (b *roff) text(s string) {
	for _, par := range strings.Split(strings.TrimSpace(s), "\n\n") {
		b.WriteString(".PP\n")
		still := false
		for _, l := range strings.Split(par, "\n") {
			if indented := strings.HasPrefix(l, "  "); indented != still {
				if still = indented; still {
					b.WriteString(".nf\n")
				} else {
					b.WriteString(".fi\n")
				}
			}
			b.line(l)
		}
		if still {
			b.WriteString(".fi\n")
		}
	}
}

func (b *roff) tagged(tag, s string) {
	b.WriteString(".TP\n.B ")
	b.line(tag)
	for _, l := range strings.Split(strings.TrimSpace(s), "\n") {
		b.line(l)
	}
}

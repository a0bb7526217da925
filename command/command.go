package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/cli"

	"github.com/aim-control/aimlock/policies"
)

// constructor makes a command that has read nothing yet.
type constructor func(*Meta) *command

// group says which of the shared flags a command takes.
type group uint

const (
	// groupConsul is for every command that talks to Consul: it has m.Consul()
	// and m.Prefix.
	groupConsul group = 1 << iota
	// groupJSON is for every command that reports: it looks at m.JSON.
	groupJSON
	// groupPolicy is for every command that judges: it reads m.PolicyPaths.
	groupPolicy
	// groupDaemon is for what runs until it is stopped: it logs at info.
	groupDaemon
	// groupPlugin is for every command that uses plugins and does not judge.
	groupPlugin
)

// example is one use of a command, a line that really runs.
type example struct{ Title, Line string }

// command is one verb.
type command struct {
	*Meta

	Synopsis    string // under 60 characters, no full stop
	Usage       string // what stands after the name: "[options] NAME -- CMD…"
	Description string // paragraphs, parted by empty lines; wrapped by hand, not indented
	Examples    []example
	Groups      group
	Flags       func(*flag.FlagSet) // registers the command's own flags
	MinArgs     int
	MaxArgs     int // of positional arguments; negative is no bound
	// CommandLine allows a command line after `--`. Without it, what stands
	// after `--` counts as positional arguments.
	CommandLine bool
	// Elsewhere are flags that other tools have for what another command does here,
	// with that command.
	Elsewhere map[string]string
	// Complete says what a shell proposes for the arguments; nil for nothing.
	Complete completer
	Hidden   bool
	// Exits are the exit codes that the help explains; nil: those of the table in
	// docs/cli.md count, and none needs a word.
	Exits []int
	Run   func(context.Context, *input) error

	name string // the key in commands, set before use
}

// input is a parsed command line.
type input struct {
	Args    []string // positional arguments
	Command []string // what stood after `--`, untouched
	set     map[string]bool
	// behind are the arguments that stand right behind a switch, which takes no value.
	behind map[int]string
}

// Set tells whether a flag was given, as against standing at its default.
func (in *input) Set(flagName string) bool { return in.set[flagName] }

// verb shows a command to hashicorp/cli.
type verb struct{ *command }

var (
	_ cli.Command             = verb{}
	_ cli.CommandAutocomplete = verb{}
)

func (v verb) Synopsis() string { return v.command.Synopsis }

// Run is cli's entry: everything that a command can end with passes here.
func (v verb) Run(args []string) int {
	c := v.command
	return report(c.ctx, c.Stderr, c.execute(args))
}

func (c *command) execute(args []string) error {
	fs := c.flagSet()
	in, err := parse(fs, args)
	if unknown, ok := errors.AsType[*unknownFlagError](err); ok && c.Elsewhere[unknown.name] != "" {
		return usagef("unknown flag -%s: %s", unknown.name, c.Elsewhere[unknown.name])
	}
	if err != nil {
		end := "."
		if strings.HasSuffix(err.Error(), "?") {
			end = ""
		}
		return usagef("%w%s Run %q for the flags", err, end, "aimlock "+c.name+" -h")
	}
	if !c.CommandLine {
		in.Args, in.Command = append(in.Args, in.Command...), nil
	}
	if n := len(in.Args); n < c.MinArgs || c.MaxArgs >= 0 && n > c.MaxArgs {
		what := "is missing an argument"
		if n > c.MinArgs {
			what = "has an argument too many: " + in.surplus(max(c.MaxArgs, 0))
		}
		return usagef("aimlock %s %s. Usage: aimlock %s %s", c.name, what, c.name, c.Usage)
	}
	if err := c.setUp(c.Groups); err != nil {
		return err
	}
	defer c.trace()()
	defer c.closePlugins()
	defer c.closeHooks()
	defer c.closeLocks()
	return c.Run(c.ctx, in)
}

// surplus names argument n, which is one too many. One before it that stands behind a
// switch may have been meant as its value.
func (in *input) surplus(n int) string {
	for i, arg := range in.Args[:n+1] {
		name, ok := in.behind[i]
		switch {
		case ok && i == n:
			return fmt.Sprintf("%q (-%s takes no value)", arg, name)
		case ok:
			return fmt.Sprintf("%q, or %q (-%s takes no value)", in.Args[n], arg, name)
		}
	}
	return fmt.Sprintf("%q", in.Args[n])
}

func (c *command) flagSet() *flag.FlagSet {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	if c.Flags != nil {
		c.Flags(fs)
	}
	c.sharedFlags(fs, c.Groups)
	return fs
}

// parse reads flags wherever they stand before `--`. It feeds the flag set one
// flag at a time, because on its own it would stop at the first positional
// argument and swallow the `--`.
func parse(fs *flag.FlagSet, args []string) (*input, error) {
	in := &input{set: map[string]bool{}, behind: map[int]string{}}
	lone := "" // the switch that stands before arg
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			in.Command = args[1:]
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			if lone != "" {
				in.behind[len(in.Args)] = lone
			}
			in.Args = append(in.Args, arg)
			args, lone = args[1:], ""
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(arg[1:], "-"), "=")
		f := fs.Lookup(name)
		if f == nil {
			return nil, unknownFlag(fs, name)
		}
		n := 1
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); !hasValue && (!ok || !b.IsBoolFlag()) {
			n = min(2, len(args))
		}
		if lone = ""; n == 1 && !hasValue {
			lone = name
		}
		if n == 2 {
			value = args[1]
		}
		if err := fs.Parse(args[:n]); err != nil && !setDays(f, value) {
			return nil, valueError(f, err)
		}
		in.set[name] = true
		args = args[n:]
	}
	return in, nil
}

func isDuration(f *flag.Flag) bool {
	g, ok := f.Value.(flag.Getter)
	if !ok {
		return false
	}
	_, ok = g.Get().(time.Duration)
	return ok
}

// setDays sets a duration that is written as policies write it, such as 2d.
func setDays(f *flag.Flag, value string) bool {
	if !isDuration(f) {
		return false
	}
	d, err := policies.ParseDuration(value)
	return err == nil && f.Value.Set(d.String()) == nil
}

// valueError says how a duration is written where package flag says that it was
// a parse error.
func valueError(f *flag.Flag, err error) error {
	if isDuration(f) && strings.HasSuffix(err.Error(), ": parse error") {
		return fmt.Errorf("%w: write a duration such as 90s, 30m, 1h30m or 2d", err)
	}
	return err
}

func unknownFlag(fs *flag.FlagSet, name string) error {
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	if s := suggest(name, names); s != "" {
		return fmt.Errorf("unknown flag -%s. Did you mean -%s?", name, s)
	}
	return &unknownFlagError{name}
}

// unknownFlagError is for a flag that is like no other one.
type unknownFlagError struct{ name string }

func (e *unknownFlagError) Error() string { return "unknown flag -" + e.name }

// suggest returns what given was probably meant to be, or "". Of several that are as
// near it is the first.
func suggest(given string, candidates []string) string {
	best, bestDist := "", 3
	for _, c := range candidates {
		d := levenshtein.Distance(given, c, nil)
		switch {
		case len(given) > 2 && strings.HasPrefix(c, given):
			d = min(d, 1) // it may be short for that
		case letters(given) == letters(c):
			d = min(d, 1) // neighbours that changed places are one slip
		}
		if d < bestDist && d < len(c) {
			best, bestDist = c, d
		}
	}
	return best
}

// letters are those of a word, in order.
func letters(s string) string {
	r := []rune(s)
	slices.Sort(r)
	return string(r)
}

// Help is the whole help text but for the list of subcommands, which cli adds.
func (v verb) Help() string {
	c := v.command
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: aimlock %s %s\n", c.name, c.Usage)
	if c.Description != "" {
		b.WriteString("\n" + indent(c.Description, "  ") + "\n")
	}
	if len(c.Examples) > 0 {
		b.WriteString("\nExamples:\n")
		for _, e := range c.Examples {
			fmt.Fprintf(&b, "\n  # %s\n%s\n", e.Title, indent("$ "+e.Line, "  "))
		}
	}
	own := flag.NewFlagSet("", flag.ContinueOnError)
	if c.Flags != nil {
		c.Flags(own)
	}
	shared := flag.NewFlagSet("", flag.ContinueOnError)
	c.sharedFlags(shared, c.Groups)
	writeFlags(&b, "Options", own)
	writeFlags(&b, "Shared options", shared)
	writeExits(&b, c.Exits)
	return strings.TrimRight(b.String(), "\n")
}

// writeExits explains exit codes as the table of all of them does.
func writeExits(b *strings.Builder, codes []int) {
	if len(codes) == 0 {
		return
	}
	b.WriteString("\nExit codes:\n\n")
	for _, e := range exitMeanings() {
		if slices.Contains(codes, e.code) {
			fmt.Fprintf(b, "  %-3d %s\n", e.code, e.what)
		}
	}
	fmt.Fprintf(b, "  %-3s %s\n", "130", exitBySignal)
}

func writeFlags(b *strings.Builder, title string, fs *flag.FlagSet) {
	var flags []*flag.Flag
	fs.VisitAll(func(f *flag.Flag) { flags = append(flags, f) })
	if len(flags) == 0 {
		return
	}
	slices.SortFunc(flags, func(a, b *flag.Flag) int { return strings.Compare(a.Name, b.Name) })
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, f := range flags {
		value, usage := flag.UnquoteUsage(f)
		if value != "" {
			value = " " + value
		}
		fmt.Fprintf(b, "\n  -%s%s\n%s\n", f.Name, value, indent(usage, "      "))
		if shown := shownDefault(f); shown != "" {
			fmt.Fprintf(b, "      Default: %s\n", shown)
		}
	}
}

// shownDefault is a default that says something.
func shownDefault(f *flag.Flag) string {
	switch f.DefValue {
	case "false", "0", "0s":
		return ""
	}
	return f.DefValue
}

func indent(s, by string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, l := range lines {
		if l = strings.TrimRight(l, " \t"); l != "" {
			lines[i] = by + l
		} else {
			lines[i] = ""
		}
	}
	return strings.Join(lines, "\n")
}

package command

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/aim-control/aimlock/internal/version"
)

// Run runs the command line args, without the program's name, and returns the
// exit code. When ctx is cancelled the command winds down; a signal as the
// cause of it (internal/signals) chooses the exit code.
func Run(ctx context.Context, args []string, stdio IO) int {
	m := newMeta(ctx, stdio)
	c := newCLI(m, args)
	code, err := runCLI(c, args)
	if err != nil {
		return report(ctx, stdio.Stderr, err)
	}
	if m.interrupted && stdio.Interrupt != nil {
		stdio.Interrupt()
	}
	return code
}

func newCLI(m *Meta, args []string) *cli.CLI {
	c := cli.NewCLI("aimlock", version.Get().String())
	c.Args = args
	// "aimlock completion" prints what these would write into files of a shell.
	c.AutocompleteNoDefaultFlags = true
	c.HelpWriter = m.Stdout
	c.ErrorWriter = m.Stderr
	c.HelpFunc = rootHelp
	c.Commands = map[string]cli.CommandFactory{}
	for name, construct := range commands() {
		factory := func() *command {
			cmd := construct(m)
			cmd.name = name
			return cmd
		}
		if factory().Hidden {
			c.HiddenCommands = append(c.HiddenCommands, name)
		}
		c.Commands[name] = func() (cli.Command, error) { return verb{factory()}, nil }
	}
	for name, synopsis := range parents() {
		subs := subcommands(c.Commands, name)
		if _, ok := c.Commands[name]; ok || len(subs) == 0 {
			continue
		}
		c.Commands[name] = func() (cli.Command, error) { return &parent{m, name, synopsis, subs}, nil }
	}
	return c
}

// runCLI checks what cli would answer with exit codes of its own, then hands
// over to it.
func runCLI(c *cli.CLI, args []string) (int, error) {
	if completing() {
		return c.Run()
	}
	if len(args) > 0 && args[0] == "help" {
		// `aimlock help lock list` is `aimlock lock list -h`.
		args = append(slices.Clone(args[1:]), "-h")
		c.Args = args
	}
	sub := c.Subcommand()
	if _, ok := c.Commands[sub]; sub != "" && !ok {
		return 0, unknownCommand("", sub, subcommands(c.Commands, ""))
	}
	if c.IsHelp() && sub != "" {
		// Help for what is no command is not the help of the one above it.
		subs := subcommands(c.Commands, sub)
		if rest := c.SubcommandArgs(); len(subs) > 0 && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
			return 0, unknownCommand(sub, rest[0], subs)
		}
	}
	if sub == "" && !c.IsHelp() && !c.IsVersion() {
		if len(args) > 0 {
			return 0, usagef("%q stands where a command is expected. Run \"aimlock help\" for the commands", args[0])
		}
		if len(args) == 0 {
			_, _ = fmt.Fprintln(c.ErrorWriter, c.HelpFunc(topLevel(c)))
			return ExitUsage, nil
		}
	}
	if sub != "" && !c.IsHelp() && strings.HasPrefix(args[0], "-") {
		return 0, usagef("flag %s stands before the command: put it behind \"aimlock %s\"", args[0], sub)
	}
	return c.Run()
}

func subcommands(all map[string]cli.CommandFactory, of string) []string {
	var names []string
	for name := range all {
		if of != "" {
			rest, ok := strings.CutPrefix(name, of+" ")
			if !ok {
				continue
			}
			name = rest
		}
		if first, _, nested := strings.Cut(name, " "); !nested {
			names = append(names, first)
		}
	}
	slices.Sort(names)
	return names
}

// topLevel are the commands that the help lists.
func topLevel(c *cli.CLI) map[string]cli.CommandFactory {
	top := map[string]cli.CommandFactory{}
	for _, name := range subcommands(c.Commands, "") {
		if !slices.Contains(c.HiddenCommands, name) {
			top[name] = c.Commands[name]
		}
	}
	return top
}

func unknownCommand(parent, given string, known []string) error {
	full := strings.TrimSpace("aimlock " + parent)
	// In doubt the one is meant that changes nothing.
	known = slices.Clone(known)
	slices.SortStableFunc(known, func(a, b string) int { return cmp.Compare(risk(a), risk(b)) })
	if s := suggest(given, known); s != "" {
		return usagef("%s has no command %q. Did you mean %q?", full, given, s)
	}
	return usagef("%s has no command %q. Run %q for the commands", full, given, full+" -h")
}

// risk is 0 for a name under which commands only look on, and else 1.
func risk(name string) int {
	switch name {
	case "acl", "check", "completion", "doctor", "explain", "info", "list", "plan", "replay", "report", "show", "status",
		"test", "ui", "verify", "version", "watch":
		return 0
	}
	return 1
}

// parent is a verb that only has subcommands. cli lists them under its help.
type parent struct {
	*Meta
	name, synopsis string
	subs           []string
}

func (p *parent) Synopsis() string { return p.synopsis }

func (p *parent) Help() string {
	return fmt.Sprintf("Usage: aimlock %s <subcommand> [options] [args]\n\n  %s.", p.name, p.synopsis)
}

func (p *parent) Run(args []string) int {
	err := usagef("aimlock %s needs a subcommand: one of %s", p.name, strings.Join(p.subs, ", "))
	if len(args) > 0 {
		err = unknownCommand(p.name, args[0], p.subs)
	}
	return report(p.ctx, p.Stderr, err)
}

func rootHelp(cmds map[string]cli.CommandFactory) string {
	var b strings.Builder
	b.WriteString(`Usage: aimlock <command> [options] [args]

  aimlock rolls a config file out to a fleet in stages under a Consul lock,
  decides by policy when a lock is HOT, and breaks it safely.

Commands:
`)
	names := slices.Sorted(maps.Keys(cmds))
	width := 0
	for _, n := range names {
		width = max(width, len(n))
	}
	for _, n := range names {
		cmd, err := cmds[n]()
		if err != nil {
			continue
		}
		fmt.Fprintf(&b, "    %-*s    %s\n", width, n, cmd.Synopsis())
	}
	b.WriteString(`
Run "aimlock <command> -h" for the flags of a command and examples.
To see it at work, with nothing to install: aimlock demo`)
	return b.String()
}

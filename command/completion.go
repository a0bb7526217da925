package command

import (
	"context"
	_ "embed"
	"flag"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/posener/complete"

	"github.com/aim-control/aimlock/examples/acl"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// completionLine is the variable in which a shell hands over the line that is
// being typed; see github.com/posener/complete.
const completionLine = "COMP_LINE"

// completionTime bounds what Tab waits for Consul.
const completionTime = 2 * time.Second

// The scripts of the shells: each asks this program by COMP_LINE.
var (
	//go:embed completion/aimlock.bash
	completionBash string
	//go:embed completion/aimlock.zsh
	completionZsh string
	//go:embed completion/aimlock.fish
	completionFish string
)

func completionScripts() map[string]string {
	return map[string]string{"bash": completionBash, "zsh": completionZsh, "fish": completionFish}
}

func newCompletion(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Print the script that completes commands in a shell",
		Usage:    "[options] bash|zsh|fish",
		Description: `Prints a script for a shell. With it, Tab completes commands, flags, and the names
of locks and rollouts, for which it asks Consul, for ` + completionTime.String() + ` at most.
A shell's own file can have a line instead: eval "$(aimlock completion bash)"`,
		Examples: []example{
			{"For bash, with bash-completion; first mkdir -p ~/.local/share/bash-completion/completions", "aimlock completion bash > ~/.local/share/bash-completion/completions/aimlock"},
			{"For zsh, with compinit", `aimlock completion zsh > "${fpath[1]}/_aimlock"`},
			{"For fish; first mkdir -p ~/.config/fish/completions", "aimlock completion fish > ~/.config/fish/completions/aimlock.fish"},
		},
		MinArgs: 1, MaxArgs: 1,
		Complete: completeWords("bash", "zsh", "fish"),
		Run: func(_ context.Context, in *input) error {
			script, ok := completionScripts()[in.Args[0]]
			if !ok {
				return usagef("there is no completion for %q: one of %s", in.Args[0], strings.Join(slices.Sorted(maps.Keys(completionScripts())), ", "))
			}
			m.Printf("%s", script)
			return nil
		},
	}
}

// completer says what may stand at one place of a command line. The command has
// read the flags that stand on the line; done are the arguments before.
type completer func(ctx context.Context, c *command, done []string, typed string) []string

func completeWords(words ...string) completer {
	return func(context.Context, *command, []string, string) []string { return words }
}

func completeFiles(pattern string) completer {
	return func(_ context.Context, _ *command, _ []string, typed string) []string {
		return visible(complete.PredictFiles(pattern).Predict(complete.Args{Last: typed}), typed)
	}
}

func completeDirs(_ context.Context, _ *command, _ []string, typed string) []string {
	return visible(complete.PredictDirs("*").Predict(complete.Args{Last: typed}), typed)
}

// visible drops hidden files and the folder itself, unless a dot was typed.
func visible(paths []string, typed string) []string {
	if strings.HasPrefix(path.Base(typed), ".") && typed != "" {
		return paths
	}
	return slices.DeleteFunc(paths, func(p string) bool { return strings.HasPrefix(path.Base(p), ".") })
}

func completeRoles(context.Context, *command, []string, string) []string {
	roles, err := acl.Roles()
	if err != nil {
		return nil
	}
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = r.Name
	}
	return names
}

func completeStates(context.Context, *command, []string, string) []string {
	words := []string{"unfinished", "finished"}
	for _, st := range allStates {
		words = append(words, string(st))
	}
	return words
}

func completeTopics(context.Context, *command, []string, string) []string {
	return slices.Sorted(maps.Keys(topics()))
}

// completeLocks are all that stand in Consul, those of other tools too.
func completeLocks(ctx context.Context, c *command, _ []string, _ string) []string {
	client, err := c.Locksmith()
	if err != nil {
		return nil
	}
	var names []string
	// What cannot be read cannot be proposed either, and nobody is there to tell.
	_, _ = client.EachLock(ctx, []string{""}, true, func(v *locksmith.Verdict) { names = append(names, v.Snapshot.Name) })
	return names
}

// completeRollouts are ids and names.
func completeRollouts(ctx context.Context, c *command, _ []string, _ string) []string {
	r, err := c.runner(nil)
	if err != nil {
		return nil
	}
	list, err := r.List(ctx, runner.Filter{Ended: listShown})
	if err != nil {
		return nil
	}
	var out []string
	for _, h := range list.Headers {
		out = append(out, h.ID, h.Name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// completeInOrder has one completer for each argument.
func completeInOrder(each ...completer) completer {
	return func(ctx context.Context, c *command, done []string, typed string) []string {
		if len(done) >= len(each) {
			return nil
		}
		return each[len(done)](ctx, c, done, typed)
	}
}

// flagValues says what a flag's value may be: by its name, else by what its help
// calls the value.
func flagValues(f *flag.Flag) completer {
	switch f.Name {
	case "log-level":
		return completeWords("trace", "debug", "info", "warn", "error", "off")
	case "role":
		return completeRoles
	case "lock", "config-name":
		return completeLocks
	case "state":
		return completeStates
	}
	switch value, _ := flag.UnquoteUsage(f); value {
	case "FILE", "PATH":
		return completeFiles("*")
	case "DIR", "FOLDER":
		return completeDirs
	}
	return completeWords()
}

// predictor shows a completer to package complete, which parts the line at
// spaces: no shell's quotes are read.
func (v verb) predictor(what completer) complete.Predictor {
	return complete.PredictFunc(func(a complete.Args) []string {
		c := v.command
		if slices.Contains(a.Completed, "--") {
			return completeFiles("*")(c.ctx, c, nil, a.Last)
		}
		// Neither a log nor a note may come between a person and the line.
		defer c.stderr.divert(io.Discard)()
		c.Log = hclog.NewNullLogger()
		in, err := parse(c.flagSet(), a.Completed)
		if err != nil {
			// The flag whose value is being typed is the last one.
			in, err = parse(c.flagSet(), a.Completed[:max(len(a.Completed)-1, 0)])
		}
		if err != nil || c.setUp(c.Groups) != nil {
			return nil
		}
		defer c.closePlugins()
		defer c.closeHooks()
		defer c.closeLocks()
		ctx, cancel := context.WithTimeout(c.ctx, completionTime)
		defer cancel()
		return slices.DeleteFunc(what(ctx, c, in.Args, a.Last), func(s string) bool {
			// A shell would read it as several words, or run it.
			return strings.ContainsFunc(s, func(r rune) bool {
				return r <= ' ' || r == 0x7f || strings.ContainsRune("\"'`$\\&|;<>()*?[]{}!#~", r)
			})
		})
	})
}

// AutocompleteArgs is what the command's arguments may be.
func (v verb) AutocompleteArgs() complete.Predictor {
	if v.Complete == nil {
		return complete.PredictNothing
	}
	return v.predictor(func(ctx context.Context, c *command, done []string, typed string) []string {
		if c.MaxArgs >= 0 && len(done) >= c.MaxArgs {
			return nil
		}
		return v.Complete(ctx, c, done, typed)
	})
}

// AutocompleteFlags are the command's flags and what their values may be.
func (v verb) AutocompleteFlags() complete.Flags {
	flags := complete.Flags{}
	v.flagSet().VisitAll(func(f *flag.Flag) {
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			flags["-"+f.Name] = complete.PredictNothing
			return
		}
		flags["-"+f.Name] = v.predictor(flagValues(f))
	})
	return flags
}

// completing tells whether a shell asks for what could stand on its line.
func completing() bool { return os.Getenv(completionLine) != "" }

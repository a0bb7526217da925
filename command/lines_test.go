package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// silent is a Meta that reads and writes nothing.
func silent(ctx context.Context) *Meta {
	return newMeta(ctx, IO{Stdout: io.Discard, Stderr: io.Discard, LookupEnv: func(string) (string, bool) { return "", false }})
}

// checkLine takes a line of shell and, if it runs aimlock, holds it to the
// commands, flags and arguments that exist.
func checkLine(ctx context.Context, line string) (found bool, err error) {
	words, err := shellWords(line)
	if err != nil {
		return false, err
	}
	for len(words) > 0 && words[0] != "aimlock" && words[0] != "bin/aimlock" {
		words = words[1:]
	}
	if len(words) == 0 {
		return false, nil
	}
	words = words[1:]
	for n := min(2, len(words)); n > 0; n-- {
		name := strings.Join(words[:n], " ")
		construct, ok := commands()[name]
		if !ok {
			continue
		}
		c := construct(silent(ctx))
		c.name = name
		in, err := parse(c.flagSet(), words[n:])
		if err != nil {
			return true, err
		}
		if !c.CommandLine {
			in.Args = append(in.Args, in.Command...)
		}
		if n := len(in.Args); n < c.MinArgs || c.MaxArgs >= 0 && n > c.MaxArgs {
			return true, fmt.Errorf("%d arguments, want %d to %d", n, c.MinArgs, c.MaxArgs)
		}
		return true, nil
	}
	return true, fmt.Errorf("there is no command %q", strings.Join(words, " "))
}

// shellWords splits a line as far as our examples need it: quotes, and the end
// of the command at a comment, a pipe, a redirection or the next command.
func shellWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quote := false, rune(0)
	flush := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			flush()
		case r == '|' || r == '>' || r == '<' || r == ';' || r == '&' || r == '#' && !inWord:
			flush()
			return words, nil
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	flush()
	return words, nil
}

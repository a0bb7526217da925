package command

import (
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"
)

func TestFolded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		width       int
		lines, want string
	}{
		"no terminal":   {0, "a b c d e f g h i j k l m n o p q r s t u v w x y z", "a b c d e f g h i j k l m n o p q r s t u v w x y z"},
		"narrow enough": {40, "r-1: succeeded\n  nodes     5 in all, 4 applied\n", "r-1: succeeded\n  nodes     5 in all, 4 applied\n"},
		"below a label": {40, "r-1: succeeded\n  nodes     5 in all, 4 applied, 1 unreachable\n",
			"r-1: succeeded\n  nodes     5 in all, 4 applied, 1\n            unreachable\n"},
		"a label that takes all its room": {40, "    suspended all automatic breaking, by root@vm\n",
			"    suspended all automatic breaking, by\n              root@vm\n"},
		"two columns before it": {60, "failed   agents        a rollout would reach no node, or let consul-template run\n",
			"failed   agents        a rollout would reach no node, or let\n                       consul-template run\n"},
		"a sentence":                  {30, "Error: the lock is held by somebody else\nand so on", "Error: the lock is held by\n  somebody else\nand so on"},
		"the first line of a refusal": {30, "ERROR: a-very-long-name-of-a-lock.conf: HOT\n", "ERROR: a-very-long-name-of-a-lock.conf: HOT\n"},
		"a command": {40, "  next      it is free at once; or now: `aimlock lock break web` does it\n",
			"  next      it is free at once; or now:\n            `aimlock lock break web`\n            does it\n"},
		"a command that is too wide": {40, "Hint: say `aimlock lock break -policy policy.hcl nightly-report` at once",
			"Hint: say\n  `aimlock lock break -policy policy.hcl nightly-report`\n  at once"},
		"far in":  {30, "               and some words more", "  and some words more"},
		"no room": {20, "  some words and a few more", "  some words and a few more"},
		"a gap in the second half is none": {40, "  next      it is free when its holder does  so and not before\n",
			"  next      it is free when its holder\n            does so and not before\n"},
		"an apostrophe in backquotes that stay open": {30, "what `somebody wrote into a record of theirs", "what\n  `somebody wrote into a record of theirs"},
	} {
		if got := folded(c.lines, c.width); got != c.want {
			t.Errorf("%s:\n%q, want\n%q", name, got, c.want)
		}
	}
}

// Words are neither lost nor broken, whatever stands in a line, and no line is wider than
// the terminal but where one word is.
func TestFoldedKeepsAllWords(t *testing.T) {
	t.Parallel()
	line := rapid.StringMatching("[ a-z`é世.:-]{0,120}")
	rapid.Check(t, func(rt *rapid.T) {
		in := strings.Join(rapid.SliceOfN(line, 1, 4).Draw(rt, "lines"), "\n")
		width := rapid.IntRange(1, 80).Draw(rt, "width")
		got := folded(in, width)
		if a, b := strings.Fields(in), strings.Fields(got); strings.Join(a, " ") != strings.Join(b, " ") {
			rt.Fatalf("%q became %q", in, got)
		}
		if strings.HasSuffix(in, "\n") != strings.HasSuffix(got, "\n") {
			rt.Fatalf("the end of %q is another one in %q", in, got)
		}
		for l := range strings.Lines(got) {
			l = strings.TrimSuffix(l, "\n")
			if head, margin := labelOf([]rune(l), width); ansi.StringWidth(l) > width && width-margin >= leastFolded && len(unbroken(strings.TrimPrefix(l, head))) > 1 {
				rt.Fatalf("%q is wider than %d", l, width)
			}
		}
	})
}

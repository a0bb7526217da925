package command

import (
	"fmt"
	"strings"

	"github.com/pmezard/go-difflib/difflib"

	"github.com/aim-control/aimlock/internal/text"
)

// noNewline is how diff says that the file ends in the middle of a line.
const noNewline = "\\ No newline at end of file\n"

// maxDiffLine bounds the bytes of one line of a content that are shown.
const maxDiffLine = 2000

// unifiedDiff is what `diff -u` would say. It holds what the contents hold: whoever
// shows it makes it printable.
func unifiedDiff(from, to, a, b string) (string, error) {
	d, err := difflib.GetUnifiedDiffString(difflib.UnifiedDiff{
		A: contentLines(a), B: contentLines(b), FromFile: from, ToFile: to, Context: 3,
	})
	if err != nil {
		return "", fmt.Errorf("compare %s with %s: %w", from, to, err)
	}
	return d, nil
}

// contentLines are the lines of s with their ends. difflib's own SplitLines makes
// one more of every last end, so that a file which loses it would seem to lose
// an empty line.
func contentLines(s string) []string {
	var lines []string
	for line := range strings.Lines(s) {
		if !strings.HasSuffix(line, "\n") {
			line += "\n" + noNewline
		}
		lines = append(lines, line)
	}
	return lines
}

// boundDiff is at most n lines of d, none longer than maxDiffLine, and says what
// is left out.
func boundDiff(d string, n int) string {
	var b strings.Builder
	left := 0
	for line := range strings.Lines(d) {
		if n--; n < 0 {
			left++
			continue
		}
		b.WriteString(text.Clip(strings.TrimSuffix(line, "\n"), maxDiffLine) + "\n")
	}
	if left > 0 {
		b.WriteString("(" + text.Count(left, "more line") + ")\n")
	}
	return b.String()
}

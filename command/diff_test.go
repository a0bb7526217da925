package command

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
)

func TestContentDiff(t *testing.T) {
	t.Parallel()
	c := orchestrator.Config{Destination: "/etc/a", Revision: "r2"}
	const now, then = "--- /etc/a (now)\n", "+++ /etc/a (revision r2)\n"
	const unknown = "--- /etc/a (no content of before is known)\n"
	tests := map[string]struct {
		now  []byte
		want string
		diff string
	}{
		"the same":                   {[]byte("a\n"), "a\n", ""},
		"a line":                     {[]byte("a\n"), "b\n", now + then + "@@ -1 +1 @@\n-a\n+b\n"},
		"a line more":                {[]byte("a\n"), "a\nb\n", now + then + "@@ -1 +1,2 @@\n a\n+b\n"},
		"the last end is lost":       {[]byte("a\n"), "a", now + then + "@@ -1 +1 @@\n-a\n+a\n\\ No newline at end of file\n"},
		"an empty line is lost":      {[]byte("a\n\n"), "a\n", now + then + "@@ -1,2 +1 @@\n a\n-\n"},
		"neither ends in a line end": {[]byte("x\na"), "y\na", now + then + "@@ -1,2 +1,2 @@\n-x\n+y\n a\n\\ No newline at end of file\n"},
		"emptied":                    {[]byte("a\n"), "", now + then + "@@ -1 +0,0 @@\n-a\n"},
		"was empty":                  {[]byte{}, "a\n", now + then + "@@ -0,0 +1 @@\n+a\n"},
		"nothing of before is known": {nil, "a\nb\n", unknown + then + "@@ -0,0 +1,2 @@\n+a\n+b\n"},
		"nothing known, and empty":   {nil, "", "(new: no content of before is known; an empty file)"},
		"nothing known, and no text": {nil, "\xff\x00", "(new: no content of before is known; not text, 2 bytes)"},
		"no text":                    {[]byte("a\n"), "\xff\x00", "(not text: 2 bytes become 2)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := contentDiff(c, tt.now, []byte(tt.want)); got != tt.diff {
				t.Errorf("got\n%s\nwant\n%s", got, tt.diff)
			}
		})
	}
}

// A content of many lines, or of a long one, does not bury the plan.
func TestContentDiffIsBounded(t *testing.T) {
	t.Parallel()
	c := orchestrator.Config{Destination: "/etc/a", Revision: "r2"}
	many := contentDiff(c, nil, []byte(strings.Repeat("line\n", 5000)))
	if n := strings.Count(many, "\n"); n != maxDiff+1 || !strings.HasSuffix(many, "(4803 more lines)\n") {
		t.Errorf("%d lines, the last of them %q", n, many[len(many)-40:])
	}
	long := contentDiff(c, []byte("a\n"), []byte(strings.Repeat("ä", 1<<20)))
	if len(long) > 3*maxDiffLine || !strings.Contains(long, "…\n\\ No newline") {
		t.Errorf("%d bytes: %.100q", len(long), long)
	}
}

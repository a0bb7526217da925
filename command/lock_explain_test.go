package command

import (
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// On a terminal the timeline is no wider than that, and what is folded stands below
// its line; elsewhere an event is a line.
func TestTimelineIsFolded(t *testing.T) {
	t.Parallel()
	line := []locksmith.Event{{
		At: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), What: "acquired", By: "root@n1", Detail: "lock exec " + strings.Repeat("word ", 60), Clock: "the holder's, n1",
	}}
	words := func(s string) string { return strings.Join(strings.Fields(s), "") }
	whole := timelineText(line)
	if n := strings.Count(whole, "\n"); n != 3 {
		t.Errorf("%d lines:\n%s", n, whole)
	}
	for _, width := range []int{120, 80, 60, 30} {
		got := folded(whole, width)
		if words(got) != words(whole) {
			t.Errorf("width %d: it is not the same:\n%s", width, got)
		}
		for i, l := range strings.Split(strings.TrimRight(got, "\n"), "\n") {
			if i < 2 {
				continue // the heading
			}
			if ansi.StringWidth(l) > width {
				t.Errorf("width %d: a line of %d:\n%s", width, ansi.StringWidth(l), l)
			}
			if !strings.HasPrefix(l, "  ") {
				t.Errorf("width %d: %q is not below its line", width, l)
			}
		}
	}
}

// What happened at a time that is not on record is dated by when it was seen, and is
// never told as if it happened then.
func TestTimelineDatesWhatIsNotOnRecord(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 13, 0, 0, 0, time.UTC)
	got := timelineText([]locksmith.Event{{At: at, AtLatest: true, What: "not held any more", Clock: "this host"}})
	if want := "  by 2026-03-01 13:00:00 UTC  not held any more  [this host]\n"; !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
}

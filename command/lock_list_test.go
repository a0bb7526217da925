package command

import (
	"strings"
	"testing"
)

// Where there may be locks that the token may not read, it is not said that there are
// none.
func TestNoLocks(t *testing.T) {
	t.Parallel()
	for want, hidden := range map[string]bool{"No locks.\n": false, "No locks that this token may read.\n": true} {
		var said strings.Builder
		if err := (&Meta{stderr: &diversion{to: &said}}).lockTable(nil, nil, hidden); err != nil || said.String() != want {
			t.Errorf("hidden %v: %q (%v), not %q", hidden, said.String(), err, want)
		}
	}
}

// Where a lock is cooling, it is not said that there are none.
func TestCoolingLocks(t *testing.T) {
	t.Parallel()
	for want, cooling := range map[string][]string{
		"No locks held; 1 cooling: job\n":                       {"job"},
		"No locks held; 7 cooling: a, b, c?, d, e and 2 more\n": {"a", "b", "c\x1b", "d", "e", "f", "g"},
	} {
		var said strings.Builder
		if err := (&Meta{stderr: &diversion{to: &said}}).lockTable(nil, cooling, false); err != nil || said.String() != want {
			t.Errorf("%q (%v), not %q", said.String(), err, want)
		}
	}
}

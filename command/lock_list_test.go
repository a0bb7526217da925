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
		if err := (&Meta{stderr: &diversion{to: &said}}).lockTable(nil, hidden); err != nil || said.String() != want {
			t.Errorf("hidden %v: %q (%v), not %q", hidden, said.String(), err, want)
		}
	}
}

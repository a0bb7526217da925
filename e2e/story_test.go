package e2e

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/demo"
)

// The demo's whole story, told on a real Consul: it fails by itself if a file,
// an exit code or an order is not as it should be.
func TestStory(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	var out bytes.Buffer
	err := demo.Run(t.Context(), demo.Config{Exe: harness.Aimlock.Path(t), Dir: t.TempDir(), Out: &out, Consul: c.Addr})
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, line := range []string{
		"B | ERROR: " + demo.Lock + ": HOT",
		"C | ERROR: " + demo.Lock + ": HOT",
		"B | ERROR: " + demo.Lock + ": LOST",
		", which this node has accepted: refused",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("nobody was told %q:\n%s", line, out.String())
		}
	}
}

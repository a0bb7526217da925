package command

import (
	"errors"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/supervise"
)

// A command ended by its lease before the hold noticed is a loss all the same.
func TestLeaseEndIsALoss(t *testing.T) {
	err := lockError(leaseError("deploy", 7, nil, supervise.ErrLease))
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != ExitLost {
		t.Fatalf("got %v, want exit %d", err, ExitLost)
	}
	if !strings.HasPrefix(exit.Text, "ERROR: deploy: LOST\n") {
		t.Errorf("first line of %q", exit.Text)
	}
}

package evidence

import (
	"time"

	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/policies"
)

// FactsOfReport are the facts that a report gives.
func FactsOfReport(r *filelock.Report) map[string]policies.Fact {
	f := newSet("file", time.Now(), nil)
	f.fileLocks(r)
	return f.facts
}

// Package footprint keeps small what a daemon that mostly waits has mapped. It
// imports the standard library, hclog and x/sys. Start with [Keep].
package footprint

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

// settled is when a daemon that has begun is at rest; again is how often what it has
// used since is unmapped. It costs some 200 page faults each time.
const (
	settled = 20 * time.Second
	again   = 5 * time.Minute
)

// Keep unmaps the pages of this program's file that only the start used, and later
// those that only an event did, until ctx ends. Such pages are clean, shared by all
// processes of the program, and stay in the page cache: what is used again is mapped
// again, without a read of the disk. So it lowers what is counted as resident, and by
// little what the machine has in use.
//
// The kernel maps 64 KiB around each page that is touched (fault_around_bytes), so
// that a start, which runs through the initialisation of some 500 packages, maps most
// of a large program.
func Keep(ctx context.Context, log hclog.Logger) {
	t := time.NewTimer(settled)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := trim(); err != nil {
			log.Debug("pages of the program could not be given back", "error", err)
			return
		}
		t.Reset(again)
	}
}

package runner

import (
	"context"
	"slices"

	"github.com/aim-control/aimlock/orchestrator"
)

// Filter chooses rollouts for List.
type Filter struct {
	// Name, if not empty, is the rollouts' name; States, if any, are theirs.
	Name   string
	States []orchestrator.Status
	// Ended is how many of those that have ended are listed at most, the last
	// ones; negative: all.
	Ended int
}

// Listing is what List found.
type Listing struct {
	// Waiting have not begun, in the order of their places.
	Waiting []*Waiting
	// Headers are all others, the newest first.
	Headers []*orchestrator.Header
	// More is how many that have ended were left out.
	More int
}

// List reads which rollouts there are. It changes nothing.
func (r *Runner) List(ctx context.Context, f Filter) (*Listing, error) {
	heads, err := r.Headers(ctx)
	if err != nil {
		return nil, err
	}
	waiting, err := r.Queue(ctx, heads)
	if err != nil {
		return nil, err
	}
	wanted := func(name string, st orchestrator.Status) bool {
		return (f.Name == "" || f.Name == name) && (len(f.States) == 0 || slices.Contains(f.States, st))
	}
	out := &Listing{}
	for _, w := range waiting {
		if wanted(w.Name, orchestrator.Waiting) {
			out.Waiting = append(out.Waiting, w)
		}
	}
	ended := 0
	for _, h := range heads {
		if !wanted(h.Name, h.State) {
			continue
		}
		if h.FinishedAt != nil {
			if ended++; f.Ended >= 0 && ended > f.Ended {
				out.More++
				continue
			}
		}
		out.Headers = append(out.Headers, h)
	}
	return out, nil
}

package guard

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// What the leader remembers is written down for commands that have no memory.
const (
	// rememberEvery is how often is looked at what is due. What is written makes
	// every sweep read the whole folder again, so that it is written in bursts.
	rememberEvery = 10 * time.Second
	// rememberLook is of how many locks, and rememberMost is how many of them
	// are written at most.
	rememberLook = 20_000
	rememberMost = 200
)

// scribe writes what the loop hands it, one handful at a time.
type scribe struct {
	*evidence.Scribe
	notes chan []evidence.Note
	// left are the keys of the locks that are still to be looked at in this
	// round. It belongs to the loop.
	left []string
}

func newScribe(r *evidence.Reader) (*scribe, error) {
	s, err := evidence.NewScribe(r.Consul, r.Keys, "locksmith@"+r.Self.Host)
	if err != nil {
		return nil, err
	}
	return &scribe{Scribe: s, notes: make(chan []evidence.Note)}, nil
}

func (s *scribe) run(ctx context.Context, trouble func(string, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case notes := <-s.notes:
			if err := s.WriteAll(ctx, notes); err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
				trouble("remember", err)
				pause(ctx, 10*time.Second)
			}
		}
	}
}

// remember hands on what is due, if the scribe has time and this locksmith
// leads: several would write the same.
func (g *Guard) remember() {
	if g.scribe == nil || g.term == nil || g.cfg.DryRun {
		return
	}
	s, now := g.scribe, time.Now()
	if len(s.left) == 0 {
		s.left = slices.Sorted(maps.Keys(g.table.locks))
	}
	var notes []evidence.Note
	for range min(rememberLook, len(s.left)) {
		l := g.table.locks[s.left[0]]
		s.left = s.left[1:]
		if l == nil || l.snap == nil || l.ended != "" {
			continue
		}
		if m := l.obs.Memory(); s.Due(l.snap, m, now) {
			notes = append(notes, evidence.Note{Snapshot: l.snap, Memory: m})
		}
		if len(notes) == rememberMost {
			break
		}
	}
	if len(notes) == 0 {
		return
	}
	select {
	case s.notes <- notes:
	default: // it is busy; they stay due
	}
}

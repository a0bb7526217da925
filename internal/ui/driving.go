package ui

import (
	"time"

	ways "github.com/aim-control/aimlock/internal/board"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// settles is for how long a rollout must be seen without a driver before that is told:
// its header and its locks are followed by two queries, and one may be ahead.
const settles = 2 * time.Second

// driving is who brings an unfinished rollout forward, and what does where nobody is.
// It is told from the locks and the headers that the board follows anyway.
type driving struct {
	// Driven: an orchestrator of this rollout holds all of its locks, and none is HOT;
	// null: that is not known.
	Driven *bool `json:"driven"`
	// Words say that nobody drives it, and what goes on with it.
	Words string `json:"words,omitempty"`
	// Ways are what ends its pause.
	Ways []wayView `json:"ways,omitempty"`
	// Locks are those of its configs.
	Locks []lockRef `json:"locks"`
}

type wayView struct {
	What    string `json:"what"`
	Command string `json:"command"`
}

type lockRef struct {
	Name string `json:"name"`
	// State is empty where the lock is not among those that are followed.
	State string `json:"state"`
}

// openRollout is what is told of an unfinished rollout beside one of its locks.
type openRollout struct {
	ID    string              `json:"id"`
	State orchestrator.Status `json:"state"`
	*driving
}

// startAgain is the command that starts a rollout, as it is typed without flags.
func startAgain() string { return locksmith.Flags{}.Judging("rollout start", "SPEC") }

// drivingOf is nil for a rollout that has ended or has not begun. The caller has the
// mutex.
func (b *board) drivingOf(h *orchestrator.Header) *driving {
	if h == nil || h.FinishedAt != nil {
		return nil // still keeps no more than the rollouts of one board
	}
	out := &driving{Locks: []lockRef{}}
	known, driven, hot, gone := b.ready && len(h.Configs) > 0, true, false, false
	for _, c := range h.Configs {
		key, ref := keys.Prefix(b.cfg.Locks.Prefix()).Lock(c.Name), lockRef{Name: c.Name}
		switch row := b.locks[key]; {
		case row != nil:
			ref.State = row.st.State
			hot = hot || ref.State == locksmith.Hot
			gone = gone || ref.State == locksmith.Hot && row.rollout == h.ID
			driven = driven && row.st.Session != nil && row.rollout == h.ID && ref.State != locksmith.Hot
		case b.free[key] != nil:
			ref.State, driven = locksmith.Free, false
		default:
			known = false // gone, or one that is not followed here
		}
		out.Locks = append(out.Locks, ref)
	}
	if h.State == orchestrator.Paused {
		for _, w := range ways.Ways(h, nil) {
			out.Ways = append(out.Ways, wayView{w.What, w.Command})
		}
	}
	if h.State == orchestrator.Waiting {
		return out // a start that waits for the window lets go of the locks
	}
	if !known || driven {
		delete(b.still, h.ID)
		if known {
			out.Driven = &driven
		}
		return out
	}
	since, noted := b.still[h.ID]
	if !noted {
		since = time.Now()
		b.still[h.ID] = since
		time.AfterFunc(settles, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.tell()
		})
	}
	if time.Since(since) < settles {
		return out
	}
	out.Driven = &driven
	switch {
	case gone:
		out.Words = runner.Gone(h, startAgain())
	case hot:
		// It is somebody else's, and its lock says what becomes of it.
	case h.State == orchestrator.Paused:
		out.Words = runner.UndrivenPaused(startAgain())
	case h.AtWork():
		out.Words = runner.Undriven(startAgain())
	}
	return out
}

// driving finds who drives a rollout; nil: nobody needs to, or it is not among those
// shown. ok is false before the first reading.
func (b *board) driving(id string) (d *driving, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rollouts {
		if r.ID == id {
			return b.drivingOf(r.header), true
		}
	}
	return nil, b.listed
}

// rolloutsOf are the unfinished rollouts that take a lock; ok is false before the first
// reading.
func (b *board) rolloutsOf(lock string) (out []openRollout, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out = []openRollout{}
	for _, r := range b.rollouts {
		if r.header == nil || r.header.FinishedAt != nil {
			continue
		}
		for _, c := range r.header.Configs {
			if c.Name == lock {
				out = append(out, openRollout{r.ID, r.header.State, b.drivingOf(r.header)})
				break
			}
		}
	}
	return out, b.listed
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/plugin"
)

// What stands at a target is asked for: nobody tells of changes there. A target that
// cannot be asked says nothing about drift, neither that there is some nor that there
// is none.

const (
	// targetPoll is how often each config at a target is asked for, give or take a
	// fifth, so that those of one machine are not all asked for at once.
	targetPoll = 5 * time.Minute
	// targetFirst bounds the wait for the first look after the agent's start.
	targetFirst = 5 * time.Second
)

// asked tells whether what stands at the target can be compared: a target of another
// name or block than that of the last good order is not the one that has it.
func (s *state) asked() bool {
	return s.Managed != nil && s.Managed.Via != "" && s.Phase == phaseDone && s.Report != nil &&
		s.Desired != nil && s.Desired.Target != nil && s.Desired.Target.Name == s.Managed.Via
}

// lookThere asks the target and writes down what it found. Orders do not wait for
// its answer: after one that came meanwhile, it counts for nothing.
func (f *fence) lookThere(ctx context.Context, config string) (drifted, error) {
	st, err := loadState(configDir(f.stateDir, config), config)
	if err != nil || !st.asked() || f.targets == nil {
		return drifted{}, err
	}
	there, err := f.readThere(ctx, st)
	if err != nil {
		return drifted{}, err
	}
	quick := *f
	quick.lockWait = minLockWait
	h, err := quick.hold(ctx, config)
	if err != nil {
		return drifted{}, err
	}
	defer h.close()
	w := h.by[config]
	if w.st.Mark != st.Mark {
		return drifted{}, nil
	}
	w.there = there
	out, err := w.noteDrift("")
	out.there = there
	return out, err
}

// readThere asks the target what stands there, its SHA-256 included.
func (f *fence) readThere(ctx context.Context, st *state) (*plugin.State, error) {
	d := st.Desired
	q := &plugin.ReadRequest{Place: f.placeOf(st.Config, d, st.Managed.Destination)}
	s, err := f.targets.Read(ctx, d.Target.Name, d.Target.Config, q)
	if err == nil && s.Exists && s.SHA256 == "" {
		q.Content = true
		if s, err = f.targets.Read(ctx, d.Target.Name, d.Target.Config, q); err == nil && s.Exists {
			s.SHA256 = sum256(s.Content)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("what stands at target %s: %w", d.Target.Name, err)
	}
	return s, nil
}

// driftThere is driftOf for what stands at a target, which was asked before.
func (w *work) driftThere() (what string, stands file) {
	m, s := w.st.Managed, w.there
	switch {
	case s == nil:
		return "", file{}
	case !s.Exists:
		return "removed at target " + m.Via, file{}
	case s.SHA256 == m.SHA256:
		return "", *m
	}
	stands = file{Destination: m.Destination, Exists: true, SHA256: s.SHA256, Size: s.Size}
	if o := orchestrator.Order(s.Highest); o.Compare(w.st.Mark) > 0 {
		return fmt.Sprintf("a newer order, %s, was carried out at target %s for somebody else", o, m.Via), stands
	}
	return "its content was changed at target " + m.Via, stands
}

// lookThere has a target asked where that is due.
func (d *driftWatch) lookThere(ctx context.Context, config string, f *watchedFile, st *state) {
	if d.a.cfg.Targets == nil || !st.asked() {
		return
	}
	now, mark := time.Now(), st.Mark.String()
	if mark != f.mark {
		// Where there was another one before, the target was just written to.
		f.next = now.Add(pollAfter(ctx))
		if f.mark == "" {
			f.next = now.Add(fate.N(ctx, "first look at a target", targetFirst))
		}
		f.mark, f.tries = mark, 0
	}
	if f.due = f.next; now.Before(f.next) {
		return
	}
	f.busy, f.next = true, now.Add(pollAfter(ctx))
	d.wg.Go(func() {
		found, err := d.a.fence.lookThere(ctx, config)
		select {
		case d.found <- lookedThere{config: config, drifted: found, err: err}:
		case <-ctx.Done():
		}
	})
}

func pollAfter(ctx context.Context) time.Duration {
	return targetPoll*4/5 + fate.N(ctx, "look at a target", targetPoll*2/5)
}

// lookedThere is what came of asking a target.
type lookedThere struct {
	drifted
	config string
	err    error
}

func (d *driftWatch) answered(ctx context.Context, l lookedThere) {
	f := d.files[l.config]
	f.busy, f.due = false, f.next
	if l.rep != nil {
		d.a.reports.set(l.config, l.rep)
	}
	err := l.err
	if err == nil && l.is && l.may {
		err = d.mend(ctx, l.config, f, l.there)
	}
	switch _, busy := errors.AsType[*BusyError](err); {
	case err == nil || busy || ctx.Err() != nil:
	case errors.Is(err, plugin.ErrUnsupported):
		d.a.cfg.Log.Debug("changes at a target are not seen", "config", l.config, "error", err)
	default:
		d.a.trouble.other(l.config, err)
	}
}

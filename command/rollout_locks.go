package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// lockNow judges a lock once and says what happens next, without the evidence.
func lockNow(ctx context.Context, locks *locksmith.Client, name string) (*locksmith.Status, error) {
	verdict, err := locks.NewObserver(name, nil).Observe(ctx)
	if err != nil {
		return nil, err
	}
	st, err := outlook(ctx, locks, verdict)
	if err != nil {
		return nil, err
	}
	st.Evidence = nil
	return st, nil
}

// rolloutLock is the lock of one config of a rollout.
type rolloutLock struct {
	*locksmith.Status
	// rollout is the id that its holder names.
	rollout string
}

// rolloutLocks judges the locks of a rollout that has not ended. What cannot be
// read of them is no reason to show nothing of the rollout.
func (m *Meta) rolloutLocks(ctx context.Context, h *orchestrator.Header) (list []rolloutLock) {
	if h.FinishedAt != nil {
		return nil
	}
	locks, err := m.Locksmith()
	if err != nil {
		m.Notef("Warning: the locks cannot be judged: %s\n", text.Printable(err.Error()))
		return nil
	}
	for _, c := range h.Configs {
		verdict, err := locks.NewObserver(c.Name, nil).Observe(ctx)
		if err != nil {
			m.Notef("Warning: lock %s cannot be read: %s\n", c.Name, text.Printable(err.Error()))
			continue
		}
		l := rolloutLock{}
		if l.Status, err = outlook(ctx, locks, verdict); err != nil {
			m.Notef("Warning: whether lock %s may be broken cannot be read: %s\n", c.Name, text.Printable(err.Error()))
			l.Status = locks.Status(verdict)
			l.Next = locks.Next(verdict, nil)
		}
		l.Evidence = nil
		if rec := verdict.Snapshot.Holder; rec != nil && l.Session != nil {
			l.rollout = rec.RolloutID
		}
		list = append(list, l)
	}
	return list
}

// locksText says who has the locks of a rollout. Those that one hold has are
// said once. start is the command that starts it again.
func locksText(h *orchestrator.Header, list []rolloutLock, start string) string {
	var b strings.Builder
	for i := 0; i < len(list); {
		l := list[i]
		names := []string{l.Name}
		for i++; i < len(list) && sameHold(l.Status, list[i].Status); i++ {
			names = append(names, list[i].Name)
		}
		words := l.State
		switch {
		case l.Session != nil && l.rollout == h.ID:
			if l.State == locksmith.Hot {
				words += ": " + runner.Gone(h, start)
			} else {
				words += " by this rollout's orchestrator"
			}
		case l.Session != nil && l.rollout != "":
			words += " by rollout " + text.Printable(l.rollout) + ", and not by this one"
		case l.Session != nil:
			words += " by something else than this rollout"
		case l.State == locksmith.Free && h.State == orchestrator.Waiting:
			// A start that waits for the window has let go of the locks.
			words += ": held again when the window opens, by the start that waits for it or by the next tick"
		case l.State == locksmith.Free && h.State == orchestrator.Paused:
			words += ": " + runner.UndrivenPaused(start)
		case l.State == locksmith.Free:
			words += ": " + runner.Undriven(start)
		}
		shown := *l.Status
		if shown.State == locksmith.Free {
			shown.Next = "" // said above
		}
		fmt.Fprintf(&b, "  %-9s %s: %s\n%s", "lock", strings.Join(names, ", "), words, statusLines(&shown, "", "    "))
	}
	return b.String()
}

// undriven reports whether nobody brings a rollout forward now though it is at work:
// nobody has one of its locks, or who has it may be dead. l is that lock.
func undriven(h *orchestrator.Header, list []rolloutLock) (l rolloutLock, ok bool) {
	if !h.AtWork() {
		return rolloutLock{}, false
	}
	i := slices.IndexFunc(list, func(l rolloutLock) bool { return l.Session == nil || l.State == locksmith.Hot })
	if i < 0 {
		return rolloutLock{}, false
	}
	return list[i], true
}

// startAgain is the command that goes on with a rollout whose spec is not known here.
func (m *Meta) startAgain() string { return m.given.Judging("rollout start", "SPEC") }

func sameHold(a, b *locksmith.Status) bool {
	if a.State != b.State || (a.Session == nil) != (b.Session == nil) {
		return false
	}
	return a.Session == nil || *a.Session == *b.Session && a.Rule == b.Rule
}

// withLocks adds the locks to a view, and what they tell of who drives the rollout.
func (v rolloutView) withLocks(list []rolloutLock) rolloutView {
	for _, l := range list {
		v.Locks = append(v.Locks, l.Status)
	}
	v.Driven = v.driven(list)
	return v
}

// driven tells whether an orchestrator of the rollout holds all of its locks that is
// not judged gone; nil: its locks were not all read, or there is nothing to drive.
func (v *rolloutView) driven(list []rolloutLock) *bool {
	if v.State.Terminal() || v.State == orchestrator.Waiting || len(list) == 0 || len(list) < len(v.Configs) {
		return nil
	}
	ok := !slices.ContainsFunc(list, func(l rolloutLock) bool {
		return l.Session == nil || l.rollout != v.ID || l.State == locksmith.Hot
	})
	return &ok
}

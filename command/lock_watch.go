package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newLockWatch(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Look on as locks change",
		Usage:    "[options] [NAME…]",
		Description: `Shows locks and their verdicts as they change, by blocking queries: on a terminal
a full-screen table, one line for each change elsewhere, and with -json one object
a line. Without a NAME it shows every held lock of this Consul, those of other
tools included.

In the table, arrows choose a lock, e or Enter explains it, p holds the table
still and lets it go on, and q leaves.

It changes nothing. Stopped by a signal it exits 0.`,
		Examples: []example{
			{"All locks", "aimlock lock watch"},
			{"One of them, for a program", "aimlock lock watch -json aim_lock_config.conf"},
		},
		Groups:   groupConsul | groupJSON | groupPolicy,
		MaxArgs:  -1,
		Complete: completeLocks,
		Run: func(ctx context.Context, in *input) error {
			names := make([]string, len(in.Args))
			for i, a := range in.Args {
				name, err := lockName(a)
				if err != nil {
					return err
				}
				names[i] = name
			}
			c, err := m.Locksmith()
			if err != nil {
				return err
			}
			return m.watchLocks(ctx, c, names)
		},
	}
}

func (m *Meta) watchLocks(ctx context.Context, c *locksmith.Client, names []string) error {
	b := &lockBoard{m: m, c: c, all: len(names) == 0, rows: map[string]*lockRow{}}
	var err error
	if m.live() {
		b.live = true
		view := m.newLockScreen(ctx, b)
		err = m.onScreen(ctx, view, &view.screen, func(ctx context.Context, send func(tea.Msg)) error {
			return b.follow(ctx, names, func(changed []*locksmith.Verdict) error {
				send(lockNews{changed})
				return nil
			}, func(note string) { send(screenNote{text.Printable(note)}) })
		})
		if view.left != "" {
			return nil
		}
	} else {
		err = b.follow(ctx, names,
			func(changed []*locksmith.Verdict) error { return b.tell(changed, time.Now()) },
			func(note string) { m.Notef("%s\n", text.Printable(note)) })
	}
	if _, stopped := errors.AsType[signals.Error](err); stopped || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// follow tells of changes until ctx ends, which is no error, or tell fails.
func (b *lockBoard) follow(ctx context.Context, names []string, tell func([]*locksmith.Verdict) error, note func(string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ticks := 0
	return b.c.Follow(ctx, locksmith.Following{
		Names: names,
		Tell: func(changed []*locksmith.Verdict) {
			if ticks++; ticks <= 2 && len(changed) == 0 {
				// The first reading is under way.
				return
			}
			if ticks < notYet {
				ticks = notYet
				missing, err := b.missing(ctx, names, len(changed) == 0, note)
				if err != nil {
					cancel(err)
					return
				}
				changed = append(changed, missing...)
			}
			if err := tell(changed); err != nil {
				cancel(err)
			}
		},
		Failed: func(part string, err error) {
			if err == nil {
				note("reading " + part + " goes on")
				return
			}
			note(err.Error())
		},
	})
}

// notYet is more ticks than the first reading is waited for.
const notYet = 1000

// missing are the verdicts on named locks that a sweep does not know, for they
// were never taken.
func (b *lockBoard) missing(ctx context.Context, names []string, none bool, note func(string)) ([]*locksmith.Verdict, error) {
	var out []*locksmith.Verdict
	for _, name := range names {
		v, err := b.c.NewObserver(name, nil).Observe(ctx)
		if err != nil {
			return nil, err
		}
		if v.Occupied() {
			continue
		}
		out = append(out, v)
		if hint := meantInstead(ctx, b.c, v); hint != "" {
			note("Hint: " + hint)
		}
	}
	if b.all && !b.live && !b.m.JSON && none {
		b.m.Notef("Waiting for changes.\n")
	}
	return out, nil
}

// lockBoard is what lock watch shows.
type lockBoard struct {
	m *Meta
	c *locksmith.Client
	// all: what nobody holds is not shown.
	all  bool
	rows map[string]*lockRow // by key
	// live: a view is drawn, and no lines are written.
	live bool
}

type lockRow struct {
	st *locksmith.Status
	at time.Time
	// told is what was last shown of it, but for what time alone changes.
	told string
}

// sign is what makes a row another one. Where progress is to be seen, its
// records count as well.
func (b *lockBoard) sign(st *locksmith.Status) string {
	s := fmt.Sprint(st.State, "|", st.Rule, "|", deref(st.Session), "|", st.Token != nil, "|", len(st.Pending))
	if st.Token != nil {
		s += fmt.Sprint(*st.Token)
	}
	if st.Semaphore != nil {
		s += st.Semaphore.SlotsText()
		for _, h := range st.Semaphore.Holders {
			s += h.Session + h.State
		}
	}
	if p := st.Progress; p != nil && b.m.JSON && p.Done != nil && p.Total != nil {
		s += fmt.Sprint("|", *p.Done, "/", *p.Total)
	}
	return s
}

// tell takes in verdicts and shows what is new.
func (b *lockBoard) tell(changed []*locksmith.Verdict, now time.Time) error {
	slices.SortFunc(changed, func(x, y *locksmith.Verdict) int { return cmp.Compare(x.Snapshot.Key, y.Snapshot.Key) })
	for _, v := range changed {
		st := b.c.Status(v)
		st.Next = b.c.Next(v, nil)
		if !b.all {
			st.Next = v.Named(st.Next)
		}
		st.Evidence = nil
		row := b.rows[st.Key]
		if row == nil {
			if b.all && !v.Occupied() {
				// It was free before anybody looked.
				continue
			}
			row = &lockRow{}
			b.rows[st.Key] = row
		}
		row.st, row.at = st, now
		if sign := b.sign(st); sign != row.told {
			row.told = sign
			if err := b.line(st, now); err != nil {
				return err
			}
		}
		if b.all && !v.Occupied() && st.State != locksmith.Cooling {
			delete(b.rows, st.Key)
		}
	}
	return nil
}

// watchLine is a change, as JSON.
type watchLine struct {
	// At is when it was seen, by the clock of this machine.
	At time.Time `json:"at"`
	*locksmith.Status
}

// line writes a change where there is no screen to draw on.
func (b *lockBoard) line(st *locksmith.Status, now time.Time) error {
	switch {
	case b.m.JSON:
		return b.m.printLine(watchLine{now.UTC(), st})
	case b.live:
		return nil
	}
	words := st.Name + ": " + st.State
	switch {
	case st.Semaphore != nil:
		words += ", " + st.Semaphore.SlotsText()
	case st.Session != nil:
		words += " by " + holderText(st)
	}
	if st.Rule != "" {
		words += "; rule " + st.Rule + ": " + st.Reason
	}
	for _, p := range st.Pending {
		words += "; " + p
	}
	_, screen := Terminal(b.m.Stdout)
	_, err := fmt.Fprintf(b.m.Stdout, "%s  %s\n", now.UTC().Format("15:04:05"), asciiLines(text.Printable(words), b.m.UTF8(), screen))
	return err
}

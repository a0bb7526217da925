package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

func newLockWatch(m *Meta) *command {
	return &command{
		Meta:     m,
		Synopsis: "Look on as locks change",
		Usage:    "[options] [NAME…]",
		Description: `Shows locks and their verdicts as they change, by blocking queries: a table that
is redrawn in place on a terminal, one line for each change elsewhere, and with
-json one object a line. Without a NAME it shows every held lock of this Consul,
those of other tools included.

It changes nothing, ends with ^C, and then exits 0.`,
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
	if _, ok := Terminal(m.Stdout); ok && !m.JSON && m.Env("TERM") != "dumb" {
		b.screen = m.Stdout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ticks := 0
	err := c.Follow(ctx, locksmith.Following{
		Names: names,
		Tell: func(changed []*locksmith.Verdict) {
			if ticks++; ticks <= 2 && len(changed) == 0 {
				// The first reading is under way.
				return
			}
			if ticks < notYet {
				ticks = notYet
				missing, err := b.missing(ctx, names)
				if err != nil {
					cancel(err)
					return
				}
				changed = append(changed, missing...)
			}
			if err := b.tell(changed, time.Now()); err != nil {
				cancel(err)
			}
		},
		Failed: func(part string, err error) {
			if err == nil {
				b.note("reading " + part + " goes on")
				return
			}
			b.note(err.Error())
		},
	})
	if _, stopped := errors.AsType[signals.Error](err); stopped || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// notYet is more ticks than the first reading is waited for.
const notYet = 1000

// missing are the verdicts on named locks that a sweep does not know, for they
// were never taken.
func (b *lockBoard) missing(ctx context.Context, names []string) ([]*locksmith.Verdict, error) {
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
			b.note("Hint: " + hint)
		}
	}
	if b.all && b.screen == nil && !b.m.JSON && len(b.rows) == 0 {
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
	// screen is the terminal to draw on; nil: lines are written.
	screen io.Writer
	drawn  int
	notes  []string
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
	if b.screen != nil {
		return b.draw(now)
	}
	return nil
}

// line writes a change where there is no screen to draw on.
func (b *lockBoard) line(st *locksmith.Status, now time.Time) error {
	switch {
	case b.m.JSON:
		return b.m.printLine(struct {
			At time.Time `json:"at"`
			*locksmith.Status
		}{now.UTC(), st})
	case b.screen != nil:
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
	_, err := fmt.Fprintf(b.m.Stdout, "%s  %s\n", now.UTC().Format("15:04:05"), text.Printable(words))
	return err
}

// note tells of what cannot be read, or of what may have been meant.
func (b *lockBoard) note(what string) {
	what = text.Printable(what)
	if b.screen == nil {
		b.m.Notef("%s\n", what)
		return
	}
	b.notes = []string{what}
}

// draw redraws the table in place, by one write, so that nothing flickers. It
// never fills the terminal, so that what stood above it stays.
func (b *lockBoard) draw(now time.Time) error {
	width, height := 80, 24
	if f, ok := b.screen.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			width, height = w, h
		}
	}
	var frame strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&frame, "\x1b[%dA\r", min(b.drawn, height-1))
	}
	lines := b.table(now, width-1, max(3, height-2))
	for _, l := range lines {
		frame.WriteString(l + "\x1b[K\n")
	}
	frame.WriteString("\x1b[J")
	b.drawn = len(lines)
	_, err := io.WriteString(b.screen, frame.String())
	return err
}

// table is the locks as lines no wider than width, the gravest first.
func (b *lockBoard) table(now time.Time, width, height int) []string {
	rows := make([]*lockRow, 0, len(b.rows))
	for _, r := range b.rows {
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(x, y *lockRow) int {
		return cmp.Or(cmp.Compare(locksmith.Gravity(y.st.State), locksmith.Gravity(x.st.State)), cmp.Compare(x.st.Key, y.st.Key))
	})
	name := 4
	for _, r := range rows {
		name = max(name, len([]rune(text.Printable(r.st.Name))))
	}
	name = min(name, max(12, width/3))
	color := b.m.Color(b.screen)
	out := []string{fit(fmt.Sprintf("%-*s %-8s %-9s %s", name, "LOCK", "STATE", "HELD FOR", "WHO AND WHY"), width)}
	room := height - 1 - len(b.notes)
	for i, r := range rows {
		if i == room-1 && len(rows) > room {
			out = append(out, fit(fmt.Sprintf("… and %d more", len(rows)-i), width))
			break
		}
		line := fit(r.text(now, name), width)
		if c := stateColor(r.st.State); color && c != "" {
			line = c + line + "\x1b[0m"
		}
		out = append(out, line)
	}
	if len(rows) == 0 {
		out = append(out, fit("no locks are held", width))
	}
	for _, n := range b.notes {
		out = append(out, fit(n, width))
	}
	return out
}

// text is one row; ages go on between verdicts.
func (r *lockRow) text(now time.Time, name int) string {
	st, since := r.st, now.Sub(r.at).Seconds()
	held := "-"
	if st.Session != nil {
		held = "?"
	}
	if st.HeldFor != nil {
		held = showSeconds(float64(int(*st.HeldFor + since)))
	}
	who := ""
	switch {
	case st.Semaphore != nil:
		who = st.Semaphore.SlotsText()
	case st.Session != nil:
		who = shortHolder(st)
	}
	if p := st.Progress; p != nil && p.Done != nil && p.Total != nil {
		who += fmt.Sprintf("  %d/%d %s", *p.Done, *p.Total, deref(p.Unit))
	}
	if st.Rule != "" {
		who += "  " + st.Rule + ": " + st.Reason
	} else if len(st.Pending) > 0 {
		who += "  " + st.Pending[0]
	}
	return fmt.Sprintf("%-*s %-8s %-9s %s", name, fit(text.Printable(st.Name), name), st.State, held, text.Printable(who))
}

// fit cuts a line to a number of characters.
func fit(s string, n int) string {
	r := []rune(strings.TrimRight(s, " "))
	if len(r) <= n {
		return string(r)
	}
	return string(r[:max(0, n-1)]) + "…"
}

func stateColor(state string) string {
	switch state {
	case locksmith.Hot:
		return "\x1b[31m"
	case locksmith.Warm, locksmith.Unknown:
		return "\x1b[33m"
	}
	return ""
}

package command

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// lockNews are verdicts that are new.
type lockNews struct{ changed []*locksmith.Verdict }

// lockScreen is lock watch on a terminal: a table from which one lock is chosen.
type lockScreen struct {
	screen
	board *lockBoard
	// still are the rows at a moment at which the table was held; nil: it goes on.
	still   []lockRow
	stillAt time.Time
	// chosen is a key; "" until one is chosen, when it is the first row.
	chosen string
	// top is the first row that is shown.
	top     int
	explain func(key string) tea.Cmd
}

func (m *Meta) newLockScreen(ctx context.Context, b *lockBoard) *lockScreen {
	v := &lockScreen{screen: m.newScreen(), board: b}
	v.explain = func(name string) tea.Cmd {
		return asking(ctx, func(ctx context.Context) tea.Msg {
			all, err := m.explainText(ctx, b.c, name, "", false)
			return screenText{title: "lock explain " + name, text: all, err: err}
		})
	}
	return v
}

func (v *lockScreen) Init() tea.Cmd { return everySecond() }

func (v *lockScreen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	if cmd, done := v.handle(msg); done {
		return v, cmd
	}
	switch msg := msg.(type) {
	case lockNews:
		// It fails only where lines are written.
		_ = v.board.tell(msg.changed, time.Now())
	case tea.KeyPressMsg:
		return v, v.key(msg.String())
	}
	return v, nil
}

func (v *lockScreen) key(k string) tea.Cmd {
	switch k {
	case "q", "esc":
		return v.quit(k)
	case "p":
		if v.still != nil {
			v.still = nil
			break
		}
		v.still, v.stillAt = v.sorted(), time.Now()
	case "down", "j":
		v.move(1)
	case "up", "k":
		v.move(-1)
	case "pgdown", "space":
		v.move(max(1, v.Height-4))
	case "pgup":
		v.move(-max(1, v.Height-4))
	case "home", "g":
		v.move(-1 << 30)
	case "end", "G":
		v.move(1 << 30)
	case "e", "enter":
		if rows := v.rows(); len(rows) > 0 {
			name := rows[v.at(rows)].st.Name
			v.note = "reading what is known of " + name + "…"
			return v.explain(name)
		}
	}
	return nil
}

// sorted are copies of the rows, the gravest first.
func (v *lockScreen) sorted() []lockRow {
	rows := make([]lockRow, 0, len(v.board.rows))
	for _, r := range v.board.rows {
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(x, y lockRow) int {
		return cmp.Or(cmp.Compare(locksmith.Gravity(y.st.State), locksmith.Gravity(x.st.State)), cmp.Compare(x.st.Key, y.st.Key))
	})
	return rows
}

func (v *lockScreen) rows() []lockRow {
	if v.still != nil {
		return v.still
	}
	return v.sorted()
}

// at is the index of the chosen row. A lock that is gone leaves the choice with
// the first one.
func (v *lockScreen) at(rows []lockRow) int {
	return max(0, slices.IndexFunc(rows, func(r lockRow) bool { return r.st.Key == v.chosen }))
}

func (v *lockScreen) move(by int) {
	rows := v.rows()
	if len(rows) == 0 {
		return
	}
	v.chosen = rows[min(max(v.at(rows)+by, 0), len(rows)-1)].st.Key
}

func (v *lockScreen) View() tea.View {
	now, hint := time.Now(), "^C leaves"
	if v.keys {
		hint = v.roomy("q quit, e explain, arrows choose, p freeze the view", "q quit, e explain, p freeze the view", "q, e, p")
	}
	if v.still != nil {
		now = v.stillAt
		hint = v.roomy("FROZEN since "+v.stillAt.Format(time.TimeOnly)+"; p goes on, q quit, e explain", "FROZEN: p goes on, q quit", "FROZEN")
	}
	if v.Width <= 0 || v.Height <= 0 {
		return v.frame(nil, hint)
	}
	height := max(1, v.Height-1-len(v.noteLines()))
	lines := v.table(v.rows(), now, height)
	for len(lines) < height {
		lines = append(lines, "")
	}
	return v.frame(lines, hint)
}

// narrow is the width below which a lock takes two lines.
const narrow = 70

// table is the locks as lines no wider than the screen, at most height of them.
func (v *lockScreen) table(rows []lockRow, now time.Time, height int) []string {
	if len(rows) == 0 {
		return []string{v.cut("no locks are held", v.Width)}
	}
	each := 1
	if v.Width < narrow {
		each = 2
	}
	name := 4
	for i := range rows {
		name = max(name, min(ansi.StringWidth(v.clean(rows[i].st.Name)), v.Width))
	}
	last := ""
	if each == 1 {
		name, last = min(name, v.Width/3), "WHO AND WHY"
	} else {
		name = min(name, v.Width-21)
	}
	head := strings.TrimRight(fmt.Sprintf("  %-*s %-8s %-9s %s", max(0, name), "LOCK", "STATE", "HELD FOR", last), " ")
	out := []string{v.cut(head, v.Width)}
	room := max(1, (height-1)/each)
	if len(rows) > room {
		room = max(1, (height-2)/each) // one line tells of the rest
	}
	at := v.at(rows)
	v.top = max(0, min(v.top, at, len(rows)-room))
	v.top = max(v.top, at-room+1)
	for i := v.top; i < min(v.top+room, len(rows)); i++ {
		out = append(out, v.row(&rows[i], now, name, each, i == at)...)
	}
	if n := len(rows) - room; n > 0 {
		out = append(out, v.cut(fmt.Sprintf("  %d to %d of %d, the gravest first", v.top+1, min(v.top+room, len(rows)), len(rows)), v.Width))
	}
	return out
}

func (v *lockScreen) row(r *lockRow, now time.Time, name, lines int, chosen bool) []string {
	held, who := r.text(now)
	mark := "  "
	if chosen && v.keys {
		mark = "> "
	}
	label := v.cut(v.clean(r.st.Name), name)
	label += strings.Repeat(" ", max(0, name-ansi.StringWidth(label)))
	first := fmt.Sprintf("%s%s %-8s %-9s", mark, label, r.st.State, held)
	var out []string
	if lines == 1 {
		out = []string{v.cut(strings.TrimRight(first+" "+v.clean(who), " "), v.Width)}
	} else {
		out = []string{v.cut(strings.TrimRight(first, " "), v.Width), v.cut("    "+v.clean(who), v.Width)}
	}
	style := lipgloss.NewStyle()
	switch {
	case !v.Color:
		return out
	case r.st.State == locksmith.Hot:
		style = style.Foreground(lipgloss.Red)
	case r.st.State == locksmith.Warm, r.st.State == locksmith.Unknown:
		style = style.Foreground(lipgloss.Yellow)
	}
	if chosen && v.keys {
		style = style.Bold(true)
	}
	for i := range out {
		out[i] = style.Render(out[i])
	}
	return out
}

// text is for how long a lock has been held, and by whom; ages go on between
// verdicts.
func (r *lockRow) text(now time.Time) (held, who string) {
	st, since := r.st, now.Sub(r.at).Seconds()
	held = "-"
	if st.Session != nil {
		held = "?"
	}
	if st.HeldFor != nil {
		held = showSeconds(float64(int(*st.HeldFor + since)))
	}
	switch {
	case st.Semaphore != nil:
		who = st.Semaphore.SlotsText()
	case st.Session != nil:
		who = shortHolder(st)
	}
	if p := st.Progress; p != nil && p.Done != nil && p.Total != nil {
		who += strings.TrimRight(fmt.Sprintf("  %d/%d %s", *p.Done, *p.Total, deref(p.Unit)), " ")
	}
	switch {
	case st.Rule != "":
		who += "  " + st.Rule + ": " + st.Reason
	case len(st.Pending) > 0:
		who += "  " + st.Pending[0]
	}
	return held, text.Printable(who)
}

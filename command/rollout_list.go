package command

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// listShown is how many rollouts that have ended are listed unless more are asked
// for.
const listShown = 20

func newRolloutList(m *Meta) *command {
	all, limit := false, listShown
	name, state := "", ""
	return &command{
		Meta:     m,
		Synopsis: "List rollouts, the newest first",
		Usage:    "[options]",
		Description: `Lists the rollouts that wait for their turn, those that are unfinished, and the last
ones that have ended, the newest first. The counts are those of the last decision;
"rollout status" has them as of now. With -json, "driven" says of the newest
unfinished ones whether anybody drives them.

Who waits has not begun: the line says what for, and its place.`,
		Examples: []example{
			{"What was rolled out?", "aimlock rollout list"},
			{"What is under way or waits?", "aimlock rollout list -state unfinished"},
			{"All that is kept of one", "aimlock rollout list -all -name aim-lock-config"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&all, "all", false, "List all that have ended, as far as Consul still has them.")
			fs.IntVar(&limit, "n", listShown, "List the last `N` that have ended.")
			fs.StringVar(&name, "name", "", "Only rollouts called `NAME`.")
			fs.StringVar(&state, "state", "", "Only rollouts in these `STATES`, with commas between; also \"unfinished\" and \"finished\".")
		},
		Run: func(ctx context.Context, _ *input) error {
			f := runner.Filter{Name: name, Ended: limit}
			if all {
				f.Ended = -1
			}
			if !all && limit < 0 {
				return usagef("-n must not be negative, and is %d; -all lists all", limit)
			}
			var err error
			if f.States, err = listStates(state); err != nil {
				return err
			}
			r, err := m.runner(nil)
			if err != nil {
				return err
			}
			list, err := r.List(ctx, f)
			if err != nil {
				return rolloutError(err)
			}
			return m.showList(ctx, list)
		},
	}
}

var allStates = []orchestrator.Status{
	orchestrator.Waiting, orchestrator.Running, orchestrator.Baking, orchestrator.Paused, orchestrator.RollingBack,
	orchestrator.Succeeded, orchestrator.Failed, orchestrator.RolledBack, orchestrator.Aborted, orchestrator.Superseded,
}

// listStates reads the value of -state.
func listStates(s string) ([]orchestrator.Status, error) {
	var out []orchestrator.Status
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		switch {
		case part == "":
		case part == "unfinished" || part == "finished":
			for _, st := range allStates {
				if st.Terminal() == (part == "finished") {
					out = append(out, st)
				}
			}
		case slices.Contains(allStates, orchestrator.Status(part)):
			out = append(out, orchestrator.Status(part))
		default:
			names := make([]string, len(allStates))
			for i, st := range allStates {
				names[i] = string(st)
			}
			return nil, usagef("-state: %q is no state: it must be unfinished, finished, or of %s", part, strings.Join(names, ", "))
		}
	}
	return out, nil
}

func (m *Meta) showList(ctx context.Context, list *runner.Listing) error {
	if m.JSON {
		out := make([]rolloutView, 0, len(list.Waiting)+len(list.Headers))
		for _, w := range list.Waiting {
			out = append(out, viewWaiting(w))
		}
		judged := 0
		for _, h := range list.Headers {
			v := viewRollout(h, "")
			if h.FinishedAt == nil && judged < mostJudged {
				judged++
				v.Driven = v.driven(m.rolloutLocks(ctx, h))
			}
			out = append(out, v)
		}
		return m.PrintJSON(out)
	}
	if len(list.Waiting)+len(list.Headers) == 0 {
		m.Notef("No rollouts.\n")
		return nil
	}
	w := tabwriter.NewWriter(m.Stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ROLLOUT\tSTATE\tSTAGE\tAPPLIED\tSTARTED\tTOOK")
	for _, q := range list.Waiting {
		_, _ = fmt.Fprintf(w, "%s\t%s\t-\t-\t-\tfor %s, place %d of %d\n", q.ID, orchestrator.Waiting, text.Printable(q.For), q.Place, q.Of)
	}
	for _, h := range list.Headers {
		started := "-"
		if h.StartedAt != nil {
			started = h.StartedAt.UTC().Format("2006-01-02 15:04:05")
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%s\t%s\n", h.ID, h.State, first(h.Stage, "-"), h.Counts[orchestrator.ClassApplied], h.Total, started, tookText(h))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if list.More > 0 {
		m.Notef("%d more have ended: -all lists them.\n", list.More)
	}
	m.tellUndriven(ctx, list.Headers)
	return nil
}

// mostJudged is of how many unfinished rollouts a list judges the locks.
const mostJudged = 10

// tellUndriven says which rollouts nobody brings forward now though they are at work:
// nobody has their lock, or who has it may be dead.
func (m *Meta) tellUndriven(ctx context.Context, heads []*orchestrator.Header) {
	judged := 0
	for _, h := range heads {
		if !h.AtWork() {
			continue
		}
		if judged++; judged > mostJudged {
			return
		}
		if l, ok := undriven(h, m.rolloutLocks(ctx, h)); ok {
			what := fmt.Sprintf("lock %s is %s", text.Printable(l.Name), l.State)
			switch {
			case l.Session == nil:
				what = "nobody drives it now"
			case l.rollout == h.ID:
				what = runner.DriverGone
			}
			m.Notef("%s: %s: `%s` says what happens next\n", h.ID, what, m.given.Looking("rollout status", h.ID))
		}
	}
}

// tookText is how long a rollout took, and "-" where that is not known: it has not
// ended, or two hosts told the times whose clocks are apart.
func tookText(h *orchestrator.Header) string {
	if h.StartedAt == nil || h.FinishedAt == nil || h.FinishedAt.Before(*h.StartedAt) {
		return "-"
	}
	return showSeconds(h.FinishedAt.Sub(*h.StartedAt).Seconds())
}

// viewWaiting is the view of a rollout that has not begun.
func viewWaiting(w *runner.Waiting) rolloutView {
	v := viewRollout(w.Header(), "")
	v.Waiting = w
	return v
}

// waitingText is "rollout status" of one that has not begun.
func waitingText(w *runner.Waiting) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", w.ID, orchestrator.Waiting)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("why", "it waits for %s, and has not begun", text.Printable(w.For))
	line("place", "%d of %d that wait for its configs", w.Place, w.Of)
	for _, c := range w.Configs {
		line("config", "%s revision %s", c.Name, c.Revision)
	}
	by := text.Printable(w.By)
	if w.Host != "" && !strings.Contains(by, w.Host) {
		by += " on " + text.Printable(w.Host)
	}
	line("by", "%s, whose process is alive", by)
	line("since", "%s", text.Time(w.Since))
	return b.String()
}

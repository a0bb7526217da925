package command

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/metrics"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

func newRolloutStart(m *Meta) *command {
	detailed, listen := false, ""
	return &command{
		Meta:     m,
		Synopsis: "Run a rollout to its end",
		Usage:    "[options] SPEC",
		Description: `Takes the locks of the rollout's configs, drives it through its stages, and lets
the locks go. It resumes the unfinished rollout of the same name and content,
whatever its last orchestrator died of; where a finished one of the same content
left out nodes that joined since, or that failed or could not be reached, it
serves those.

Where the spec or a content is another one than an unfinished rollout of the same
config was begun with, this one takes that one's place, also while an orchestrator
is at work on it, which then makes room; with conflict = "queue" in the spec it
waits for its end. "rollout plan" says which one that would be.

While somebody else holds a lock it waits as the spec says, judges the holder by
the policies in force, and breaks a HOT lock where they let it.

It ends when the rollout does, or when a failure or a gate pauses it (exit code
6). A rollout that an operator pauses is waited for. Which of the states of exit
code 6 it is, is "state" with -json.`,
		Examples: []example{
			{"Roll out", "aimlock rollout start rollout.hcl"},
			{"See first what it would do", "aimlock rollout plan rollout.hcl"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&detailed, "detailed-exitcode", false, "Exit with 3 where more is left to do.")
			fs.StringVar(&listen, "listen", "", "Serve /metrics (Prometheus) on `ADDRESS` meanwhile, such as 127.0.0.1:9110.\nThere is no TLS and no password: keep it off the world.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete:  completeFiles("*.hcl"),
		Elsewhere: tryFirst(),
		Exits:     rolloutExits(),
		Run: func(ctx context.Context, in *input) error {
			return m.runRollout(ctx, in.Args[0], listen, detailed, false, (*runner.Runner).Start)
		},
	}
}

// tryFirst are the flags by which other tools only show what they would do.
func tryFirst() map[string]string {
	const plan = `"aimlock rollout plan SPEC" shows what it would do, and changes nothing`
	return map[string]string{"dry-run": plan, "dryrun": plan, "plan": plan, "check": plan, "noop": plan}
}

func newRolloutTick(m *Meta) *command {
	detailed := false
	return &command{
		Meta:     m,
		Synopsis: "Do what a rollout can do now, and leave",
		Usage:    "[options] SPEC",
		Description: `Does what "rollout start" does, but never waits: for a lock, for a bake, for a
window or for an operator. It is meant for Nomad periodic jobs and cron; two at
once are safe, and the one that finds the other at work says so and exits 0.

It exits 0 also where the rollout is paused, aborted or rolled back, and says so.
With -detailed-exitcode it exits 3 where more is left to do, 5 where the lock is HOT
and the policies do not let it be broken now, and 6 or 1 where "rollout start" would.`,
		Examples: []example{
			{"In a periodic job", "aimlock rollout tick rollout.hcl"},
			{"Tell converged from more to do", "aimlock rollout tick -detailed-exitcode rollout.hcl"},
		},
		Groups: groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.BoolVar(&detailed, "detailed-exitcode", false, "Exit with 3 where more is left to do; 0 means converged.")
		},
		MinArgs: 1, MaxArgs: 1,
		Complete:  completeFiles("*.hcl"),
		Elsewhere: tryFirst(),
		Exits:     rolloutExits(),
		Run: func(ctx context.Context, in *input) error {
			return m.runRollout(ctx, in.Args[0], "", detailed, !detailed, (*runner.Runner).Tick)
		},
	}
}

// runRollout is start and tick. lenient: what the rollout's state is, is
// reported and does not make the exit code.
func (m *Meta) runRollout(ctx context.Context, path, listen string, detailed, lenient bool, do func(*runner.Runner, context.Context, runner.Input) (*runner.Outcome, error)) error {
	in, err := m.loadRollout(path)
	if err != nil {
		return err
	}
	show := m.progress(&in.Spec)
	defer show.close()
	numbers := metrics.NewRollout()
	r, err := m.runner(func(ev runner.Progress) {
		numbers.Tell(&ev.Header)
		show.tell(ev)
	})
	if err != nil {
		return err
	}
	stop, err := m.listen(listen, metrics.Handler(numbers.Registry))
	if err != nil {
		return err
	}
	defer stop()
	out, err := do(r, ctx, in)
	show.close()
	if err != nil {
		if out != nil {
			m.Notef("rollout %s: nothing more is done here%s\n", out.ID, m.whatIsLeft(ctx, r, out.ID, path))
		}
		return rolloutError(err)
	}
	if out.Busy != nil {
		return m.busy(out, detailed)
	}
	if err := m.printRollout(ctx, r, out); err != nil {
		return err
	}
	switch err := m.stateError(&out.Header); {
	case err != nil && lenient:
		m.Notef("%v\n", err)
		return nil
	case err != nil:
		return err
	}
	if detailed && !out.Converged {
		return exit(ExitMore)
	}
	return nil
}

// lookBack is how long a process that can do no more looks what became of its rollout.
const lookBack = 5 * time.Second

// whatIsLeft says what becomes of a rollout that can be driven no more here. Of one
// that has ended since, as when another one took its place, nothing is left.
func (m *Meta) whatIsLeft(ctx context.Context, r *runner.Runner, id, path string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookBack)
	defer cancel()
	if h, err := headerOf(ctx, r, id); err == nil && h.FinishedAt != nil {
		words := fmt.Sprintf(", since it is %s", h.State)
		if h.Reason != "" {
			words += ": " + text.Printable(h.Reason)
		}
		return words
	}
	return fmt.Sprintf("; the next `%s` goes on with what is left", m.given.Judging("rollout start", path))
}

// busyView is what a tick reports that left the work to another copy.
type busyView struct {
	Busy any    `json:"busy"`
	Note string `json:"note"`
}

func (m *Meta) busy(out *runner.Outcome, detailed bool) error {
	if m.JSON {
		if err := m.PrintJSON(busyView{out.Busy, out.Note}); err != nil {
			return err
		}
	} else {
		m.tellWords(fmt.Sprintf("%s\n%s", out.Note, statusLines(out.Busy, "", "  ")))
	}
	switch {
	case detailed && out.Busy.State == locksmith.Hot:
		return exit(ExitLockHot)
	case detailed:
		return exit(ExitMore)
	}
	return nil
}

package command

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

func newRolloutPause(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Pause, "Pause a rollout",
		`Nothing more of it is assigned until it is resumed. Nodes that have their order
go on.

A pause holds this rollout, and no other: a start of another version of its spec
or content, or of another rollout of its config, takes its place all the same.
What holds others off is conflict = "queue" in their specs, with which they wait
for the end of this one, or the lock of the config in other hands: "aimlock lock
exec CONFIG -- COMMAND", once this rollout has ended.`, false)
}

func newRolloutResume(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Resume, "Resume a paused rollout",
		`Goes on with a paused rollout. Failures that paused it are forgiven: the budget
starts anew, and the rollout goes on without the nodes that failed, which are not
tried again. To go back instead, use "rollout rollback". Where no orchestrator
runs, start it again afterwards.

Only the pause at which the rollout stands when the command begins is ended, or
with -pause, as the rollout itself says it, only that one: whoever resumes after
somebody else did does not end a later pause that he has not seen.`, false)
}

func newRolloutAbort(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Abort, "End a rollout where it stands",
		`Ends the rollout. Nodes that have the new revision keep it; nobody else gets it.
So the fleet may be left mixed: "rollout status" names the nodes then, and a start
of any content, this one too, brings all of them to one.`, false)
}

func newRolloutRollback(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Rollback, "Send every node back to what it had",
		`Every node that got an order of this rollout goes back to its own last good file,
at once and not through the stages again.

A rollout that has ended is not rolled back: to undo one that succeeded, put the
content from before in its place and start a rollout of that.`, false)
}

func newRolloutPromote(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Promote, "Take this stage's bake and gates as passed",
		`Ends the bake of the present stage and takes its gates as passed. With -stage it
does nothing where another stage has its turn by then, since somebody else has
promoted that one.`, false)
}

func newRolloutSkip(m *Meta) *command {
	return rolloutOrder(m, orchestrator.Skip, "Take nodes out of a rollout",
		`Takes the named nodes out of the rollout, if they have no order yet: all of them
or none. With -stage all nodes of that stage are meant that have no order yet; a
stage of which all are skipped neither bakes nor asks its gates.`, true)
}

// rolloutOrder fills in a command that gives an operator's order.
func rolloutOrder(m *Meta, verb orchestrator.Verb, synopsis, description string, nodes bool) *command {
	reason, stage, pause := "", "", uint64(0)
	c := &command{
		Meta:     m,
		Synopsis: synopsis,
		Usage:    "[options] [ID|NAME]",
		Description: description + `

It works from any terminal and at any moment: a running orchestrator takes the
order; where none runs, this command takes the lock for a moment and does it.
Without an argument the only unfinished rollout is meant.`,
		Examples: []example{{synopsis, "aimlock rollout " + string(verb) + " aim-lock-config"}},
		Groups:   groupConsul | groupJSON | groupPolicy,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&reason, "reason", "", "Why, in `WORDS`: it stands in the rollout's record.")
			if verb == orchestrator.Resume {
				fs.Uint64Var(&pause, "pause", 0, "The `NUMBER` of the pause that is meant; without it the one at which it stands now.")
			}
			if verb == orchestrator.Promote {
				fs.StringVar(&stage, "stage", "", "The `NAME` of the stage that is meant; without it the one that has its turn now.")
			}
			if nodes {
				fs.StringVar(&stage, "stage", "", "Skip all nodes of the stage of this `NAME` that have no order yet.")
			}
		},
		MaxArgs:  1,
		Complete: completeInOrder(completeRollouts),
	}
	if nodes {
		c.Usage, c.MinArgs, c.MaxArgs = "[options] ID|NAME [NODE…]", 1, -1
		c.Examples = []example{
			{"A machine is being repaired", "aimlock rollout skip aim-lock-config drone-7"},
			{"A stage is not wanted", "aimlock rollout skip -stage eu aim-lock-config"},
		}
	}
	c.Run = func(ctx context.Context, in *input) error {
		args := in.Args
		var names []string
		if nodes {
			args, names = args[:1], args[1:]
			if len(names) == 0 && stage == "" {
				return usagef("name the nodes to skip, or a stage by -stage")
			}
		}
		r, id, err := m.rolloutOf(ctx, args)
		if err != nil {
			return err
		}
		h, err := r.Command(ctx, runner.Order{ID: id, Verb: verb, Nodes: names, Stage: stage, Pause: pause, Reason: reason})
		if errors.Is(err, runner.ErrEnded) && h != nil && already(verb, h.State) {
			h.Command = nil // somebody else's
			if m.JSON {
				return m.PrintJSON(viewRollout(h, string(verb)+": nothing to do"))
			}
			m.Printf("%s: %s: nothing to do; the rollout is %s\n", h.ID, verb, h.State)
			return nil
		}
		if verb == orchestrator.Rollback && errors.Is(err, runner.ErrEnded) {
			return exitf(ExitFailed, "%w. To go back, start a rollout of the content from before: it goes through the stages as any other", err)
		}
		if err != nil {
			return rolloutError(err)
		}
		return m.showOrder(ctx, r, h, verb)
	}
	return c
}

// already tells that a rollout which has ended stands where the order would bring it: who
// gives an order twice has what he wants.
func already(verb orchestrator.Verb, state orchestrator.Status) bool {
	switch verb {
	case orchestrator.Abort:
		return true
	case orchestrator.Rollback:
		return state == orchestrator.RolledBack
	}
	return false
}

func (m *Meta) showOrder(ctx context.Context, r *runner.Runner, h *orchestrator.Header, verb orchestrator.Verb) error {
	if c := h.Command; c != nil && !c.OK {
		return exitf(ExitFailed, "%s of rollout %s was refused: %s", verb, h.ID, text.Printable(c.Result))
	}
	if m.JSON {
		return m.PrintJSON(viewRollout(h, ""))
	}
	m.Printf("%s: %s\n", h.ID, r.Became(ctx, h, verb, m.startAgain()))
	return nil
}

// printLine writes one JSON object on one line.
func (m *Meta) printLine(v any) error {
	b, err := jsonLine(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(m.Stdout, "%s\n", b)
	return err
}

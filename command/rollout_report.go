package command

import (
	"bytes"
	"context"
	"flag"
	"time"

	"github.com/google/renameio/v2"

	"github.com/aim-control/aimlock/internal/htmlreport"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

func newRolloutReport(m *Meta) *command {
	path := ""
	return &command{
		Meta:     m,
		Synopsis: "Write an HTML report of a rollout",
		Usage:    "[options] [ID|NAME]",
		Description: `Writes all that is known of a rollout as one HTML page: its stages and how long
they took, every node, failures with their output, gates, breaks of its locks, and
its log. The page needs nothing but itself, and runs no script.

Without an argument the only unfinished rollout is meant, or else the newest. It
changes nothing in Consul. With -json it writes the same as data.`,
		Examples: []example{
			{"To a file", "aimlock rollout report -o report.html aim-lock-config"},
			{"To a program", "aimlock rollout report > report.html"},
		},
		Groups: groupConsul | groupJSON,
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&path, "o", "", "Write to `FILE`, which is replaced at once and as a whole. Default: stdout.")
		},
		MaxArgs:  1,
		Complete: completeRollouts,
		Run: func(ctx context.Context, in *input) error {
			r, id, err := m.rolloutOf(ctx, in.Args)
			if err != nil {
				return err
			}
			story, err := r.Story(ctx, id)
			if err != nil {
				return rolloutError(err)
			}
			var page bytes.Buffer
			if m.JSON {
				err = writeJSON(&page, viewStory(story))
			} else {
				err = htmlreport.Write(&page, story, time.Now())
			}
			if err != nil {
				return err
			}
			if path == "" || path == "-" {
				_, err = m.Stdout.Write(page.Bytes())
				return err
			}
			if err := renameio.WriteFile(path, page.Bytes(), 0o644); err != nil {
				return exitf(ExitFailed, "-o: %w", err)
			}
			m.Notef("%s: %d bytes about %s\n", path, page.Len(), id)
			return nil
		},
	}
}

// storyView is the JSON of a report.
type storyView struct {
	Rollout  rolloutView            `json:"rollout"`
	Nodes    []storyNode            `json:"nodes"`
	Failures []storyFailure         `json:"failures"`
	More     int                    `json:"failures_more,omitempty"`
	Events   []records.RolloutEvent `json:"events"`
	Breaks   []records.Break        `json:"breaks"`
}

type storyNode struct {
	Node  string `json:"node"`
	Stage string `json:"stage"`
	Class string `json:"class"`
}

type storyFailure struct {
	storyNode
	Why string    `json:"why"`
	At  time.Time `json:"at,omitzero"`
}

// viewStory has no nodes where the plan is not kept any more.
func viewStory(s *runner.Story) storyView {
	v := storyView{
		Rollout: viewRollout(s.Header, ""), Nodes: []storyNode{}, Failures: []storyFailure{}, More: s.MoreFailures,
		Events: append([]records.RolloutEvent{}, s.Events...), Breaks: append([]records.Break{}, s.Breaks...),
	}
	for i, c := range s.Classes {
		n := storyNode{Node: s.Plan.Nodes[i], Class: c.String()}
		if st := s.Plan.StageOf(i); st >= 0 {
			n.Stage = s.Plan.Spec.Stages[st].Name
		}
		v.Nodes = append(v.Nodes, n)
	}
	for _, f := range s.Failures {
		v.Failures = append(v.Failures, storyFailure{storyNode{f.Node, f.Stage, f.Class.String()}, f.Why, f.At})
	}
	return v
}

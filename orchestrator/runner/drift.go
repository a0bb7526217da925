package runner

import (
	"context"
	"slices"
	"strings"

	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Drifted is a node where somebody else changed a file.
type Drifted struct {
	Node   string `json:"node"`
	Config string `json:"config"`
	records.Drift
}

// MaxDrifted bounds how many nodes Drift names.
const MaxDrifted = 100

// Drift finds the nodes of a rollout that report a changed file, as of their
// last answers, by names; all is how many there are, of which at most MaxDrifted
// are returned. What a node said of another rollout's order does not count.
func (r *Runner) Drift(ctx context.Context, h *orchestrator.Header) (some []Drifted, all int, err error) {
	for _, c := range h.Configs {
		list, err := r.scan(ctx, readAnswers, r.keys.ActualAll(c.Name), every)
		if err != nil {
			return nil, 0, err
		}
		for _, p := range list {
			// Almost none has one: it is decoded only then.
			if !strings.Contains(string(p.Value), `"drift"`) {
				continue
			}
			var a records.Actual
			if records.Decode(p.Key, p.Value, &a) != nil || a.Drift == nil || a.Rollout != h.ID {
				continue
			}
			all++
			some = append(some, Drifted{Node: keys.LastSegment(p.Key), Config: c.Name, Drift: *a.Drift})
		}
	}
	slices.SortFunc(some, func(a, b Drifted) int { return strings.Compare(a.Node+"\x00"+a.Config, b.Node+"\x00"+b.Config) })
	return some[:min(len(some), MaxDrifted)], all, nil
}

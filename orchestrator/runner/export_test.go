package runner

import (
	"context"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// FillEvents lets a test write the log of a rollout called "filled" under a
// hold. It returns the number of the last event.
func (r *Runner) FillEvents(ctx context.Context, spec *orchestrator.Spec, fill func(add func(orchestrator.Tell), write func() error) error) (uint64, error) {
	h, _, err := r.acquire(ctx, spec, "filled", untilEnd)
	if err != nil {
		return 0, err
	}
	defer func() { _ = release(ctx, h) }()
	plan, err := orchestrator.NewPlan("filled", *spec, []orchestrator.Node{{Name: "n"}}, time.Now())
	if err != nil {
		return 0, err
	}
	d := &drive{r: r, h: h, plan: plan, state: orchestrator.NewState(plan)}
	err = fill(func(t orchestrator.Tell) { d.told(t, d.now()) }, func() error {
		head := d.present()
		return d.write(ctx, &head)
	})
	return d.diary.last, err
}

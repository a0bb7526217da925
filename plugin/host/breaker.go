package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/plugin"
)

// ErrNotApplicable: the breaker has nothing to do for this holder.
var ErrNotApplicable = errors.New("it does not apply to this holder")

// Break does a step of a break by the breaker of a plugin, once: a call whose outcome
// is not known is a failed step, and not made again. detail is for people.
func (h *Host) Break(ctx context.Context, name string, config json.RawMessage, r *plugin.BreakRequest) (detail string, err error) {
	p, err := h.Plugin(name)
	if err != nil {
		return "", err
	}
	i := instanceOf(p, plugin.KindBreaker, config, (*plugin.Client).Breaker)
	got, err := use(ctx, i, "break", false, func(ctx context.Context, v plugin.Breaker) (*plugin.BreakResult, error) {
		return v.Break(ctx, r)
	})
	if err != nil {
		return "", err
	}
	detail = text.Clip(text.Printable(got.Detail), maxWhy)
	switch got.Outcome {
	case plugin.Done:
		return detail, nil
	case plugin.NotApplicable:
		err = ErrNotApplicable
	default:
		err = errors.New("it says that it failed")
	}
	if detail != "" {
		err = fmt.Errorf("%w: %s", err, detail)
	}
	return detail, p.fail("break", err)
}

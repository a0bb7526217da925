package agent

import (
	"context"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
)

// applying begins the span of an order that was accepted, in the trace of the
// rollout that gave it.
func (w *work) applying(ctx context.Context, d *records.Desired) (context.Context, *tracing.Span) {
	ctx, span := tracing.StartUnder(ctx, d.Traceparent, tracing.Apply)
	span.Str(tracing.Node, w.node).Str(tracing.RolloutID, d.Rollout).Str(tracing.Revision, d.Revision).
		Strs(tracing.Configs, []string{w.config}).Num(tracing.Epoch, d.Epoch).Num(tracing.Token, d.Token).Num(tracing.Seq, d.Seq)
	return ctx, span
}

// endApply ends it. Where there is no answer, the order is carried out again.
func endApply(span *tracing.Span, rep *records.Actual, err error) {
	switch {
	case !span.On():
	case err != nil || rep == nil:
		span.Outcome("unanswered", false)
	default:
		span.Outcome(rep.Result, rep.Result == records.ResultFailed)
	}
	span.End()
}

// endOf is in one word how a command ended.
func endOf(err error) string {
	if err != nil {
		return "failed"
	}
	return "done"
}

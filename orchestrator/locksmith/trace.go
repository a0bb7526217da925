package locksmith

import (
	"context"
	"errors"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
)

// traced is an acquisition as a span of the hold that it leads to. That ends with
// the hold, or here where there is none.
func traced(ctx context.Context, req *Request, acquire func(context.Context) (*Hold, error)) (*Hold, error) {
	ctx, span := tracing.Start(ctx, tracing.Hold)
	span.Strs(tracing.Locks, req.Names).Str(tracing.Operation, req.Operation).Str(tracing.RolloutID, req.RolloutID)
	req.span = span
	actx, part := tracing.Start(ctx, tracing.Acquire)
	h, err := acquire(actx)
	word := "acquired"
	if err != nil {
		word = refusal(ctx, err)
	}
	part.Outcome(word, err != nil && word == "failed")
	part.End()
	if err != nil {
		span.Outcome(word, word == "failed")
		span.End()
		return nil, err
	}
	// Of several slots it is one.
	span.Strs(tracing.Locks, h.names).Num(tracing.Epoch, h.epoch).Num(tracing.Token, h.token).Str(tracing.Session, h.sess.id)
	return h, nil
}

// refusal is in one word why there is no hold. To be refused is no failure.
func refusal(ctx context.Context, err error) string {
	_, held := errors.AsType[*RefusedError](err)
	switch {
	case held:
		return "refused"
	case ctx.Err() != nil:
		return "stopped"
	}
	return "failed"
}

// Traceparent names the span of the hold, as W3C's Trace Context writes it, for what
// is done under it; "" where it is not traced.
func (h *Hold) Traceparent() string {
	if h.span == nil {
		return ""
	}
	return tracing.Parent(h.span.In(h.ctx))
}

// releasing begins the span of a release, under that of the hold.
func (h *Hold) releasing(ctx context.Context) (context.Context, *tracing.Span) {
	if h.span == nil {
		return ctx, nil
	}
	return tracing.Start(h.span.In(ctx), tracing.Release)
}

// ended ends the spans of a hold and its release.
func (h *Hold) ended(release *tracing.Span, err error) {
	word := "released"
	switch {
	case errors.Is(err, ErrLost):
		word = "lost"
	case err != nil:
		word = "failed"
	}
	for _, s := range []*tracing.Span{release, h.span} {
		s.Outcome(word, err != nil)
		s.End()
	}
}

// tracedIntent commits the intent. The span of the break begins with it: what was
// looked at and not permitted is none.
func (b *breaking) tracedIntent(ctx context.Context, who records.Who) error {
	ctx, span := tracing.Start(ctx, tracing.Break)
	if span.On() {
		rec := &b.targets[0].rec
		names := make([]string, len(b.targets))
		for i, t := range b.targets {
			names[i] = t.rec.Lock
		}
		span.Strs(tracing.Locks, names).Str(tracing.Rule, rec.Rule).Str(tracing.Policy, rec.Policy).
			Num(tracing.Epoch, rec.Epoch).Num(tracing.Token, rec.Token).Str(tracing.Session, rec.Session)
		if rec.Holder != nil {
			span.Str(tracing.RolloutID, rec.Holder.RolloutID)
		}
	}
	ictx, part := tracing.Start(ctx, tracing.Intent)
	err := b.intend(ictx, who)
	word := b.came(err)
	part.Outcome(word, word == "failed")
	part.End()
	if err != nil {
		span.Outcome(word, word == "failed")
		span.End()
		return err
	}
	b.span = span
	return nil
}

// came is in one word how a transaction of a break came out. That something changed
// meanwhile is no failure: it is judged anew.
func (b *breaking) came(err error) string {
	_, refused := isRefused(err)
	switch {
	case err == nil:
		return "committed"
	case refused, errors.Is(err, errChanged):
		return "changed"
	case consulkv.Ambiguous(err):
		return "unknown"
	}
	return "failed"
}

// Package tracing makes the spans of what aimlock does, for OpenTelemetry: a
// rollout, its stages, the orders that nodes carry out, holds of locks and their
// breaks. docs/traces.md describes them; spans.go has their names.
//
// Tracing is off unless a context carries a tracer (With). Then Start returns a
// nil *Span, whose methods do nothing, and what is traced costs one look into a
// context. Nothing is left to chance where it is off, so that what is simulated
// stays the same for a seed. A tracer is made by the package otlp beside.
//
// Attributes are names, numbers and words of aimlock's own: never a file's
// content, the output of a command, an error's text or a token of Consul.
package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracerKey is where a context carries its tracer.
type tracerKey struct{}

// With is a context under which spans are made by t.
func With(ctx context.Context, t trace.Tracer) context.Context {
	return context.WithValue(ctx, tracerKey{}, t)
}

func tracer(ctx context.Context) trace.Tracer {
	t, _ := ctx.Value(tracerKey{}).(trace.Tracer)
	return t
}

// Span is one span under way. A nil one is that of a context without a tracer.
// It is safe for concurrent use.
type Span struct{ s trace.Span }

// Start begins a span, under that of ctx if there is one, and returns a context
// for what is done within it.
func Start(ctx context.Context, name Name) (context.Context, *Span) {
	t := tracer(ctx)
	if t == nil {
		return ctx, nil
	}
	ctx, s := t.Start(ctx, string(name))
	return ctx, &Span{s}
}

// StartUnder is Start under a span of perhaps another process, as Parent told it
// there. One that cannot be read counts as none; an empty one leaves what ctx has.
func StartUnder(ctx context.Context, parent string, name Name) (context.Context, *Span) {
	if tracer(ctx) == nil {
		return ctx, nil
	}
	return Start(Under(ctx, parent), name)
}

// Alone is a context whose spans begin traces of their own, whatever ctx is part of.
func Alone(ctx context.Context) context.Context {
	if tracer(ctx) == nil {
		return ctx
	}
	return trace.ContextWithSpanContext(ctx, trace.SpanContext{})
}

// Under is a context whose spans are under the one that parent names.
func Under(ctx context.Context, parent string) context.Context {
	if parent == "" || tracer(ctx) == nil {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{traceparent: parent})
}

// traceparent is the field of W3C's Trace Context.
const traceparent = "traceparent"

// Parent names the span of ctx, for StartUnder in another process: what a header
// traceparent has by W3C's Trace Context. It is "" where there is none.
func Parent(ctx context.Context) string {
	if tracer(ctx) == nil {
		return ""
	}
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, c)
	return c[traceparent]
}

// On reports whether the span is a real one.
func (s *Span) On() bool { return s != nil }

// In is ctx with s as the span that further ones are under.
func (s *Span) In(ctx context.Context) context.Context {
	if s == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, s.s)
}

// Str sets an attribute to a text; an empty one is left out.
func (s *Span) Str(key Key, v string) *Span {
	if s != nil && v != "" {
		s.s.SetAttributes(attribute.String(string(key), v))
	}
	return s
}

// Strs sets an attribute to several texts.
func (s *Span) Strs(key Key, v []string) *Span {
	if s != nil && len(v) > 0 {
		s.s.SetAttributes(attribute.StringSlice(string(key), v))
	}
	return s
}

// Num sets an attribute to a number; an index that does not fit is not lost, as
// Raft's stay below 2^63.
func (s *Span) Num(key Key, v uint64) *Span {
	if s != nil {
		s.s.SetAttributes(attribute.Int64(string(key), int64(v)))
	}
	return s
}

// Event notes that something happened, with one attribute.
func (s *Span) Event(name Event, key Key, v string) {
	if s != nil {
		s.s.AddEvent(string(name), trace.WithAttributes(attribute.String(string(key), v)))
	}
}

// Outcome says how it came out, by a word of aimlock's own. Where failed is set
// the span counts as an error.
func (s *Span) Outcome(word string, failed bool) {
	if s == nil {
		return
	}
	s.Str(Outcome, word)
	if failed {
		s.s.SetStatus(codes.Error, word)
	}
}

// End ends the span. It may be called again.
func (s *Span) End() {
	if s != nil {
		s.s.End()
	}
}

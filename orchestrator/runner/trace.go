package runner

import (
	"context"

	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator"
)

// rolloutSpan begins the span of what this process does for a rollout. All
// processes that drive one share the trace of the first.
func rolloutSpan(ctx context.Context, name, id string, resume *orchestrator.Header) (context.Context, *tracing.Span) {
	parent := ""
	if resume != nil {
		parent = resume.Traceparent
	}
	ctx, span := tracing.StartUnder(ctx, parent, tracing.Rollout)
	span.Str(tracing.RolloutName, name).Str(tracing.RolloutID, id)
	return ctx, span
}

// droveTo says on its span how far a drive has come.
func droveTo(span *tracing.Span, out *Outcome, err error) {
	switch {
	case !span.On():
	case out != nil && out.Header.State != "":
		span.Num(tracing.Epoch, out.Header.Epoch).Num(tracing.Token, out.Header.Token)
		span.Outcome(string(out.Header.State), err != nil && !Lost(err) || out.Header.State == orchestrator.Failed)
	case Lost(err):
		span.Outcome("lost", false)
	case err != nil:
		span.Outcome("failed", true)
	}
}

// phase is the part of a rollout that a drive is in, as a span: a stage, or the way
// back. The zero value is not traced.
type phase struct {
	ctx  context.Context //nolint:containedctx // of the drive, for the spans under it
	span *tracing.Span
	in   context.Context //nolint:containedctx // of span
	name tracing.Name
	at   int
	// paused is whether an event has said so.
	paused bool
}

// on begins to trace, if ctx has it that this is traced.
func (p *phase) on(ctx context.Context) {
	if tracing.Parent(ctx) != "" {
		p.ctx = ctx
	}
}

// parent is the span that orders are given in, for the nodes that get them.
func (p *phase) parent() string {
	switch {
	case p.span != nil:
		return tracing.Parent(p.in)
	case p.ctx != nil:
		return tracing.Parent(p.ctx)
	}
	return ""
}

func (p *phase) end() {
	p.span.End()
	p.span, p.in = nil, nil
}

// tracePhase keeps the span of the phase that the state is in, after ev.
func (d *drive) tracePhase(ev orchestrator.Event) {
	p, s := &d.phase, d.state
	if p.ctx == nil {
		return
	}
	if g, ok := ev.(orchestrator.GateAnswered); ok && g.Answer != orchestrator.Pending {
		p.span.Event(tracing.EventGate, tracing.Gate, g.Gate+": "+string(g.Answer))
	}
	st := s.Status()
	if paused := st == orchestrator.Paused; paused != p.paused && p.span != nil {
		p.paused = paused
		name := tracing.EventResumed
		if paused {
			name = tracing.EventPaused
		}
		p.span.Event(name, tracing.StageName, d.plan.Spec.Stages[s.Stage()].Name)
	}
	name := tracing.Name("")
	switch st {
	case orchestrator.Running, orchestrator.Baking:
		name = tracing.Stage
	case orchestrator.RollingBack:
		name = tracing.Rollback
	case orchestrator.Paused:
		return // within whatever it is paused in
	}
	if p.span != nil && p.name == name && (p.at == s.Stage() || name == tracing.Rollback) {
		return
	}
	if name == tracing.Stage {
		p.span.Outcome("done", false)
	} else {
		p.span.Outcome(string(st), st == orchestrator.Failed)
	}
	p.end()
	if name == "" {
		return
	}
	p.name, p.at, p.paused = name, s.Stage(), false
	p.in, p.span = tracing.Start(p.ctx, name)
	p.span.Str(tracing.StageName, d.plan.Spec.Stages[p.at].Name).Str(tracing.RolloutID, d.plan.ID).Str(tracing.RolloutName, d.plan.Spec.Name).
		Num(tracing.Epoch, d.h.Epoch()).Num(tracing.Token, d.h.Token())
}

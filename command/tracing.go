package command

import (
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/internal/tracing/otlp"
)

// trace has the command traced where the standard variables of OpenTelemetry ask
// for it. The function returned sends what is left. Nothing about traces ever
// fails a command.
func (m *Meta) trace() func() {
	wanted, why := otlp.Wanted(m.LookupEnv)
	if why != "" {
		m.Log.Warn("no traces are sent: " + why)
	}
	if !wanted {
		return func() {}
	}
	p, err := otlp.New(m.ctx, m.Log.Named("traces"))
	if err != nil {
		m.Log.Warn("no traces are sent", "error", err)
		return func() {}
	}
	// What starts this program, such as a pipeline, may have a trace of its own.
	m.ctx = tracing.Under(tracing.With(m.ctx, p.Tracer()), m.Env("TRACEPARENT"))
	return func() { p.Close(m.ctx) }
}

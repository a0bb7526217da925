// Package otlp sends spans to a collector by OTLP over HTTP. It owns the provider of
// OpenTelemetry: nothing of it is global, and it is never in the way. What cannot
// be sent is dropped, and said once.
package otlp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/internal/version"
)

const (
	// flushTimeout bounds what the end of a process waits for its last spans.
	flushTimeout = 5 * time.Second
	// awayTimeout is that bound where the collector did not answer the last time.
	awayTimeout = 500 * time.Millisecond
	// retryFor bounds the tries of one batch, for a collector that is started anew.
	retryFor = 20 * time.Second
)

// protocol is the only one that is spoken, by its name in OTEL_EXPORTER_OTLP_PROTOCOL.
const protocol = "http/protobuf"

// Wanted tells whether the standard variables ask for traces. why says what they
// ask for that cannot be had; it is "" if nothing is wrong.
func Wanted(env func(string) (string, bool)) (wanted bool, why string) {
	get := func(names ...string) string {
		for _, n := range names {
			if v, _ := env(n); strings.TrimSpace(v) != "" {
				return strings.TrimSpace(v)
			}
		}
		return ""
	}
	if strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") {
		return false, ""
	}
	endpoint := get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != ""
	switch exporters := get("OTEL_TRACES_EXPORTER"); {
	case exporters == "none", exporters == "" && !endpoint:
		return false, ""
	case exporters != "" && !slices.Contains(strings.Split(exporters, ","), "otlp"):
		return false, fmt.Sprintf("OTEL_TRACES_EXPORTER is %q: traces are sent by otlp only", exporters)
	}
	if p := get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != protocol {
		return false, fmt.Sprintf("OTEL_EXPORTER_OTLP_PROTOCOL is %q: traces are sent by %s only (port 4318 of a collector)", p, protocol)
	}
	return true, ""
}

// Provider makes spans and sends them.
type Provider struct {
	tp  *sdktrace.TracerProvider
	out *exporter
}

// New makes a provider by the standard variables of OpenTelemetry, which the SDK
// reads itself. It does not connect.
func New(ctx context.Context, log hclog.Logger) (*Provider, error) {
	// What the SDK itself complains of, such as a number that is none.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Debug("traces", "error", text.Printable(err.Error())) }))
	to, err := otlptracehttp.New(ctx, otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
		Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: retryFor,
	}))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	return newProvider(ctx, to, log)
}

func newProvider(ctx context.Context, to sdktrace.SpanExporter, log hclog.Logger) (*Provider, error) {
	// The later wins: what the environment says of the service.
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "aimlock"), attribute.String("service.version", version.Get().Version)),
		resource.WithHost(), resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		log.Warn("OTEL_RESOURCE_ATTRIBUTES cannot be read as a whole", "error", err)
	}
	out := &exporter{SpanExporter: to, log: log}
	return &Provider{out: out, tp: sdktrace.NewTracerProvider(sdktrace.WithBatcher(out), sdktrace.WithResource(res))}, nil
}

// Tracer makes the spans of this program.
func (p *Provider) Tracer() trace.Tracer {
	return p.tp.Tracer("github.com/aim-control/aimlock", trace.WithInstrumentationVersion(version.Get().Version))
}

// Close sends what is left, within five seconds, or half a second where the
// collector did not answer the last time.
func (p *Provider) Close(ctx context.Context) {
	d := flushTimeout
	if p.out.away.Load() {
		d = awayTimeout
	}
	// The process may end because ctx has.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	if err := p.tp.Shutdown(ctx); err != nil {
		p.out.failed(err)
	}
}

// exporter tells once of a collector that cannot be had, and again when one that
// could be had meanwhile is gone.
type exporter struct {
	sdktrace.SpanExporter

	log hclog.Logger
	// away: the last batch could not be sent.
	away atomic.Bool
}

func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failed(err)
		return nil
	}
	if e.away.Swap(false) {
		e.log.Info("traces can be sent again")
	}
	return nil
}

func (e *exporter) failed(err error) {
	if !e.away.Swap(true) {
		e.log.Warn("traces cannot be sent: they are dropped until the collector answers", "error", text.Printable(err.Error()))
	}
}

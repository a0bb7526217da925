package tracing

import (
	"context"
	"os"
	"regexp"
	"slices"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// Where tracing is off it costs no memory, and so nothing that is counted.
func TestOffIsFree(t *testing.T) {
	ctx := context.Background()
	n := testing.AllocsPerRun(100, func() {
		c, span := StartUnder(ctx, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", Rollout)
		span.Str(Rule, "x").Num(Token, 1).Strs(Locks, nil).Outcome("done", true)
		span.Event(EventGate, Gate, "x")
		span.End()
		if c != ctx || Parent(c) != "" || span.On() || span.In(c) != ctx || Alone(c) != ctx {
			t.Error("off, and not the same context")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A trace goes on in another process, and one that cannot be read begins anew.
func TestParent(t *testing.T) {
	t.Parallel()
	rec := tracetest.NewSpanRecorder()
	ctx := With(t.Context(), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec)).Tracer("t"))
	in, first := Start(ctx, Rollout)
	_, second := StartUnder(ctx, Parent(in), Apply)
	_, third := StartUnder(ctx, "00-nonsense\x1b[2J", Apply)
	_, fourth := Start(Alone(in), Break)
	for _, s := range []*Span{first, second, third, fourth} {
		s.End()
	}
	l := rec.Ended()
	if id := l[0].SpanContext(); l[1].Parent().SpanID() != id.SpanID() || l[1].SpanContext().TraceID() != id.TraceID() {
		t.Error("the second is not under the first")
	}
	for _, s := range l[2:] {
		if s.Parent().IsValid() || s.SpanContext().TraceID() == l[0].SpanContext().TraceID() {
			t.Errorf("%s is not alone", s.Name())
		}
	}
}

// docs/traces.md lists exactly the spans, attributes and events that there are.
func TestDocs(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/traces.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, there []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(aimlock\\.[a-z_.]+)` ").FindAllSubmatch(b, -1) {
		listed = append(listed, string(m[1]))
	}
	for _, n := range Names() {
		there = append(there, string(n))
	}
	for _, k := range Keys() {
		there = append(there, string(k))
	}
	for _, e := range Events() {
		there = append(there, string(e))
	}
	slices.Sort(listed)
	slices.Sort(there)
	if !slices.Equal(listed, there) {
		t.Errorf("docs/traces.md lists\n%q\nthere are\n%q", listed, there)
	}
}

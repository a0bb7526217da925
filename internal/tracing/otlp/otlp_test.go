package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/aim-control/aimlock/internal/tracing"
)

func TestWanted(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		env    string
		wanted bool
		why    string
	}{
		{"", false, ""},
		{"OTEL_SERVICE_NAME=x", false, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", true, ""},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4318/v1/traces", true, ""},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=", false, ""},
		{"OTEL_TRACES_EXPORTER=otlp", true, ""},
		{"OTEL_TRACES_EXPORTER=otlp,console", true, ""},
		{"OTEL_TRACES_EXPORTER=none OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", false, ""},
		{"OTEL_TRACES_EXPORTER=zipkin", false, "by otlp only"},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_SDK_DISABLED=true", false, ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_SDK_DISABLED=TRUE", false, ""},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc", false, "http/protobuf only"},
		{"OTEL_TRACES_EXPORTER=otlp OTEL_EXPORTER_OTLP_PROTOCOL=grpc OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf", true, ""},
	} {
		env := map[string]string{}
		for _, kv := range strings.Fields(tc.env) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		wanted, why := Wanted(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		if wanted != tc.wanted || tc.why == "" && why != "" || !strings.Contains(why, tc.why) {
			t.Errorf("%s: %v, %q; want %v, %q", tc.env, wanted, why, tc.wanted, tc.why)
		}
	}
}

// receiver is a collector of the test's own.
type receiver struct {
	mu     sync.Mutex
	got    []*collector.ExportTraceServiceRequest
	header http.Header
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(req.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	msg := &collector.ExportTraceServiceRequest{}
	if err == nil {
		err = proto.Unmarshal(b, msg)
	}
	if err != nil || req.URL.Path != "/v1/traces" {
		http.Error(w, "no", http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got, r.header = append(r.got, msg), req.Header
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// By the standard variables alone a span reaches a collector, with the service that
// they name, when the process ends.
func TestSends(t *testing.T) {
	var r receiver
	srv := httptest.NewServer(&r)
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=ops")
	t.Setenv("OTEL_SERVICE_NAME", "locks-of-ops")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	p, err := New(t.Context(), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tracing.With(t.Context(), p.Tracer()))
	_, span := tracing.Start(ctx, tracing.Hold)
	span.Strs(tracing.Locks, []string{"a", "b"}).Num(tracing.Token, 7)
	span.End()
	cancel() // a process that was told to end sends all the same
	p.Close(ctx)

	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) != 1 || len(r.got[0].GetResourceSpans()) != 1 {
		t.Fatalf("got %v", r.got)
	}
	rs := r.got[0].GetResourceSpans()[0]
	attrs := map[string]string{}
	for _, kv := range rs.GetResource().GetAttributes() {
		attrs[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	if attrs["service.name"] != "locks-of-ops" || attrs["deployment.environment.name"] != "test" || r.header.Get("X-Tenant") != "ops" {
		t.Errorf("resource %v, headers %v", attrs, r.header)
	}
	s := rs.GetScopeSpans()[0].GetSpans()
	if len(s) != 1 || s[0].GetName() != "aimlock.hold" || len(s[0].GetAttributes()) != 2 {
		t.Errorf("spans %v", s)
	}
}

// A collector that is away is told of once, and holds nothing up.
func TestAway(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	var log bytes.Buffer
	p, err := New(t.Context(), hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn}))
	if err != nil {
		t.Fatal(err)
	}
	ctx := tracing.With(t.Context(), p.Tracer())
	for range 3 {
		_, span := tracing.Start(ctx, tracing.Hold)
		span.End()
		if err := p.tp.ForceFlush(ctx); err != nil {
			t.Error(err)
		}
	}
	_, span := tracing.Start(ctx, tracing.Hold)
	span.End()
	start := time.Now()
	p.Close(ctx)
	if d := time.Since(start); d > flushTimeout {
		t.Errorf("the end took %s", d)
	}
	if n := strings.Count(log.String(), "traces cannot be sent"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &log)
	}
}

// One that takes connections and never answers costs the end of a process no more
// than the bound.
func TestHangs(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	p, err := newProvider(t.Context(), stuck{hang}, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer close(hang)
	p.out.away.Store(true)
	ctx := tracing.With(t.Context(), p.Tracer())
	_, span := tracing.Start(ctx, tracing.Hold)
	span.End()
	start := time.Now()
	p.Close(ctx)
	if d := time.Since(start); d > flushTimeout {
		t.Errorf("the end took %s", d)
	}
}

// stuck is an exporter that takes what it is given as a collector does that hangs.
type stuck struct{ hang chan struct{} }

func (s stuck) ExportSpans(ctx context.Context, _ []sdktrace.ReadOnlySpan) error {
	select {
	case <-s.hang:
	case <-ctx.Done():
	}
	return ctx.Err()
}

func (s stuck) Shutdown(context.Context) error { return nil }

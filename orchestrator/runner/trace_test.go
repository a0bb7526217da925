package runner_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// gone is this process as one would be that has ended: of the same host and boot, by
// a pid that is no longer there.
func gone(t *testing.T) hostproc.Identity {
	t.Helper()
	self, err := hostproc.Self()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	self.PID = cmd.Process.Pid
	return self
}

// A rollout that finds its lock HOT, breaks it and goes through two stages is one
// trace: of the orchestrator and of the agents.
func TestTrace(t *testing.T) {
	t.Parallel()
	rec := tracetest.NewSpanRecorder()
	ctx := tracing.With(t.Context(), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec)).Tracer("t"))
	f := newFleetIn(ctx, t, 3)
	dead, err := locksmith.New(locksmith.Config{Consul: f.kv, Prefix: keys.DefaultPrefix, Self: gone(t)})
	if err != nil {
		t.Fatal(err)
	}
	old, err := dead.Acquire(t.Context(), locksmith.Request{Names: []string{config}, Operation: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Abandon(context.WithoutCancel(t.Context())) })

	const content = "a secret that no span has\n"
	in := f.input(content, orchestrator.Stage{Name: "canary", Nodes: 1}, orchestrator.Stage{Name: "rest", Percent: 100})
	in.Spec.Configs[0].Validate = &orchestrator.Command{Argv: []string{os.Args[0], "-test.run=^$"}, Timeout: 20 * time.Second}
	out, err := f.runner().Start(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	count := func(name tracing.Name) (n int) {
		for _, s := range rec.Ended() {
			if s.Name() == string(name) {
				n++
			}
		}
		return n
	}
	// The agents' spans end a moment after their answers.
	f.until("the agents' spans", func() bool { return count(tracing.Apply) == 3 })

	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, s := range rec.Ended() {
		spans[s.SpanContext().SpanID().String()] = s
	}
	attr := func(s sdktrace.ReadOnlySpan, k tracing.Key) string {
		for _, a := range s.Attributes() {
			if string(a.Key) == string(k) {
				return a.Value.String()
			}
		}
		return ""
	}
	var tree []string
	for _, s := range rec.Ended() {
		line := ""
		for p, ok := s, true; ok; p, ok = spans[p.Parent().SpanID().String()] {
			line = " > " + strings.TrimPrefix(p.Name(), "aimlock.") + line
			if p.Name() == string(tracing.Stage) {
				line = strings.Replace(line, "stage", "stage "+attr(p, tracing.StageName), 1)
			}
		}
		line = strings.TrimPrefix(line, " > ")
		if step := attr(s, tracing.StepKind); step != "" {
			line += " " + step
		}
		tree = append(tree, strings.TrimSpace(line+" "+attr(s, tracing.Outcome)))
		if s.SpanContext().TraceID() != rec.Ended()[0].SpanContext().TraceID() {
			t.Errorf("%s is of another trace", line)
		}
		all := fmt.Sprint(s.Attributes(), s.Events(), s.Status())
		if strings.Contains(all, strings.TrimSpace(content)) {
			t.Errorf("%s: %s", line, all)
		}
	}
	slices.Sort(tree)
	want := []string{
		"rollout > hold > hold.acquire > break > break.intent committed",
		"rollout > hold > hold.acquire > break > break.take committed",
		"rollout > hold > hold.acquire > break taken",
		"rollout > hold > hold.acquire acquired",
		"rollout > hold > hold.release released",
		"rollout > hold released",
		"rollout > stage canary > apply > apply.command validate done",
		"rollout > stage canary > apply applied",
		"rollout > stage canary done",
		"rollout > stage rest > apply > apply.command validate done",
		"rollout > stage rest > apply > apply.command validate done",
		"rollout > stage rest > apply applied",
		"rollout > stage rest > apply applied",
		"rollout > stage rest succeeded",
		"rollout succeeded",
	}
	if got := strings.Join(tree, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("spans:\n%s", got)
	}
	for _, s := range spans {
		switch tracing.Name(s.Name()) {
		case tracing.Rollout, tracing.Stage, tracing.Apply:
			if attr(s, tracing.RolloutID) != out.ID || attr(s, tracing.Token) != fmt.Sprint(out.Header.Token) {
				t.Errorf("%s has %v", s.Name(), s.Attributes())
			}
		case tracing.Break:
			if attr(s, tracing.Rule) != "holder-dead" || attr(s, tracing.Policy) != "default" || attr(s, tracing.Token) != fmt.Sprint(old.Token()) {
				t.Errorf("%s has %v", s.Name(), s.Attributes())
			}
		}
	}
}

// Whoever goes on with a rollout goes on with its trace; and where nothing is traced
// no record says anything of it.
func TestTraceGoesOn(t *testing.T) {
	t.Parallel()
	rec := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(rec))
	f := newFleet(t, 2)
	in := f.input("v1\n", orchestrator.Stage{Name: "canary", Nodes: 1, Promote: orchestrator.PromoteManual}, orchestrator.Stage{Name: "rest", Percent: 100})
	ctx := tracing.With(t.Context(), provider.Tracer("first"))
	first, err := f.runner().Tick(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Command(tracing.With(t.Context(), provider.Tracer("operator")), runner.Order{ID: first.ID, Verb: orchestrator.Promote}); err != nil {
		t.Fatal(err)
	}
	second, err := f.runner().Start(tracing.With(t.Context(), provider.Tracer("second")), in)
	if err != nil || second.ID != first.ID || second.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v, %v", second, err)
	}
	value := func(key string) string {
		p, err := f.kv.Get(t.Context(), key)
		if err != nil || p == nil {
			t.Fatalf("%s: %v", key, err)
		}
		return string(p.Value)
	}
	traces, roots := map[string]bool{}, 0
	for _, s := range rec.Ended() {
		traces[s.SpanContext().TraceID().String()] = true
		if !s.Parent().IsValid() {
			roots++
		}
	}
	if len(traces) != 1 || roots != 1 {
		t.Errorf("%d traces with %d roots", len(traces), roots)
	}
	for _, p := range []string{value(keys.Prefix(keys.DefaultPrefix).Rollout(first.ID)), value(keys.Prefix(keys.DefaultPrefix).Desired(config, f.nodes[0].Name))} {
		if !strings.Contains(p, `"traceparent":"00-`) {
			t.Errorf("no trace in %s", p)
		}
	}
	third, err := f.runner().Start(t.Context(), f.input("v2\n", orchestrator.Stage{Name: "all", Percent: 100}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{value(keys.Prefix(keys.DefaultPrefix).Rollout(third.ID)), value(keys.Prefix(keys.DefaultPrefix).Desired(config, f.nodes[0].Name))} {
		if strings.Contains(p, "traceparent") {
			t.Errorf("a trace in %s", p)
		}
	}
}

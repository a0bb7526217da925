package runner_test

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

// on is a runner on a host whose clock since boot reads at.
func (f *fleet) on(host string, at time.Duration) *runner.Runner {
	return runner.New(runner.Config{
		Consul: f.kv, Prefix: prefix, Locks: runner.Locksmith(f.locks()), By: "tester",
		Clock: func() (string, float64) { return host, at.Seconds() },
	})
}

// Ticks of a periodic job end a bake by the clock of a host that saw it begin,
// and not by that of another one, whatever it reads.
func TestBakeOverTicks(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = 10 * time.Minute
	in := f.input("one", bake, rest)
	for _, step := range []struct {
		host string
		at   time.Duration
		want orchestrator.Status
	}{
		{"a", time.Hour, orchestrator.Baking},
		{"b", 1000 * time.Hour, orchestrator.Baking},               // never saw it
		{"b", 1000*time.Hour + 9*time.Minute, orchestrator.Baking}, // saw 9 minutes of it
		{"c", 0, orchestrator.Baking},                              // just booted
		{"a", time.Minute, orchestrator.Baking},                    // a clock that went back
		{"", 5000 * time.Hour, orchestrator.Baking},                // no clock at all
		// c knows that 9 minutes had passed when it came.
		{"c", 61 * time.Second, orchestrator.Succeeded},
	} {
		out, err := f.on(step.host, step.at).Tick(t.Context(), in)
		if err != nil || out.Header.State != step.want {
			t.Fatalf("host %s at %s: %+v %v", step.host, step.at, out.Header, err)
		}
	}
}

// A rollout that an earlier version left in a bake has no count of it: it bakes
// anew, and ends.
func TestBakeOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bake := canary
	bake.Bake = time.Hour
	in := f.input("one", bake, rest)
	out, err := f.on("a", 0).Tick(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	h := out.Header
	began := h.BakingSince.Add(-48 * time.Hour)
	h.BakingSince, h.Baked, h.BakeMarks = &began, 0, nil
	f.put(prefix.Rollout(h.ID), &h)
	for at, want := range []orchestrator.Status{orchestrator.Baking, orchestrator.Baking, orchestrator.Succeeded} {
		out, err = f.on("a", time.Duration(at)*45*time.Minute).Tick(t.Context(), in)
		if err != nil || out.Header.State != want {
			t.Fatalf("%+v %v, want %s", out.Header, err, want)
		}
	}
}

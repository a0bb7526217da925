package host

import (
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/aim-control/aimlock/orchestrator"
)

// BenchmarkStart is what a start costs, and what of that is not the process itself:
// the supervisor, the handshake, TLS, and the first answer. One after the other, so
// that what else the machine does meets both; medians, as it does so now and then.
func BenchmarkStart(b *testing.B) {
	s := pinned(b, bySDK, "")
	var whole, bare []time.Duration
	for b.Loop() {
		begun := time.Now()
		// The same program, up to where it would begin to serve.
		cmd := exec.Command(s.Path, "fault-plugin", wrongMagic, "")
		_ = cmd.Run()
		bare = append(bare, time.Since(begun))
		h := New(Config{Specs: []Spec{s}})
		p, err := h.Plugin("p")
		if err != nil {
			b.Fatal(err)
		}
		begun = time.Now()
		if _, err := p.Info(b.Context()); err != nil {
			b.Fatal(err)
		}
		whole = append(whole, time.Since(begun))
		h.Close()
	}
	b.ReportMetric((median(whole)-median(bare))/1e6, "ms-besides-process")
	b.ReportMetric(median(bare)/1e6, "ms-process")
	b.ReportMetric(float64(whole[0]-bare[0])/1e6, "ms-besides-process-at-least")
}

// BenchmarkCall is a call through all of the host against a bare gRPC call over the
// same socket: the health check of the same connection, in turns with it.
func BenchmarkCall(b *testing.B) {
	h, _ := hosting(b, pinned(b, bySDK, ""))
	ask(b.Context(), b, h)
	p, err := h.Plugin("p")
	if err != nil {
		b.Fatal(err)
	}
	protocol, err := p.proc.gp.Client()
	if err != nil {
		b.Fatal(err)
	}
	var bares, calls []time.Duration
	for b.Loop() {
		t0 := time.Now()
		if err := protocol.Ping(); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if a := ask(b.Context(), b, h); a.Answer != orchestrator.Pass {
			b.Fatal(a.Why)
		}
		bares, calls = append(bares, t1.Sub(t0)), append(calls, time.Since(t1))
	}
	b.ReportMetric(median(bares)/1e3, "µs-bare")
	b.ReportMetric(median(calls)/1e3, "µs-call")
	b.ReportMetric(median(calls)/median(bares), "x-bare")
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2])
}

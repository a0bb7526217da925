package host

import (
	"os/exec"
	"testing"
	"time"

	"github.com/aim-control/aimlock/plugin"
)

// BenchmarkStart is what a start costs, and what of that is not the process itself:
// the supervisor, the handshake, TLS, and the first answer.
func BenchmarkStart(b *testing.B) {
	s := pinned(b, noFault, "")
	var whole, bare time.Duration
	for b.Loop() {
		begun := time.Now()
		// The same program, up to where it would begin to serve.
		cmd := exec.Command(s.Path, "fault-plugin", wrongMagic, "")
		_ = cmd.Run()
		bare += time.Since(begun)
		h := New(Config{Specs: []Spec{s}})
		p, err := h.Plugin("p")
		if err != nil {
			b.Fatal(err)
		}
		begun = time.Now()
		if _, err := p.Info(b.Context()); err != nil {
			b.Fatal(err)
		}
		whole += time.Since(begun)
		h.Close()
	}
	b.ReportMetric(float64((whole-bare).Milliseconds())/float64(b.N), "ms-besides-process/op")
	b.ReportMetric(float64(bare.Milliseconds())/float64(b.N), "ms-process/op")
}

// BenchmarkCall is a call through all of the host; that of a bare gRPC call is in
// package plugin.
func BenchmarkCall(b *testing.B) {
	h, _ := hosting(b, pinned(b, noFault, ""))
	ask(b.Context(), b, h)
	for b.Loop() {
		if _, err := h.Break(b.Context(), "p", nil, &plugin.BreakRequest{ID: "1"}); err != nil {
			b.Fatal(err)
		}
	}
}

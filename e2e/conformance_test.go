package e2e

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/conformance"
)

// The same suite as package devconsul runs, against a real Consul.
func TestConformance(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) conformance.Target {
		c := harness.StartConsul(t)
		return conformance.Target{Addr: c.Addr, MinTTL: 10 * time.Second, TTLFactor: 2, Slack: 5 * time.Second}
	})
}

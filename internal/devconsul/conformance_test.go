package devconsul_test

import (
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/conformance"
	"github.com/aim-control/aimlock/internal/devconsul"
)

func start(t *testing.T, cfg devconsul.Config) *devconsul.Server {
	t.Helper()
	s, err := devconsul.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	conformance.Run(t, func(t *testing.T) conformance.Target {
		s := start(t, devconsul.Config{SessionTTLMin: time.Second})
		return conformance.Target{Addr: s.Addr(), MinTTL: time.Second, TTLFactor: 2, Slack: 5 * time.Second}
	})
}

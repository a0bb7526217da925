package command

import (
	"context"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// Where nobody says where Nomad is, a fleet and a gate take the one of this machine,
// as its own tools do, and evidence takes none.
func TestNomadOfThisMachine(t *testing.T) {
	t.Setenv("NOMAD_ADDR", "")
	m := silent(t.Context())
	c, err := m.Nomad()
	if err != nil || c.Addr() != "http://127.0.0.1:4646" {
		t.Errorf("a fleet asks %v, %v", c, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody is really asked
	a := m.gates(nil).Ask(ctx, gates.Question{Gate: orchestrator.Gate{Name: "web", Kind: "nomad_deployment", NomadDeployment: &orchestrator.GateNomadDeployment{Job: "web"}}})
	if a.Answer != orchestrator.Unknown || !strings.Contains(a.Why, "Nomad at http://127.0.0.1:4646") {
		t.Errorf("a gate asks %+v", a)
	}
	if n, err := m.nomadEvidence(); err != nil || n != nil {
		t.Errorf("evidence asks %v, %v", n, err)
	}
	m.Config.Nomad = &NomadConfig{Address: "http://nomad.test:4646"}
	if n, err := m.nomadEvidence(); err != nil || n == nil {
		t.Errorf("evidence asks nobody: %v", err)
	}
}

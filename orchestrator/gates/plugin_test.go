package gates_test

import (
	"strings"
	"testing"

	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	set := gates.New(gates.Config{})
	good := []orchestrator.Gate{{Name: "a", Kind: orchestrator.GateConsulChecks}, {Name: "b", Kind: orchestrator.GateKindExec}}
	if err := set.Check(good); err != nil {
		t.Error(err)
	}
	err := set.Check(append(good,
		orchestrator.Gate{Name: "c", Kind: orchestrator.GateKindPlugin, Plugin: &orchestrator.GatePlugin{Name: "mine"}},
		orchestrator.Gate{Name: "d", Kind: "of tomorrow"},
	))
	if err == nil || !strings.Contains(err.Error(), `gate "c": plugin "mine" is not there`) || !strings.Contains(err.Error(), `gate "d": this version knows no gate of kind "of tomorrow"`) {
		t.Error(err)
	}
}

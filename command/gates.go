package command

import (
	"errors"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// gates makes what asks the gates of rollouts.
func (m *Meta) gates(consul *consulkv.Client) *gates.Set {
	return gates.New(gates.Config{
		Consul: consul,
		Nomad: func() (*nomadapi.Client, error) {
			// What asks something else by the default address could get an answer
			// from a Nomad that nobody meant.
			if cfg := m.nomadConfig(); !cfg.Configured() {
				return nil, errors.New("Nomad is not asked: set NOMAD_ADDR where the orchestrator runs")
			}
			return m.Nomad()
		},
		Plugin: m.Plugins().Gate, LookupEnv: m.LookupEnv, Log: m.Log.Named("gates"),
	})
}

package command

import (
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/gates"
)

// gates makes what asks the gates of rollouts.
func (m *Meta) gates(consul *consulkv.Client) *gates.Set {
	return gates.New(gates.Config{
		Consul: consul, Nomad: m.Nomad,
		Plugin: m.Plugins().Gate, LookupEnv: m.LookupEnv, Log: m.Log.Named("gates"),
	})
}

package command

import (
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// nomadConfig is how to reach Nomad: by the environment, and else by the config
// file.
func (m *Meta) nomadConfig() nomadapi.Config {
	env := nomadapi.Config{
		Address: m.Env("NOMAD_ADDR"), Token: m.Env("NOMAD_TOKEN"), Region: m.Env("NOMAD_REGION"), Namespace: m.Env("NOMAD_NAMESPACE"),
		CACert: m.Env("NOMAD_CACERT"), ClientCert: m.Env("NOMAD_CLIENT_CERT"), ClientKey: m.Env("NOMAD_CLIENT_KEY"),
		TLSServerName: m.Env("NOMAD_TLS_SERVER_NAME"),
		Log:           m.Log,
	}
	f := m.Config.Nomad
	if f == nil {
		return env
	}
	env.Address, env.Region, env.Namespace = first(env.Address, f.Address), first(env.Region, f.Region), first(env.Namespace, f.Namespace)
	env.CACert, env.TLSServerName = first(env.CACert, f.CACert), first(env.TLSServerName, f.TLSServerName)
	if env.ClientCert == "" && env.ClientKey == "" { // a pair
		env.ClientCert, env.ClientKey = f.ClientCert, f.ClientKey
	}
	env.TokenFile = f.TokenFile
	return env
}

// allocation is that which this process runs in, by the variables that Nomad gives
// its tasks.
func (m *Meta) allocation() locksmith.Allocation {
	return locksmith.Allocation{
		ID: m.Env("NOMAD_ALLOC_ID"), Region: m.Env("NOMAD_REGION"), Namespace: m.Env("NOMAD_NAMESPACE"), Job: m.Env("NOMAD_JOB_ID"),
	}
}

// Nomad makes a client of Nomad, of the one on this machine where nobody says
// which.
func (m *Meta) Nomad() (*nomadapi.Client, error) {
	cfg := m.nomadConfig()
	if m.nomadTold.Swap(true) {
		cfg.Log = nil // told once
	}
	c, err := nomadapi.New(cfg)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return c, nil
}

// nomadEvidence is nil where nobody said where Nomad is: then it is not asked.
func (m *Meta) nomadEvidence() (evidence.Nomad, error) {
	if cfg := m.nomadConfig(); !cfg.Configured() {
		return nil, nil
	}
	c, err := m.Nomad()
	if err != nil {
		return nil, err
	}
	return evidence.NewNomad(c), nil
}

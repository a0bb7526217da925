package command

import (
	"github.com/aim-control/aimlock/internal/consulkv"
)

// Consul makes the client of a command that is in groupConsul. It does not
// connect: a Consul that cannot be reached shows at the first request.
func (m *Meta) Consul() (*consulkv.Client, error) {
	cfg := consulkv.Config{
		Address:   first(m.consul.httpAddr, m.Env("CONSUL_HTTP_ADDR")),
		TokenFile: m.consul.tokenFile,
		Log:       m.Log.Named("consul"),
	}
	if cfg.TokenFile == "" {
		cfg.Token, cfg.TokenFile = m.Env("CONSUL_HTTP_TOKEN"), m.Env("CONSUL_HTTP_TOKEN_FILE")
	}
	if f := m.Config.Consul; f != nil {
		cfg.Address = first(cfg.Address, f.Address)
		if cfg.Token == "" {
			cfg.TokenFile = first(cfg.TokenFile, f.TokenFile)
		}
	}
	client, err := consulkv.New(cfg)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return client, nil
}

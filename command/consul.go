package command

import (
	"net/http"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// Consul makes the client of a command that is in groupConsul. It does not
// connect: a Consul that cannot be reached shows at the first request.
func (m *Meta) Consul() (*consulkv.Client, error) { return m.consulVia(nil) }

// tellRetry says once to whoever waits for a command why nothing happens. nil for
// what runs in the background: its log tells.
func (m *Meta) tellRetry() func(error) {
	if m.daemon {
		return nil
	}
	return func(err error) {
		m.retried.Do(func() { m.Notef("Trying again: %v\n", err) })
	}
}

// consulVia is Consul with something between the client and the network; nil:
// nothing.
func (m *Meta) consulVia(wrap func(http.RoundTripper) http.RoundTripper) (*consulkv.Client, error) {
	return m.consulWith(wrap, nil)
}

// consulWith is consulVia under a token of somebody else's, if it is not nil; an
// empty one is none at all, whatever the environment has.
func (m *Meta) consulWith(wrap func(http.RoundTripper) http.RoundTripper, token *string) (*consulkv.Client, error) {
	cfg := consulkv.Config{
		Address:   first(m.consul.httpAddr, m.Env("CONSUL_HTTP_ADDR")),
		TokenFile: m.consul.tokenFile,
		Log:       m.Log.Named("consul"),
		Wrap:      wrap,
		OnRetry:   m.tellRetry(),
	}
	if cfg.TokenFile == "" { // of the two variables the file counts first, as to Consul's own tools
		cfg.Token, cfg.TokenFile = m.Env("CONSUL_HTTP_TOKEN"), m.Env("CONSUL_HTTP_TOKEN_FILE")
	}
	if f := m.Config.Consul; f != nil {
		cfg.Address = first(cfg.Address, f.Address)
		if cfg.Token == "" {
			cfg.TokenFile = first(cfg.TokenFile, f.TokenFile)
		}
		cfg.TLS = consulkv.TLSConfig{CACert: f.CACert, ClientCert: f.ClientCert, ClientKey: f.ClientKey, ServerName: f.TLSServerName}
	}
	if token != nil {
		cfg.Token, cfg.TokenFile = *token, ""
		if *token == "" {
			// The library would take the environment's.
			cfg.Wrap = func(next http.RoundTripper) http.RoundTripper { return anonymous{next} }
		}
	}
	client, err := consulkv.New(cfg)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return client, nil
}

// anonymous sends requests without a token.
type anonymous struct{ next http.RoundTripper }

// RoundTrip sends a request without its token.
func (a anonymous) RoundTrip(req *http.Request) (*http.Response, error) {
	bare := req.Clone(req.Context())
	bare.Header.Del("X-Consul-Token")
	return a.next.RoundTrip(bare)
}

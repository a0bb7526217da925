package consulkv

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/tlsalert"
)

// TLSConfig says by which certificates Consul is known, and this client to it:
// files of PEM. The CONSUL_… variables of its own tools stand before it.
type TLSConfig struct {
	CACert, ClientCert, ClientKey string
	// ServerName is the name that Consul's certificate must be for; empty is the
	// host of the address.
	ServerName string
}

// into fills in what the environment does not say, and checks the files: each
// error names the variable and the key of the config file that it is about.
func (t TLSConfig) into(ac *api.Config, log hclog.Logger) error {
	to := &ac.TLSConfig
	if to.CAFile == "" && to.CAPath == "" {
		to.CAFile = t.CACert
	}
	if to.CertFile == "" && to.KeyFile == "" { // a pair
		to.CertFile, to.KeyFile = t.ClientCert, t.ClientKey
	}
	if to.Address == "" {
		to.Address = t.ServerName
	}
	const verify = "CONSUL_HTTP_SSL_VERIFY"
	if v := os.Getenv(verify); v != "" {
		// The package takes what it cannot read for false.
		if _, err := strconv.ParseBool(v); err != nil {
			return fmt.Errorf("%s is %q: write true or false", verify, v)
		}
	}
	if to.InsecureSkipVerify && log != nil {
		log.Warn("Consul's certificate is not verified: whoever stands between sees the token (CONSUL_HTTP_SSL_VERIFY)")
	}
	if to.CAFile != "" {
		b, err := os.ReadFile(to.CAFile)
		if err != nil {
			return fmt.Errorf("CONSUL_CACERT, or ca_cert of the config file: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(b) {
			return fmt.Errorf("CONSUL_CACERT, or ca_cert of the config file: %s has no certificate of PEM", to.CAFile)
		}
	}
	const pair = "CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, or client_cert and client_key of the config file"
	switch {
	case (to.CertFile == "") != (to.KeyFile == ""):
		return fmt.Errorf("%s: one of them is set and the other is not: they are a pair", pair)
	case to.CertFile != "":
		if _, err := tls.LoadX509KeyPair(to.CertFile, to.KeyFile); err != nil {
			return fmt.Errorf("%s: %w", pair, err)
		}
	}
	return nil
}

func isTLS(err error) bool {
	if errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	return cert || alert || record || tlsalert.Of(err) != ""
}

// tlsHint is the way out of a handshake that failed.
func tlsHint(err error) string {
	if alert := tlsalert.Of(err); alert != "" {
		if strings.Contains(alert, "certificate") {
			return "it asks for a client certificate that it knows: set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, or renew what they name"
		}
		return "it ended the handshake: check CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY and CONSUL_TLS_SERVER_NAME"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "set CONSUL_CACERT to the certificate of the authority that signed Consul's"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "set CONSUL_TLS_SERVER_NAME to a name that its certificate is for, such as server.dc1.consul"
	}
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired {
		return "renew Consul's certificate, or set this machine's clock right"
	}
	return "check CONSUL_HTTP_SSL, CONSUL_CACERT and the scheme in CONSUL_HTTP_ADDR"
}

// plainToTLS tells that HTTP was spoken to a port of HTTPS.
func plainToTLS(err error) bool {
	return err != nil && strings.Contains(err.Error(), "HTTP request to an HTTPS server")
}

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// Consul by mutual TLS, with each way to set it up, and each mistake: one error
// that names the setting, soon, and nothing is tried for ever.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca, other := harness.NewCA(t), harness.NewCA(t)
	c := harness.StartConsul(t, harness.WithHTTPS(t, ca, "127.0.0.1", "server.dc1.consul"))
	old := func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Minute) }
	me, stale, stranger := ca.Issue(nil), ca.Issue(old), other.Issue(nil)

	// A second server, whose own certificate is for another name only, and
	// something whose has expired.
	misnamed := harness.StartConsul(t, harness.WithHTTPS(t, ca, "server.dc1.consul"))

	expired := ca.Issue(old, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(expired.File, expired.Key)
	if err != nil {
		t.Fatal(err)
	}
	aged := httptest.NewUnstartedServer(http.NotFoundHandler())
	aged.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	aged.Config.ErrorLog = log.New(io.Discard, "", 0)
	aged.StartTLS()
	t.Cleanup(aged.Close)

	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, from := range map[string]string{"ca.pem": ca.File, "me.pem": me.File, "me-key.pem": me.Key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		write(name, string(b))
	}
	block := func(lines ...string) string { return "consul {\n" + strings.Join(lines, "\n") + "\n}\n" }
	whole := write("aimlock.hcl", block(`address = "https://`+c.HTTPS+`"`, `ca_cert = "ca.pem"`, `client_cert = "me.pem"`, `client_key = "me-key.pem"`))
	named := write("named.hcl", block(`address = "https://`+misnamed.HTTPS+`"`, `ca_cert = "ca.pem"`, `client_cert = "me.pem"`, `client_key = "me-key.pem"`, `tls_server_name = "server.dc1.consul"`))
	half := write("half.hcl", block(`address = "https://`+c.HTTPS+`"`, `ca_cert = "ca.pem"`, `client_cert = "me.pem"`))
	empty := write("empty.pem", "nothing\n")

	addr := "CONSUL_HTTP_ADDR=" + c.HTTPS
	ssl, trust := "CONSUL_HTTP_SSL=true", "CONSUL_CACERT="+ca.File
	cert := func(x harness.Cert) []string {
		return []string{"CONSUL_CLIENT_CERT=" + x.File, "CONSUL_CLIENT_KEY=" + x.Key}
	}
	env := func(list ...any) (out []string) {
		for _, v := range list {
			if s, ok := v.(string); ok {
				out = append(out, s)
			} else {
				out = append(out, v.([]string)...)
			}
		}
		return out
	}
	const good = "No locks."
	for name, tc := range map[string]struct {
		env  []string
		file string
		code int
		says string
	}{
		"variables":               {env(addr, ssl, trust, cert(me)), "", 0, good},
		"a scheme in the address": {env("CONSUL_HTTP_ADDR=https://"+c.HTTPS, trust, cert(me)), "", 0, good},
		"the config file":         {nil, whole, 0, good},
		"variables stand before the file": {env("CONSUL_CACERT=" + other.File), whole, 1,
			"set CONSUL_CACERT to the certificate of the authority that signed Consul's"},
		"another name":             {env("CONSUL_HTTP_ADDR="+misnamed.HTTPS, ssl, trust, cert(me), "CONSUL_TLS_SERVER_NAME=server.dc1.consul"), "", 0, good},
		"another name in the file": {nil, named, 0, good},
		"unverified":               {env(addr, ssl, "CONSUL_HTTP_SSL_VERIFY=false", cert(me)), "", 0, "Consul's certificate is not verified"},

		"the wrong authority":              {env(addr, ssl, "CONSUL_CACERT="+other.File, cert(me)), "", 1, "set CONSUL_CACERT to"},
		"no authority":                     {env(addr, ssl, cert(me)), "", 1, "set CONSUL_CACERT to"},
		"the wrong name":                   {env("CONSUL_HTTP_ADDR="+misnamed.HTTPS, ssl, trust, cert(me)), "", 1, "set CONSUL_TLS_SERVER_NAME to"},
		"another wrong name":               {env(addr, ssl, trust, cert(me), "CONSUL_TLS_SERVER_NAME=elsewhere"), "", 1, "set CONSUL_TLS_SERVER_NAME to"},
		"an expired certificate of Consul": {env("CONSUL_HTTP_ADDR="+aged.URL, trust), "", 1, "renew Consul's certificate, or set this machine's clock right"},
		"no client certificate":            {env(addr, ssl, trust), "", 1, "set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"},
		"an expired one":                   {env(addr, ssl, trust, cert(stale)), "", 1, "set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, or renew"},
		"one of a stranger":                {env(addr, ssl, trust, cert(stranger)), "", 1, "set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY"},
		"no TLS":                           {env(addr, trust, cert(me)), "", 1, "CONSUL_HTTP_SSL=true"},
		"TLS to who speaks none":           {env("CONSUL_HTTP_ADDR="+c.Addr, ssl, trust, cert(me)), "", 1, "check CONSUL_HTTP_SSL"},
		"half a pair":                      {env(addr, ssl, trust, "CONSUL_CLIENT_CERT="+me.File), "", 2, "they are a pair"},
		"half a pair in the file":          {nil, half, 2, "client_cert and client_key of the config file: one of them is set"},
		"a key that does not belong":       {env(addr, ssl, trust, "CONSUL_CLIENT_CERT="+me.File, "CONSUL_CLIENT_KEY="+stale.Key), "", 2, "CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY, or"},
		"an authority that is a hole":      {env(addr, ssl, "CONSUL_CACERT="+filepath.Join(dir, "none")), "", 2, "CONSUL_CACERT, or ca_cert of the config file: open"},
		"an authority without one":         {env(addr, ssl, "CONSUL_CACERT="+empty), "", 2, "has no certificate of PEM"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			r := harness.Run(t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(t), Args: []string{"lock", "list"}, Env: append(tc.env, "AIMLOCK_CONFIG="+tc.file)})
			if r.Code != tc.code || !strings.Contains(r.Stdout+r.Stderr, tc.says) {
				t.Errorf("exit %d, want %d and %q:\n%s%s", r.Code, tc.code, tc.says, r.Stdout, r.Stderr)
			}
			if n := strings.Count(r.Stderr, "Error:"); tc.code != 0 && n != 1 {
				t.Errorf("%d errors:\n%s", n, r.Stderr)
			}
			if took := time.Since(start); took > 8*time.Second {
				t.Errorf("it took %s: what cannot get better was tried again", took)
			}
		})
	}
	// What holds a lock renews its session by it, and a child does not inherit the
	// files' contents.
	out := harness.Output(t, cmdLimit, harness.Spec{
		Path: harness.Aimlock.Path(t), Args: []string{"lock", "exec", "job", "--", "echo", "done"}, Env: []string{"AIMLOCK_CONFIG=" + whole},
	})
	if out != "done\n" {
		t.Errorf("lock exec says %q", out)
	}
}

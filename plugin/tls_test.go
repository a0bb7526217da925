package plugin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
)

// mutual is a plugin under MutualTLS; the other tests are hosts with go-plugin's own
// AutoMTLS, and those of package host serve with it.
func mutual(t testing.TB) *goplugin.Client {
	t.Helper()
	cfg := ClientConfig(nil)
	cert, err := MutualTLS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Cmd = exec.Command(os.Args[0])
	cfg.Cmd.Env = append(os.Environ(), serveEnv+"=all", cert)
	gp := goplugin.NewClient(cfg)
	t.Cleanup(gp.Kill)
	return gp
}

// TestMutualTLS: the two ends trust each other, and nobody else: neither one who has
// no certificate nor one who has another of the same name.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	gp := mutual(t)
	c, err := Connect(t.Context(), gp)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := gate(t, c, `{"answer": "pass"}`).Ask(t.Context(), &Question{}); err != nil || a.Verdict != Pass {
		t.Error(a, err)
	}
	addr := gp.ReattachConfig().Addr
	other, err := newCert()
	if err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][]tls.Certificate{"without a certificate": nil, "with another": {other}} {
		if err := talk(t.Context(), addr, certs); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// talk is a handshake as anybody's who can reach the socket, and a read: a server
// refuses the certificates of TLS 1.3 after it.
func talk(ctx context.Context, addr net.Addr, certs []tls.Certificate) error {
	var d net.Dialer
	raw, err := d.DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	conn := tls.Client(raw, &tls.Config{Certificates: certs, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	for buf := make([]byte, 1024); ; {
		if _, err := conn.Read(buf); err != nil {
			return err
		}
	}
}

// TestMutualTLSTrustsNobodyElse: a plugin that names no certificate, or is not the one
// that it names, is not talked to.
func TestMutualTLSTrustsNobodyElse(t *testing.T) {
	t.Parallel()
	cfg := ClientConfig(nil)
	if _, err := MutualTLS(cfg); err != nil {
		t.Fatal(err)
	}
	other, err := newCert()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(other.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: cfg.TLSConfig.RootCAs, DNSName: cfg.TLSConfig.ServerName})
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) {
		t.Errorf("a certificate that nobody named: %v", err)
	}
}

// TestBadClientCert: a host that hands over no certificate is told, and the plugin does
// not serve without TLS instead.
func TestBadClientCert(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"=all", CookieKey+"="+CookieValue, clientCertEnv+"=nonsense")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "PLUGIN_CLIENT_CERT holds no certificate") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWithCert(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"1|1|unix|/tmp/s|grpc|\n":      "1|1|unix|/tmp/s|grpc|CERT\n",
		"1|1|unix|/tmp/s|grpc||true\n": "1|1|unix|/tmp/s|grpc|CERT|true\n",
		"not a handshake\n":            "not a handshake\n",
	} {
		if got := withCert(line, "CERT"); got != want {
			t.Errorf("%q becomes %q, want %q", line, got, want)
		}
	}
}

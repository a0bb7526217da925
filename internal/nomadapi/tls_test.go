package nomadapi_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/nomadapi"
)

// issued is a certificate that vouches for itself, in files.
type issued struct{ cert, key string }

func issue(t *testing.T, until time.Time) (issued, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out := issued{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	for path, b := range map[string]*pem.Block{out.cert: {Type: "CERTIFICATE", Bytes: der}, out.key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(out.cert, out.key)
	if err != nil {
		t.Fatal(err)
	}
	return out, pair
}

// A certificate that is refused is refused the next time too: it is one error,
// at once, that names the setting.
func TestRefusedCertificates(t *testing.T) {
	t.Parallel()
	own, pair := issue(t, time.Now().Add(time.Hour))
	me, _ := issue(t, time.Now().Add(time.Hour))
	stranger, _ := issue(t, time.Now().Add(time.Hour))
	old, _ := issue(t, time.Now().Add(-time.Minute))
	known := x509.NewCertPool()
	for _, c := range []issued{me, old} {
		b, err := os.ReadFile(c.cert)
		if err != nil || !known.AppendCertsFromPEM(b) {
			t.Fatal(err)
		}
	}
	const renew = "check NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY, or renew what they name"
	for name, tc := range map[string]struct {
		version uint16
		client  issued
		want    string // "": no error
	}{
		"taken":           {tls.VersionTLS13, me, ""},
		"none":            {tls.VersionTLS13, issued{}, renew},
		"none, TLS 1.2":   {tls.VersionTLS12, issued{}, "it ended the handshake: check NOMAD_CLIENT_CERT"},
		"of a stranger":   {tls.VersionTLS13, stranger, renew},
		"expired":         {tls.VersionTLS13, old, renew},
		"expired, TLS1.2": {tls.VersionTLS12, old, renew},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var tries atomic.Int32
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`[]`)) }))
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			conf := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: known, MinVersion: tls.VersionTLS12, MaxVersion: tc.version}
			srv.TLS = conf.Clone()
			srv.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { tries.Add(1); return conf, nil }
			srv.StartTLS()
			t.Cleanup(srv.Close)
			c, err := nomadapi.New(nomadapi.Config{Address: srv.URL, CACert: own.cert, ClientCert: tc.client.cert, ClientKey: tc.client.key})
			if err != nil {
				t.Fatal(err)
			}
			_, err = nodes(t, c)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			// One, and one more where the end of the connection was seen before its reason.
			if n := tries.Load(); n > 3 {
				t.Errorf("%d tries", n)
			}
		})
	}
}

// Whoever turns the verification off is told so, and a value that nobody can read
// turns nothing off.
func TestSkipVerify(t *testing.T) {
	t.Setenv("NOMAD_ADDR", "")
	for _, tc := range []struct {
		value, addr  string
		fails, warns bool
	}{
		{"", "https://h:4646", false, false},
		{"false", "https://h:4646", false, false},
		{"0", "https://h:4646", false, false},
		{"true", "https://h:4646", false, true},
		{"true", "http://h:4646", false, false},
		{"ture", "https://h:4646", true, false},
		{"yes", "http://h:4646", true, false},
	} {
		t.Setenv("NOMAD_SKIP_VERIFY", tc.value)
		var out bytes.Buffer
		_, err := nomadapi.New(nomadapi.Config{Address: tc.addr, Log: hclog.New(&hclog.LoggerOptions{Output: &out})})
		if (err != nil) != tc.fails || tc.fails && !strings.Contains(err.Error(), "NOMAD_SKIP_VERIFY is \""+tc.value+"\": write true or false") {
			t.Errorf("%q: %v", tc.value, err)
		}
		if got := strings.Contains(out.String(), "Nomad's certificate is not verified"); got != tc.warns {
			t.Errorf("%q at %s: %q", tc.value, tc.addr, out.String())
		}
	}
}

package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is an authority that signs certificates for a test.
type CA struct {
	// File is its certificate.
	File string

	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	made int64
}

// Cert is a certificate and its key, as files of PEM.
type Cert struct{ File, Key string }

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t, dir: t.TempDir()}
	tmpl := ca.template("authority")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	ca.cert = tmpl
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.File = ca.write("ca.pem", "CERTIFICATE", der)
	return ca
}

// Issue signs a certificate for the given names and addresses. change may alter it
// before; nil: as it is, for an hour.
func (ca *CA) Issue(change func(*x509.Certificate), names ...string) Cert {
	ca.t.Helper()
	tmpl := ca.template("issued")
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	if change != nil {
		change(tmpl)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return Cert{ca.write(fmt.Sprintf("%d.pem", ca.made), "CERTIFICATE", der), ca.write(fmt.Sprintf("%d-key.pem", ca.made), "EC PRIVATE KEY", secret)}
}

func (ca *CA) template(name string) *x509.Certificate {
	ca.made++
	return &x509.Certificate{
		SerialNumber: big.NewInt(ca.made), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func (ca *CA) write(name, kind string, der []byte) string {
	ca.t.Helper()
	path := filepath.Join(ca.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		ca.t.Fatal(err)
	}
	return path
}

// WithHTTPS has the agent serve its API by TLS, too, on a port that HTTPS tells,
// to clients that show a certificate of the authority. Its own is for names.
func WithHTTPS(t testing.TB, ca *CA, names ...string) Option {
	t.Helper()
	cert := ca.Issue(nil, names...)
	return func(o *options) {
		o.https = true
		o.hcl = append(o.hcl, fmt.Sprintf(`tls { https {
			ca_file = %q
			cert_file = %q
			key_file = %q
			verify_incoming = true
		} }`, ca.File, cert.File, cert.Key))
	}
}

package plugin

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"strings"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
)

// clientCertEnv is go-plugin's: the certificate of the host, in PEM.
const clientCertEnv = "PLUGIN_CLIENT_CERT"

// MutualTLS gives cfg what go-plugin's AutoMTLS does, on the curve P-256 instead of
// P-521, and returns the variable that the plugin has to find in its environment.
// On the wire the two are one: each end may be of either. It is there for the time
// of a start, of which P-521 takes the most.
func MutualTLS(cfg *goplugin.ClientConfig) (env string, err error) {
	cert, err := newCert()
	if err != nil {
		return "", err
	}
	cfg.AutoMTLS = false
	cfg.TLSConfig = &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		ServerName:   certName,
		// go-plugin puts the one certificate here that the handshake names. Without one
		// nobody is trusted, and not those whom the system trusts.
		RootCAs: x509.NewCertPool(),
	}
	return clientCertEnv + "=" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})), nil
}

// mutualTLS is the plugin's end: go-plugin is given the TLS, so that it makes none, and
// says the certificate itself in the handshake, which go-plugin leaves empty then.
func mutualTLS(cfg *goplugin.ServeConfig, clientPEM string) error {
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM([]byte(clientPEM)) {
		return errors.New(clientCertEnv + " holds no certificate")
	}
	cert, err := newCert()
	if err != nil {
		return err
	}
	if err := announce(base64.RawStdEncoding.EncodeToString(cert.Certificate[0])); err != nil {
		return err
	}
	cfg.TLSProvider = func() (*tls.Config, error) {
		return &tls.Config{
			Certificates: []tls.Certificate{cert},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    clients,
			MinVersion:   tls.VersionTLS12,
		}, nil
	}
	return nil
}

// announce puts cert into the line that go-plugin is about to print.
func announce(cert string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	out := os.Stdout
	os.Stdout = w
	go func() {
		in := bufio.NewReader(r)
		if line, err := in.ReadString('\n'); err == nil {
			_, _ = out.WriteString(withCert(line, cert))
		}
		// go-plugin sets os.Stdout to another pipe now.
		_, _ = io.Copy(io.Discard, in)
	}()
	return nil
}

// withCert is a handshake, CORE|VERSION|NETWORK|ADDRESS|PROTOCOL|CERT and perhaps more,
// with cert in its place.
func withCert(line, cert string) string {
	parts := strings.Split(strings.TrimSuffix(line, "\n"), "|")
	if len(parts) >= 6 && parts[5] == "" {
		parts[5] = cert
	}
	return strings.Join(parts, "|") + "\n"
}

// certName is what go-plugin's hosts expect a certificate to be of.
const certName = "localhost"

// certLife is that of go-plugin's certificates: a process may run for years.
const certLife = 262980 * time.Hour

// newCert makes a certificate for one process. Its key is never written anywhere.
func newCert() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: certName},
		DNSNames:     []string{certName},
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		// Both ends look at it at once, on one clock that may be set meanwhile.
		NotBefore:             now.Add(-30 * time.Second),
		NotAfter:              now.Add(certLife),
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

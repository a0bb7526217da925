package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
)

// nomadCerts makes a CA, a certificate of a server and one of a client in dir.
func nomadCerts(t *testing.T, dir string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	type pair struct {
		cert *x509.Certificate
		key  *ecdsa.PrivateKey
	}
	issue := func(name string, by *pair, mod func(*x509.Certificate)) *pair {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		}
		mod(c)
		if by == nil {
			by = &pair{c, key}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
		if err != nil {
			t.Fatal(err)
		}
		b, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".pem", "CERTIFICATE", der)
		write(name+"-key.pem", "PRIVATE KEY", b)
		return &pair{c, key}
	}
	authority := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }
	ca := issue("ca", nil, authority)
	issue("other-ca", nil, authority)
	issue("server", ca, func(c *x509.Certificate) {
		c.DNSNames, c.IPAddresses = []string{"server.global.nomad", "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	})
	issue("stranger", nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	issue("client", ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
}

// TestNomadSecure asks a Nomad that wants a client's certificate and a token: with
// what it wants, by the environment and by the config file, and with what it does
// not. Each refusal says the way out, and none shows a token.
func TestNomadSecure(t *testing.T) {
	t.Parallel()
	bin, dir := nomadBin(t), t.TempDir()
	nomadCerts(t, dir)
	ports := harness.FreePorts(t, 3)
	cert, err := tls.LoadX509KeyPair(dir+"/client.pem", dir+"/client-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	b, err := os.ReadFile(dir + "/ca.pem")
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatal(err)
	}
	c := &nomadCluster{
		t: t, addr: fmt.Sprintf("https://127.0.0.1:%d", ports[0]),
		http: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}},
	}
	nomadAgent(t, bin, dir, "server", nomadServer+fmt.Sprintf(`acl {
  enabled                  = true
  token_min_expiration_ttl = "1s"
}
tls {
  http                = true
  verify_https_client = true
  ca_file             = "%[1]s/ca.pem"
  cert_file           = "%[1]s/server.pem"
  key_file            = "%[1]s/server-key.pem"
}
`, dir), ports)
	c.bootstrap()

	least, err := os.ReadFile(filepath.Join(harness.Root(t), "examples/nomad/acl/nomad.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	token := c.newToken("least", string(least), 0)
	expired := c.newToken("expired", string(least), time.Second)
	jobsOnly := c.newToken("jobs", `namespace "*" { capabilities = ["read-job"] }`, 0)
	for name, text := range map[string]string{
		"token": token + "\n", "app.conf": "x\n",
		"app.hcl": `rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/etc/app.conf"
  }
  fleet {
    nomad {
    }
  }
}
`,
		"aimlock.hcl": fmt.Sprintf(`nomad {
  address         = %q
  region          = "global"
  token_file      = "token"
  ca_cert         = "ca.pem"
  client_cert     = "client.pem"
  client_key      = "client-key.pem"
  tls_server_name = "server.global.nomad"
}
`, c.addr),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	consul, _ := embedded(t)
	// plan lists the clients of Nomad; that there are none, only who may see them is
	// told.
	plan := func(env []string, args ...string) string {
		t.Helper()
		r := harness.Run(t, cmdLimit, harness.Spec{
			Path: harness.Aimlock.Path(t), Args: append(append([]string{"rollout", "plan"}, args...), "app.hcl"), Dir: dir,
			Env: append([]string{"CONSUL_HTTP_ADDR=" + consul.Addr()}, env...),
		})
		for _, secret := range []string{token, expired, jobsOnly} {
			if strings.Contains(r.Stdout+r.Stderr, secret) {
				t.Errorf("a token is shown: %s%s", r.Stdout, r.Stderr)
			}
		}
		if r.Code != 1 && r.Code != 2 {
			t.Errorf("exit %d, %s", r.Code, r.Stderr)
		}
		return r.Stderr
	}
	good := map[string]string{
		"NOMAD_ADDR": c.addr, "NOMAD_TOKEN": token, "NOMAD_CACERT": dir + "/ca.pem", "NOMAD_CLIENT_CERT": dir + "/client.pem", "NOMAD_CLIENT_KEY": dir + "/client-key.pem",
	}
	const none = "it is empty"
	harness.Eventually(t, nomadLimit, "a token is expired", func() bool {
		c := *c
		c.token = expired
		return c.get("/v1/nodes", nil) != nil
	})
	for name, tc := range map[string]struct {
		change map[string]string
		want   []string
	}{
		"all that it wants":         {nil, []string{none}},
		"the name of a server":      {map[string]string{"NOMAD_TLS_SERVER_NAME": "server.global.nomad"}, []string{none}},
		"the name of another":       {map[string]string{"NOMAD_TLS_SERVER_NAME": "server.mars.nomad"}, []string{"check NOMAD_TLS_SERVER_NAME"}},
		"no CA":                     {map[string]string{"NOMAD_CACERT": ""}, []string{"check NOMAD_CACERT"}},
		"another CA":                {map[string]string{"NOMAD_CACERT": dir + "/other-ca.pem"}, []string{"check NOMAD_CACERT"}},
		"a CA that is not there":    {map[string]string{"NOMAD_CACERT": dir + "/nowhere.pem"}, []string{"nowhere.pem"}},
		"no certificate of its own": {map[string]string{"NOMAD_CLIENT_CERT": "", "NOMAD_CLIENT_KEY": ""}, []string{"check NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY"}},
		"a stranger's certificate":  {map[string]string{"NOMAD_CLIENT_CERT": dir + "/stranger.pem", "NOMAD_CLIENT_KEY": dir + "/stranger-key.pem"}, []string{"check NOMAD_CLIENT_CERT and NOMAD_CLIENT_KEY, or renew"}},
		"trust in anybody":          {map[string]string{"NOMAD_CACERT": "", "NOMAD_SKIP_VERIFY": "true"}, []string{none, "Nomad's certificate is not verified"}},
		"trust in a typo":           {map[string]string{"NOMAD_SKIP_VERIFY": "ture"}, []string{`NOMAD_SKIP_VERIFY is "ture"`}},
		"no TLS":                    {map[string]string{"NOMAD_ADDR": strings.Replace(c.addr, "https", "http", 1)}, []string{"NOMAD_ADDR must begin with https://"}},
		"no token":                  {map[string]string{"NOMAD_TOKEN": ""}, []string{"HTTP 403: Permission denied", "check NOMAD_TOKEN"}},
		"no such token":             {map[string]string{"NOMAD_TOKEN": "5ec2e700-0000-4000-8000-000000000000"}, []string{"HTTP 403: Permission denied", "is not known or has expired"}},
		"an expired token":          {map[string]string{"NOMAD_TOKEN": expired}, []string{"HTTP 403: Permission denied", "is not known or has expired"}},
		"a token for jobs only":     {map[string]string{"NOMAD_TOKEN": jobsOnly}, []string{"HTTP 403", "docs/nomad.md"}},
		"another region":            {map[string]string{"NOMAD_REGION": "mars"}, []string{"No path to region", "check the region and NOMAD_REGION"}},
	} {
		var env []string
		for k, v := range good {
			if _, ok := tc.change[k]; !ok {
				env = append(env, k+"="+v)
			}
		}
		for k, v := range tc.change {
			env = append(env, k+"="+v)
		}
		out := plan(env)
		for _, want := range tc.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: want %q in: %s", name, want, out)
			}
		}
	}
	if out := plan(nil, "-config", "aimlock.hcl"); !strings.Contains(out, none) {
		t.Errorf("by the config file: %s", out)
	}
	if out := plan([]string{"NOMAD_REGION=mars"}, "-config", "aimlock.hcl"); !strings.Contains(out, "No path to region") {
		t.Errorf("the environment does not stand before the config file: %s", out)
	}
}

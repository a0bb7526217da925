package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// An agent reads a secret with its own token. Without key:read on the key the
// node fails and says what it needs; with it, the value is in the file and
// nowhere in Consul.
func TestSecretByACL(t *testing.T) {
	const management, value, key = "a5b1c7a2-7b3e-4b8e-9a5e-0d1a2b3c4d5e", "correct-horse-battery", "app/db/password"
	c := harness.StartConsul(t, harness.WithACL(management))
	boss := c.Client()
	prefix := keys.Prefix("aimlock/")
	rules := `
		key_prefix "aimlock/configs/" { policy = "read" }
		key_prefix "aimlock/desired/" { policy = "read" }
		key_prefix "aimlock/actual/" { policy = "write" }
		key_prefix "aimlock/locks/" { policy = "read" }
		service_prefix "aimlock-agent" { policy = "write" }
		node_prefix "" { policy = "read" }
		agent_prefix "" { policy = "read" }`
	policy, _, err := boss.ACL().PolicyCreate(&api.ACLPolicy{Name: "agent", Rules: rules}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := boss.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string, v []byte) {
		t.Helper()
		if _, err := boss.KV().Put(&api.KVPair{Key: key, Value: v}, nil); err != nil {
			t.Fatal(err)
		}
	}
	put(key, []byte(value))
	text := "password = " + secrets.Placeholder("db", "") + "\n"
	h := sha256.Sum256([]byte(text))
	sum := hex.EncodeToString(h[:])
	put(prefix.ConfigChunk("app.conf", sum, 0), []byte(text))

	kv, err := consulkv.New(consulkv.Config{Address: c.Addr, Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := agent.New(agent.Config{Node: "n1", StateDir: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root"), Consul: kv, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })

	order := func(o orchestrator.Order) *records.Actual {
		t.Helper()
		put(prefix.Desired("app.conf", "n1"), records.Encode(&records.Desired{
			Version: records.Version, Revision: sum[:12], SHA256: sum, Size: int64(len(text)), Chunks: 1, Order: o, Rollout: "r",
			Destination: "/etc/app.conf", Mode: "0600", Action: records.ActionApplyWith, Requires: []string{records.FeatureSecrets},
			Secrets: []records.Secret{{Name: "db", ConsulKey: key}},
		}))
		var rep records.Actual
		harness.Eventually(t, 30*time.Second, "the node's answer to "+o.String(), func() bool {
			p, _, err := boss.KV().Get(prefix.Actual("app.conf", "n1"), nil)
			rep = records.Actual{}
			return err == nil && p != nil && records.Decode(p.Key, p.Value, &rep) == nil && rep.Order == o
		})
		return &rep
	}
	if rep := order(orchestrator.Order{Token: 1}); rep.Result != records.ResultFailed || !strings.Contains(rep.Error, key) || !strings.Contains(rep.Error, "key:read") {
		t.Fatalf("without the right: %s, %s", rep.Result, rep.Error)
	}
	policy.Rules += "\n" + `key "` + key + `" { policy = "read" }`
	if _, _, err := boss.ACL().PolicyUpdate(policy, nil); err != nil {
		t.Fatal(err)
	}
	if rep := order(orchestrator.Order{Token: 2}); rep.Result != records.ResultApplied || rep.SHA256 != sum {
		t.Fatalf("with the right: %s, %s, %s", rep.Result, rep.SHA256, rep.Error)
	}
	path := filepath.Join(dir, "root", "etc", "app.conf")
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "password = "+value+"\n" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", fi, err)
	}
	list, _, err := boss.KV().List(string(prefix), nil)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	whole := sha256.Sum256(b)
	for _, p := range list {
		if s := string(p.Value); strings.Contains(s, value) || strings.Contains(s, hex.EncodeToString(whole[:])[:12]) {
			t.Errorf("%s tells of the secret", p.Key)
		}
	}
}

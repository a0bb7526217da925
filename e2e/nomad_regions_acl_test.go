package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	fleets "github.com/aim-control/aimlock/orchestrator/fleet"
)

// startNomadRegionsACL starts two regions that ask for tokens: east, which makes
// policies and tokens for both, and west, which copies them and has the one client.
func startNomadRegionsACL(t *testing.T) (east, west *nomadCluster) {
	t.Helper()
	bin, dir := nomadBin(t), t.TempDir()
	t.Cleanup(func() { cleanNomad(t, dir) })
	ports := harness.FreePorts(t, 9)
	at := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	server := func(region, join, acl string) string {
		return fmt.Sprintf("region = %q\nserver {\n  enabled = true\n  bootstrap_expect = 1\n  authoritative_region = \"east\"\n%s}\nacl {\n  enabled = true\n%s}\n", region, join, acl)
	}
	east = &nomadCluster{t: t, dir: dir, region: "east", addr: at(ports[0])}
	west = &nomadCluster{t: t, dir: dir, region: "west", addr: at(ports[3])}
	nomadAgent(t, bin, dir, "server-east", server("east", "", ""), ports[:3])
	east.bootstrap() // of all regions
	var copies struct{ SecretID string }
	if err := east.call(http.MethodPut, "/v1/acl/token", map[string]any{"Name": "replication", "Type": "management", "Global": true}, &copies); err != nil {
		t.Fatal(err)
	}
	nomadAgent(t, bin, dir, "server-west", server("west",
		fmt.Sprintf("  server_join {\n    retry_join = [\"127.0.0.1:%d\"]\n  }\n", ports[2]),
		fmt.Sprintf("  replication_token = %q\n", copies.SecretID)), ports[3:6])
	west.client = nomadAgent(t, bin, dir, "client", "region = \"west\"\nacl {\n  enabled = true\n}\n"+fmt.Sprintf(nomadClient, ports[4], nomadDenied), ports[6:])
	west.token = east.token
	west.ready(1)
	harness.Eventually(t, nomadLimit, "east asks west", func() bool { return east.get("/v1/nodes?region=west", nil) == nil })
	return east, west
}

// token makes one by the policy of the examples in the region that makes them, and
// waits until west knows it if it shall.
func regionToken(t *testing.T, east, west *nomadCluster, name string, global bool) string {
	t.Helper()
	least, err := os.ReadFile(filepath.Join(harness.Root(t), "examples/nomad/acl/nomad.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := east.call(http.MethodPut, "/v1/acl/policy/aimlock-operator", map[string]any{"Name": "aimlock-operator", "Rules": string(least)}, nil); err != nil {
		t.Fatal(err)
	}
	var token struct{ SecretID string }
	in := map[string]any{"Name": name, "Type": "client", "Policies": []string{"aimlock-operator"}, "Global": global}
	if err := east.call(http.MethodPut, "/v1/acl/token", in, &token); err != nil {
		t.Fatal(err)
	}
	there := *west
	there.token = token.SecretID
	if global {
		harness.Eventually(t, nomadLimit, "west knows the token and its policy", func() bool { return there.get("/v1/nodes", nil) == nil })
	}
	return token.SecretID
}

// TestNomadRegionsACL asks the Nomad of one region about what is in another, where
// both ask for tokens: by the least rights of the examples a token must be global,
// and one that is not makes what rests on it unknown and breaks nothing.
func TestNomadRegionsACL(t *testing.T) {
	t.Parallel()
	east, west := startNomadRegionsACL(t)
	global, local := regionToken(t, east, west, "global", true), regionToken(t, east, west, "local", false)
	consul, client := embedded(t)
	kv, aimlock := client.KV(), harness.Aimlock.Path(t)
	id := west.run("holder", "batch", "env", "CONSUL_HTTP_ADDR="+consul.Addr(), aimlock, "lock", "exec", "app.conf", "--", "sleep", "600")
	var rec records.Holder
	harness.Eventually(t, nomadLimit, "the task in west holds the lock", func() bool {
		p, _, err := kv.Get(keys.Prefix("aimlock/").Lock("app.conf"), nil)
		return err == nil && p != nil && p.Session != "" && json.Unmarshal(p.Value, &rec) == nil
	})
	harness.Eventually(t, nomadLimit, "the servers of west have heard that it runs", func() bool {
		var alloc struct{ ClientStatus string }
		return west.get("/v1/allocation/"+id, &alloc) == nil && alloc.ClientStatus == "running"
	})
	if rec.AllocID != id || rec.AllocRegion != "west" {
		t.Errorf("the holder record names %+v, want allocation %s of west", rec, id)
	}
	ref := evidence.AllocRef{ID: id, Region: "west"}
	const how = "two regions of one server each with ACLs; that of east, where tokens are made, is asked about west; the policy of the token is examples/nomad/acl/nomad.hcl, and it is "

	// A token that is not global is none of west.
	narrow := east.recorder(how+"not global", local)
	if a, _, err := evidence.NewNomad(narrow.client).Alloc(t.Context(), ref, evidence.Since{}); err == nil || !strings.Contains(err.Error(), "HTTP 403") || !strings.Contains(err.Error(), "global") {
		t.Errorf("by a token of east alone: %+v, %v", a, err)
	}
	narrow.keep("region-acl-local")

	wide := east.recorder(how+"global", global)
	n := evidence.NewNomad(wide.client)
	if a, _, err := n.Alloc(t.Context(), ref, evidence.Since{}); err != nil || a.ClientStatus != "running" || a.Job != "holder" || a.NodeStatus != "ready" {
		t.Errorf("by a global token: %+v, %v", a, err)
	}
	wide.keep("region-acl-alloc")
	none := evidence.AllocRef{ID: "00000000-0000-4000-8000-000000000000", Region: "west"}
	if a, _, err := n.Alloc(t.Context(), none, evidence.Since{}); err != nil || !a.Gone {
		t.Errorf("of one that is gone: %+v, %v", a, err)
	}
	wide.keep("region-acl-gone")
	f := &fleets.Fleet{
		Meta: true, Nomad: func() (*nomadapi.Client, error) { return wide.client, nil },
		Sources: []orchestrator.Source{{Nomad: &orchestrator.NomadSource{Region: "west"}}},
	}
	if s, err := f.Survey(t.Context(), nil); err != nil || len(s.Nodes) != 1 || s.Nodes[0].Meta["rack"] != "r1" {
		t.Errorf("the clients of west: %+v, %v", s, err)
	}

	// The whole way, by programs that are told of east alone.
	file := filepath.Join(t.TempDir(), "policy.hcl")
	policy := strings.NewReplacer("alloc-lost", "runs", `"lost"`, `"running"`).Replace(lostPolicy)
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(token string, args ...string) string {
		t.Helper()
		r := harness.Run(t, cmdLimit, harness.Spec{Path: aimlock, Args: args, Env: []string{"CONSUL_HTTP_ADDR=" + consul.Addr(), "NOMAD_ADDR=" + east.addr, "NOMAD_TOKEN=" + token}})
		if strings.Contains(r.Stdout+r.Stderr, token) {
			t.Errorf("%q shows a token: %s%s", args, r.Stdout, r.Stderr)
		}
		return r.Stdout + r.Stderr
	}
	if out := run(local, "lock", "status", "-json", "-policy", file, "app.conf"); !strings.Contains(out, `"state": "UNKNOWN"`) || !strings.Contains(out, "HTTP 403") {
		t.Errorf("by a token of east alone the lock is\n%s", out)
	}
	run(local, "locksmith", "-once", "-policy", file)
	if breaks, _, err := kv.List("aimlock/breaks/app.conf/", nil); err != nil || len(breaks) != 0 {
		t.Fatalf("by a token of east alone: %d breaks, %v", len(breaks), err)
	}
	out := run(global, "locksmith", "-once", "-policy", file)
	held := &nomadHold{t: t, kv: kv, alloc: id, region: "west", pid: rec.PID}
	if b := held.broken(); b.Rule != "runs" || len(b.Steps) == 0 || b.Steps[0].Step != "nomad_stop" || b.Steps[0].Result != "done" {
		t.Errorf("the break is %+v\n%s", b, out)
	}
	held.ends()
	harness.Eventually(t, nomadLimit, "the allocation in west is stopped", func() bool {
		a, _, err := n.Alloc(t.Context(), ref, evidence.Since{})
		return err == nil && a.DesiredStatus == "stop" && a.ClientStatus == "complete"
	})
}

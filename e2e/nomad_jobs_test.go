package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh ([a-z]+)\n(.*?)^```$")

// readme are the commands that a README lets its reader run, by the word beside
// "sh", in their order.
func readme(t *testing.T, path string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, m := range shellBlock.FindAllStringSubmatch(string(b), -1) {
		out[m[1]] = append(out[m[1]], m[2])
	}
	return out
}

// nomadJobs is a Nomad and a Consul that both ask for tokens, and a shell in a copy
// of examples/nomad.
type nomadJobs struct {
	*nomadCluster
	consul *harness.Consul
	dir    string
	env    []string
}

// startNomadJobs adds config to that of the one agent of Nomad.
func startNomadJobs(t *testing.T, config string) *nomadJobs {
	t.Helper()
	bin := nomadBin(t)
	// The path of a task's socket is bounded by the kernel: 107 bytes.
	dir, err := os.MkdirTemp("", "nmd") //nolint:usetesting // that of the test is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cleanNomad(t, dir)
		_ = os.RemoveAll(dir)
	})
	ports := harness.FreePorts(t, 3)
	consul := harness.StartConsul(t, harness.WithACL("root"))
	c := &nomadCluster{t: t, region: "global", addr: fmt.Sprintf("http://127.0.0.1:%d", ports[0])}
	c.client = nomadAgent(t, bin, dir, "a", nomadServer+fmt.Sprintf(nomadClient, ports[1], nomadDenied)+fmt.Sprintf(`acl {
  enabled = true
}
consul {
  address = %q
  token   = "root"
}
`, consul.Addr)+config, ports)
	c.bootstrap()
	c.ready(1)
	j := &nomadJobs{nomadCluster: c, consul: consul, dir: filepath.Join(dir, "examples")}
	if err := os.CopyFS(j.dir, os.DirFS(filepath.Join(harness.Root(t), "examples/nomad"))); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bin")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"nomad": bin, "consul": harness.ConsulBin.Path(t), "aimlock": harness.Aimlock.Path(t)} {
		if err := os.Symlink(target, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	j.env = append(consul.Env(), "PATH="+path+":"+os.Getenv("PATH"), "NOMAD_ADDR="+c.addr, "NOMAD_TOKEN="+c.token, "NOMAD_VAR_consul_acl=true",
		"NOMAD_VAR_consul_addr="+consul.Addr, "NOMAD_VAR_aimlock="+harness.Aimlock.Path(t), "NOMAD_VAR_count=1",
		"NOMAD_VAR_root="+filepath.Join(dir, "root"), "NOMAD_VAR_state_dir="+filepath.Join(dir, "state"))
	// Tasks outlive the client that is killed at the end.
	t.Cleanup(func() {
		for _, job := range []string{"aimlock-tick", "aimlock-sweep", "aimlock-locksmith", "aimlock-agent", "victim"} {
			_ = c.call(http.MethodDelete, "/v1/job/"+job+"?purge=true", nil, nil)
		}
	})
	return j
}

// sh runs a script that must succeed.
func (j *nomadJobs) sh(script string) string {
	j.t.Helper()
	return harness.Output(j.t, nomadLimit, harness.Spec{Path: "/bin/bash", Args: []string{"-euo", "pipefail", "-c", script}, Dir: j.dir, Env: j.env})
}

// holder waits until a lock is held, and returns the record.
func (j *nomadJobs) holder(name string) records.Holder {
	j.t.Helper()
	var rec records.Holder
	kv := j.consul.Client().KV()
	harness.Eventually(j.t, nomadLimit, "lock "+name+" is held", func() bool {
		p, _, err := kv.Get(keys.Prefix("aimlock/").Lock(name), nil)
		return err == nil && p != nil && p.Session != "" && json.Unmarshal(p.Value, &rec) == nil
	})
	return rec
}

// launch is one launch of the periodic job that has ended.
type launch struct{ ID, JobID, ClientStatus string }

func (j *nomadJobs) launches(job string) []launch {
	j.t.Helper()
	var all, out []launch
	if err := j.get("/v1/allocations", &all); err != nil {
		j.t.Fatal(err)
	}
	for _, l := range all {
		if strings.HasPrefix(l.JobID, job+"/") {
			out = append(out, l)
		}
	}
	return out
}

func (j *nomadJobs) logs(l launch) string {
	return j.sh("nomad alloc logs " + l.ID + " 2>/dev/null; nomad alloc logs -stderr " + l.ID + " 2>/dev/null")
}

// TestNomadJobs follows the README of examples/nomad word by word: the rights, the
// agent as a system job, the locksmith as a service, a rollout by periodic ticks to
// its end, and two ticks at once.
func TestNomadJobs(t *testing.T) {
	t.Parallel()
	j := startNomadJobs(t, "")
	blocks := readme(t, filepath.Join(j.dir, "README.md"))
	if len(blocks["rights"]) != 2 || len(blocks["run"]) != 3 || len(blocks["sweep"]) != 1 || len(blocks["status"]) != 1 || len(blocks["docker"]) != 2 {
		t.Fatalf("the README has other steps: %v", blocks)
	}
	j.sh("nomad fmt -check .; for f in {agent,tick,locksmith,locksmith-once}{,-docker}.nomad.hcl; do nomad job validate $f; done; for f in {agent,tick,locksmith,locksmith-once}.nomad.hcl; do nomad job validate -var consul_acl=false $f; done")
	for _, b := range blocks["rights"] {
		j.sh(b)
	}

	j.sh(blocks["run"][0])
	waitForAgents(t, j.consul, []string{"a"})
	j.sh(blocks["run"][1])
	j.leads()
	j.sh(blocks["run"][2])
	j.drives("succeeded")
	j.delivered(j.read("rollout/aim_lock_config.conf"))
	for _, b := range blocks["status"] {
		if out := j.sh(b); !strings.Contains(out, "succeeded") {
			t.Errorf("status: %s", out)
		}
	}

	twoTicks(j)
	j.drives("succeeded")
	j.delivered("aim_lock_enabled = false\n")

	j.sh(blocks["sweep"][0])
	j.sweeps()
	rightsOfNomad(j)
}

// force launches a tick.
func (j *nomadJobs) force() {
	j.t.Helper()
	j.sh("nomad job periodic force aimlock-tick")
}

// leads waits for a locksmith that leads, as a task.
func (j *nomadJobs) leads() {
	j.t.Helper()
	if h := j.holder("aimlock.locksmith"); h.AllocJob != "aimlock-locksmith" || h.AllocID == "" || h.AllocNamespace != "default" || h.AllocRegion != "global" {
		j.t.Errorf("the locksmith that leads is %+v", h)
	}
}

// drives forces launches, a second apart at least since Nomad names them by the
// second, until the rollout is as it shall be.
func (j *nomadJobs) drives(want string) {
	j.t.Helper()
	state := func() string {
		var st struct{ State string }
		if r := harness.Run(j.t, cmdLimit, harness.Spec{Path: harness.Aimlock.Path(j.t), Args: []string{"rollout", "status", "-json", "aim-lock-config"}, Env: j.env}); r.Code == 0 {
			_ = json.Unmarshal([]byte(r.Stdout), &st)
		}
		return st.State
	}
	next, look := time.Now().Add(3*time.Second), time.Now()
	harness.Eventually(j.t, nomadLimit, "the ticks bring the rollout to "+want, func() bool {
		if time.Now().Before(look) {
			return false
		}
		if state() == want {
			return true
		}
		look = time.Now().Add(time.Second)
		if time.Now().After(next) {
			j.force()
			next = time.Now().Add(3 * time.Second)
		}
		return false
	})
}

// read is a file of the examples.
func (j *nomadJobs) read(name string) string {
	j.t.Helper()
	b, err := os.ReadFile(filepath.Join(j.dir, name))
	if err != nil {
		j.t.Fatal(err)
	}
	return string(b)
}

// delivered checks what the client has.
func (j *nomadJobs) delivered(content string) {
	j.t.Helper()
	if b, err := os.ReadFile(filepath.Join(filepath.Dir(j.dir), "root/etc/aim/aim_lock_config.conf")); err != nil || string(b) != content {
		j.t.Errorf("the client has %q, %v", b, err)
	}
}

// sweeps launches a sweep and sees it look at the lock.
func (j *nomadJobs) sweeps() {
	j.t.Helper()
	j.sh("nomad job periodic force aimlock-sweep")
	harness.Eventually(j.t, nomadLimit, "the sweep is done", func() bool {
		l := j.launches("aimlock-sweep")
		return len(l) > 0 && l[0].ClientStatus == "complete"
	})
	for _, l := range j.launches("aimlock-sweep") {
		if out := j.logs(l); !strings.Contains(out, "aim_lock_config.conf") {
			j.t.Errorf("the sweep says %s", out)
		}
	}
}

// twoTicks has two launches of one tick at the same time: the node's check waits, so
// that the first works on while the second comes.
func twoTicks(j *nomadJobs) {
	j.t.Helper()
	sure := filepath.Join(filepath.Dir(j.dir), "sure")
	j.sh(fmt.Sprintf(`printf 'aim_lock_enabled = false\n' > rollout/aim_lock_config.conf
sed -i 's|^    source .*|&\n    validate = ["sh", "-c", "until test -e %s; do sleep 0.1; done"]|' rollout/rollout.hcl
nomad job run tick.nomad.hcl`, sure))
	before := len(j.launches("aimlock-tick"))
	j.force()
	first := j.holder("aim_lock_config.conf")
	if !strings.HasPrefix(first.AllocJob, "aimlock-tick/periodic-") || first.AllocID == "" {
		j.t.Errorf("the tick that works is %+v", first)
	}
	var busy []launch
	next := time.Now()
	harness.Eventually(j.t, nomadLimit, "a second launch leaves with 0 while the first works", func() bool {
		if time.Now().After(next) {
			j.force()
			next = time.Now().Add(10 * time.Second)
		}
		busy = slices.DeleteFunc(j.launches("aimlock-tick"), func(l launch) bool { return l.ID == first.AllocID || l.ClientStatus != "complete" })
		return len(busy) >= before+1
	})
	said := ""
	for _, l := range busy {
		if out := j.logs(l); strings.Contains(out, "left to its holder") {
			said = out
		}
	}
	if !strings.Contains(said, "Nomad allocation "+first.AllocID+" of job "+first.AllocJob) {
		j.t.Errorf("the second launch says %q", said)
	}
	j.t.Logf("the second launch of one tick said:\n%s", said)
	if err := os.WriteFile(sure, nil, 0o600); err != nil {
		j.t.Fatal(err)
	}
}

// rightsOfNomad holds the ACL policy of the examples to be enough, and less to be
// said: of an allocation in another namespace.
func rightsOfNomad(j *nomadJobs) {
	j.t.Helper()
	least, err := os.ReadFile(filepath.Join(j.dir, "acl/nomad.hcl"))
	if err != nil {
		j.t.Fatal(err)
	}
	if err := j.call(http.MethodPut, "/v1/namespace/prod", map[string]any{"Name": "prod"}, nil); err != nil {
		j.t.Fatal(err)
	}
	job := nomadJob("victim", "batch", nil, "sleep", "600")
	job["Namespace"] = "prod"
	j.register(job)
	var allocs []struct{ ID string }
	harness.Eventually(j.t, nomadLimit, "the victim runs", func() bool {
		return j.get("/v1/job/victim/allocations?namespace=prod", &allocs) == nil && len(allocs) > 0
	})
	ref := evidence.AllocRef{ID: allocs[0].ID, Region: "global"}
	gone := evidence.AllocRef{ID: "00000000-0000-4000-8000-000000000000", Region: "global"}
	const how = "one server and client with ACLs; the token has "
	with := func(what, rules string) *recordings {
		j.t.Helper()
		return j.recorder(how+what, j.newToken("t"+fmt.Sprint(len(rules)), rules, 0))
	}
	refused := func(rec *recordings, name, want string, err error) {
		j.t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			j.t.Errorf("%s: %v, want %s", name, err, want)
		}
		rec.keep(name)
	}
	narrow := with("read-job in the namespace default", `namespace "default" { capabilities = ["read-job"] }`)
	_, _, err = evidence.NewNomad(narrow.client).Alloc(j.t.Context(), ref, evidence.Since{})
	refused(narrow, "acl-narrow", "the token may not read its namespace", err)
	wrong := j.recorder("one server and client with ACLs; the token is none of its", "5ec2e700-0000-4000-8000-000000000000")
	_, _, err = evidence.NewNomad(wrong.client).Alloc(j.t.Context(), ref, evidence.Since{})
	refused(wrong, "acl-wrong-token", "is not known or has expired", err)
	reader := with("read-job in all namespaces", `namespace "*" { capabilities = ["read-job"] }`)
	refused(reader, "acl-stop-denied", "HTTP 403", evidence.NewNomad(reader.client).Stop(j.t.Context(), ref))

	enough := with("the policy examples/nomad/acl/nomad.hcl", string(least))
	n := evidence.NewNomad(enough.client)
	if a, _, err := n.Alloc(j.t.Context(), ref, evidence.Since{}); err != nil || a.Job != "victim" || a.NodeStatus != "ready" {
		j.t.Errorf("with the least rights: %+v, %v", a, err)
	}
	enough.keep("acl-alloc")
	if a, _, err := n.Alloc(j.t.Context(), gone, evidence.Since{}); err != nil || !a.Gone {
		j.t.Errorf("of one that is gone, with the least rights: %+v, %v", a, err)
	}
	enough.keep("acl-gone")
	if err := n.Stop(j.t.Context(), ref); err != nil {
		j.t.Errorf("stop with the least rights: %v", err)
	}
	enough.keep("acl-stop")
	harness.Eventually(j.t, nomadLimit, "the victim is stopped", func() bool {
		a, _, err := n.Alloc(j.t.Context(), ref, evidence.Since{})
		return err == nil && a.DesiredStatus == "stop"
	})
}

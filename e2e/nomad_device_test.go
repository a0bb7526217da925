package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/plugin/nomaddevice"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadtest"
)

const (
	deviceConfig = "aim_lock_config.conf"
	// deviceLimit bounds a change until it shows: a check's TTL, tries of Consul
	// and the grace are in it.
	deviceLimit = 60 * time.Second
)

// deviceNode is a machine with an aimlock agent, of which a device plugin tells.
type deviceNode struct {
	t     *testing.T
	addr  string // of Consul
	dir   string
	name  string
	token string // of Consul, for all but the plugin
	agent *harness.Process
}

// newDeviceNode starts the agent of a node called name. Its files stand under a
// root of their own.
func newDeviceNode(t *testing.T, addr, name string) *deviceNode {
	t.Helper()
	return newDeviceNodeWith(t, addr, name, "")
}

func newDeviceNodeWith(t *testing.T, addr, name, token string) *deviceNode {
	t.Helper()
	n := &deviceNode{t: t, addr: addr, dir: t.TempDir(), name: name, token: token}
	// The test's folders are closed to others, and this one's file is public.
	for _, dir := range []string{n.dir, filepath.Dir(n.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.write("fleet.hcl", fmt.Sprintf("node %q {\n}\n", name))
	n.startAgent()
	return n
}

func (n *deviceNode) write(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *deviceNode) spec(args ...string) harness.Spec {
	return harness.Spec{Path: harness.Aimlock.Path(n.t), Args: args, Env: []string{"CONSUL_HTTP_ADDR=" + n.addr, "CONSUL_HTTP_TOKEN=" + n.token}, Dir: n.dir}
}

func (n *deviceNode) startAgent() {
	n.t.Helper()
	n.agent = harness.Start(n.t, n.spec("agent", "-node", n.name, "-state-dir", n.stateDir(), "-root", n.root()))
}

func (n *deviceNode) stateDir() string { return filepath.Join(n.dir, "state") }
func (n *deviceNode) root() string     { return filepath.Join(n.dir, "root") }
func (n *deviceNode) file() string     { return filepath.Join(n.root(), "etc/aim", deviceConfig) }

// rollout brings the node to a content. more stands in the config's block.
func (n *deviceNode) rollout(content, more string) harness.Result {
	n.t.Helper()
	n.write("content", content)
	spec := n.write("rollout.hcl", fmt.Sprintf(`rollout "aim" {
  config %q {
    source      = "content"
    destination = "/etc/aim/%s"
    %s
  }
  fleet {
    file {
      path = "fleet.hcl"
    }
  }
  stage "all" {
    percent = 100
  }
}
`, deviceConfig, deviceConfig, more))
	return harness.Run(n.t, fleetLimit, n.spec("rollout", "start", spec))
}

func (n *deviceNode) applied(content string) {
	n.t.Helper()
	if r := n.rollout(content, ""); r.Code != 0 {
		n.t.Fatalf("rollout start: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// holdLock holds the config's lock until the process is killed or ended.
func (n *deviceNode) holdLock() *harness.Process {
	n.t.Helper()
	p := harness.Start(n.t, n.spec("lock", "exec", "-wait", "30s", deviceConfig, "--", "sh", "-c", "echo held; exec sleep 600"))
	harness.Eventually(n.t, deviceLimit, "the lock is held", func() bool { return strings.Contains(p.Stdout(), "held") })
	return p
}

// plugin starts the plugin as Nomad does.
func (n *deviceNode) plugin() *nomadtest.Host {
	n.t.Helper()
	cmd := exec.Command(harness.Aimlock.Path(n.t), "nomad-device-plugin")
	cmd.Dir = "/"
	h, err := nomadtest.Start(cmd)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		h.Kill()
		if n.t.Failed() {
			n.t.Logf("log of the plugin:\n%s", h.Log())
		}
	})
	return h
}

func (n *deviceNode) settings(more map[string]cty.Value) map[string]cty.Value {
	out := map[string]cty.Value{
		"state_dir":     cty.StringVal(n.stateDir()),
		"root":          cty.StringVal(n.root()),
		"slots":         cty.NumberIntVal(2),
		"lock_interval": cty.StringVal("1s"),
		"policies":      cty.ListVal([]cty.Value{cty.StringVal(n.write("policy.hcl", devicePolicy))}),
		"consul":        cty.ObjectVal(map[string]cty.Value{"address": cty.StringVal(n.addr)}),
	}
	for name, v := range more {
		out[name] = v
	}
	return out
}

// devicePolicy makes a lock HOT that is held for a while, so that it is HOT for
// as long as a test wants. A slow rollout is none of its business.
const devicePolicy = `policy "test" {
  locks = ["**"]

  hot "long" {
    when   = rollout.id == null && lock.held_for > 1
    reason = "held for ${lock.held_for} s"
  }
}
`

// watched sets the settings and follows the devices.
func (n *deviceNode) watched(h *nomadtest.Host, settings map[string]cty.Value) *nomadtest.Devices {
	n.t.Helper()
	if err := h.SetConfig(n.t.Context(), settings); err != nil {
		n.t.Fatal(err)
	}
	d, err := h.Watch(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return d
}

// becomes waits until the device is healthy or not, and says why.
func (n *deviceNode) becomes(d *nomadtest.Devices, healthy bool, why string) *nomadpb.DeviceGroup {
	n.t.Helper()
	start := time.Now()
	g, err := d.Until(deviceLimit, deviceConfig, func(g *nomadpb.DeviceGroup) bool {
		if g == nil {
			return false
		}
		for _, dev := range g.GetDevices() {
			if dev.GetHealthy() != healthy || !strings.Contains(dev.GetHealthDescription(), why) {
				return false
			}
		}
		return g.GetAttributes()["healthy"].GetBoolVal() == healthy
	})
	if err != nil {
		n.t.Fatalf("device healthy = %t, %q: %v", healthy, why, err)
	}
	n.t.Logf("healthy = %t %q after %s", healthy, g.GetDevices()[0].GetHealthDescription(), time.Since(start).Round(time.Millisecond))
	return g
}

// TestNomadDevice speaks Nomad's side of the device plugin protocol to the real
// plugin, on the embedded Consul and on a real one.
func TestNomadDevice(t *testing.T) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		srv, err := devconsul.Start(devconsul.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = srv.Close() })
		testNomadDevice(t, srv.Addr())
	})
	t.Run("real", func(t *testing.T) {
		t.Parallel()
		testNomadDevice(t, harness.StartConsul(t).Addr)
	})
}

func testNomadDevice(t *testing.T, addr string) {
	n := newDeviceNode(t, addr, "n1")
	h := n.plugin()
	ctx := t.Context()

	info, err := h.PluginInfo(ctx, &nomadpb.PluginInfoRequest{})
	if err != nil || info.GetType() != nomadpb.PluginType_DEVICE || info.GetName() != nomaddevice.Name || len(info.GetPluginApiVersions()) != 1 ||
		info.GetPluginApiVersions()[0] != "v0.1.0" || !strings.Contains(info.GetPluginVersion(), ".") {
		t.Errorf("info: %v, %v", info, err)
	}
	schema, err := h.ConfigSchema(ctx, &nomadpb.ConfigSchemaRequest{})
	if err != nil || schema.GetSpec().GetObject().GetAttributes()["slots"].GetDefault().GetPrimary().GetAttr().GetType() != "number" ||
		schema.GetSpec().GetObject().GetAttributes()["consul"].GetBlockValue().GetNested().GetObject().GetAttributes()["address"].GetAttr().GetType() != "string" {
		t.Errorf("schema: %v, %v", schema, err)
	}
	for name, bad := range map[string]map[string]cty.Value{
		`slots is 0: a whole number from 1 to 1024`:               {"slots": cty.NumberIntVal(0)},
		`state_dir is "state": name the folder by its whole path`: {"state_dir": cty.StringVal("state")},
		`colour is no setting of aimlock`:                         {"colour": cty.StringVal("red")},
		`consul.address is no string`:                             {"consul": cty.ObjectVal(map[string]cty.Value{"address": cty.EmptyTupleVal})},
		`no such file or directory`:                               {"policies": cty.ListVal([]cty.Value{cty.StringVal("/nowhere/policy.hcl")})},
		`Argument or block definition required`:                   {"policies": cty.ListVal([]cty.Value{cty.StringVal(n.write("bad.hcl", "nonsense\n"))})},
		`token file: open /nowhere: no such file or directory`:    {"consul": cty.ObjectVal(map[string]cty.Value{"token_file": cty.StringVal("/nowhere")})},
		`belongs to node "n1": leave node out`:                    {"node": cty.StringVal("n2")},
	} {
		harness.Eventually(t, deviceLimit, "the agent has made its state folder", func() bool { return exists(filepath.Join(n.stateDir(), "node")) })
		if err := h.SetConfig(ctx, n.settings(bad)); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), nomaddevice.Name) {
			t.Errorf("want %q, got %v", name, err)
		}
	}

	d := n.watched(h, n.settings(nil))
	if g, err := d.Until(deviceLimit, deviceConfig, func(g *nomadpb.DeviceGroup) bool { return g == nil }); err != nil {
		t.Fatalf("before anything was applied: %v, %v", g, err)
	}

	// A rollout reaches a revision.
	n.applied("revision = 1\n")
	g := n.becomes(d, true, "")
	if g.GetVendor() != "aimlock" || g.GetDeviceType() != "config" || len(g.GetDevices()) != 2 {
		t.Errorf("the group is %v", g)
	}
	first := g.GetAttributes()
	if first["result"].GetStringVal() != "applied" || first["destination"].GetStringVal() != "/etc/aim/"+deviceConfig || first["token"].GetIntVal() == 0 || first["slots"].GetIntVal() != 2 {
		t.Errorf("attributes are %v", first)
	}
	n.applied("revision = 2\n")
	g, err = d.Until(deviceLimit, deviceConfig, func(g *nomadpb.DeviceGroup) bool {
		a := g.GetAttributes()
		return a["revision"].String() != first["revision"].String() && a["token"].GetIntVal() > first["token"].GetIntVal()
	})
	if err != nil {
		t.Fatalf("the next revision: %v", err)
	}

	n.reserves(h, g)
	n.hotAndBack(h, d)
	n.driftsAndBack(d)

	// An order that fails: the last good file stands, and nobody is placed there.
	n.rollout("revision = 3\n", `validate = ["false"]`)
	g = n.becomes(d, false, "the last order failed: validate")
	if g.GetAttributes()["result"].GetStringVal() != "failed" {
		t.Errorf("attributes are %v", g.GetAttributes())
	}
	n.applied("revision = 4\n")
	n.becomes(d, true, "")

	// The agent is gone, and back.
	n.agent.Kill()
	n.becomes(d, false, "the aimlock agent of node n1 is gone: its check is critical")
	n.startAgent()
	n.becomes(d, true, "")

	// Other settings take the place of those in force, and the stream goes on.
	if err := h.SetConfig(ctx, n.settings(map[string]cty.Value{"configs": cty.ListVal([]cty.Value{cty.StringVal("other.conf")})})); err != nil {
		t.Fatal(err)
	}
	if g, err := d.Until(deviceLimit, "other.conf", func(g *nomadpb.DeviceGroup) bool { return g != nil }); err != nil || g.GetDevices()[0].GetHealthy() ||
		!strings.Contains(g.GetDevices()[0].GetHealthDescription(), "this node has accepted no order for it") {
		t.Errorf("a config that was never applied: %v, %v", g, err)
	}
	h.Kill()
	if !h.Exited() {
		t.Error("the plugin has not ended")
	}
}

func (n *deviceNode) reserves(h *nomadtest.Host, g *nomadpb.DeviceGroup) {
	t := n.t
	res, err := h.Reserve(t.Context(), &nomadpb.ReserveRequest{DeviceIds: []string{g.GetDevices()[1].GetID()}})
	if err != nil {
		t.Fatal(err)
	}
	env := res.GetContainerRes().GetEnvs()
	token := strconv.FormatInt(g.GetAttributes()["token"].GetIntVal(), 10)
	for name, want := range map[string]string{"NAME": deviceConfig, "DESTINATION": "/etc/aim/" + deviceConfig, "TOKEN": token, "EPOCH": "0", "MOUNTED": "/etc/aim/" + deviceConfig} {
		if got := env["AIMLOCK_CONFIG_AIM_LOCK_CONFIG_CONF_"+name]; got != want {
			t.Errorf("%s is %q, want %q, in %v", name, got, want, env)
		}
	}
	if len(env["AIMLOCK_CONFIG_AIM_LOCK_CONFIG_CONF_REVISION"]) != 12 {
		t.Errorf("env is %v", env)
	}
	m := res.GetContainerRes().GetMounts()
	if len(m) != 1 || m[0].GetHostPath() != n.file() || m[0].GetTaskPath() != "/etc/aim/"+deviceConfig || !m[0].GetReadOnly() {
		t.Errorf("mounts are %v", m)
	}
	// What not everybody may read is not handed to a task.
	if err := os.Chmod(filepath.Dir(n.file()), 0o750); err != nil {
		t.Fatal(err)
	}
	if res, err = h.Reserve(t.Context(), &nomadpb.ReserveRequest{DeviceIds: []string{deviceConfig + ":1"}}); err != nil || len(res.GetContainerRes().GetMounts()) != 0 {
		t.Errorf("a private file: %v, %v", res, err)
	}
	if err := os.Chmod(filepath.Dir(n.file()), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "other:1", deviceConfig, deviceConfig + ":0", deviceConfig + ":3", deviceConfig + ":01", "\x1b[31m:1"} {
		if res, err := h.Reserve(t.Context(), &nomadpb.ReserveRequest{DeviceIds: []string{id}}); err == nil || !strings.Contains(err.Error(), "no such device of this node") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q is reserved: %v, %v", id, res, err)
		}
	}
}

func (n *deviceNode) hotAndBack(h *nomadtest.Host, d *nomadtest.Devices) {
	t := n.t
	holder := n.holdLock()
	g := n.becomes(d, false, "its lock is HOT: long: held for")
	if g.GetAttributes()["state"].GetStringVal() != "HOT" {
		t.Errorf("attributes are %v", g.GetAttributes())
	}
	stats, err := h.Stat(t.Context())
	if err != nil || len(stats.GetGroups()) != 1 {
		t.Fatalf("stats: %v, %v", stats, err)
	}
	one := stats.GetGroups()[0].GetInstanceStats()[deviceConfig+":2"]
	values := one.GetStats().GetAttributes()
	if one.GetSummary().GetUnit() != "s" || one.GetTimestamp().AsTime().IsZero() || values["lock_held_for"].GetIntNumeratorVal().GetValue() < 1 ||
		values["token"].GetIntNumeratorVal().GetValue() != g.GetAttributes()["token"].GetIntVal() || values["lock_state"].GetStringVal().GetValue() != "HOT" || values["since_apply"] == nil {
		t.Errorf("stats are %v", one)
	}
	// That it goes on being HOT, with a reason whose numbers grow, is no news.
	before := d.Count()
	next, err := h.Stats(t.Context(), &nomadpb.StatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := next.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if after := d.Count(); after != before {
		t.Errorf("devices were told of %d times while nothing happened", after-before)
	}
	holder.Signal(syscall.SIGTERM)
	holder.Wait(deviceLimit)
	n.becomes(d, true, "")
}

func (n *deviceNode) driftsAndBack(d *nomadtest.Devices) {
	was, err := os.ReadFile(n.file())
	if err != nil {
		n.t.Fatal(err)
	}
	hand(n.t, n.file(), "by hand\n")
	if g := n.becomes(d, false, "the file has drifted: "); !g.GetAttributes()["drifted"].GetBoolVal() {
		n.t.Errorf("attributes are %v", g.GetAttributes())
	}
	hand(n.t, n.file(), string(was))
	if err := os.Chmod(n.file(), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.becomes(d, true, "")
}

// TestNomadDeviceWithoutConsul takes Consul away and gives it back: what was
// applied is shown on, and its health is unknown for as long.
func TestNomadDeviceWithoutConsul(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t, harness.WithData())
	n := newDeviceNode(t, c.Addr, "n1")
	n.applied("revision = 1\n")
	h, cautious := n.plugin(), n.plugin()
	d := n.watched(h, n.settings(map[string]cty.Value{"on_unknown": cty.StringVal("healthy")}))
	e := n.watched(cautious, n.settings(nil))
	n.becomes(d, true, "")
	before := n.becomes(e, true, "")
	c.Kill()
	n.becomes(d, true, "unknown: ")
	g := n.becomes(e, false, "its lock: watch lock ")
	if g.GetAttributes()["state"].GetStringVal() != "UNKNOWN" || g.GetAttributes()["revision"].String() != before.GetAttributes()["revision"].String() {
		t.Errorf("attributes are %v", g.GetAttributes())
	}
	// One that starts now tells of what it has all the same, and soon.
	late := n.plugin()
	start := time.Now()
	n.becomes(n.watched(late, n.settings(nil)), false, "unknown: ")
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("a plugin without Consul told of its devices after %s", took)
	}
	c.Restart()
	c.WaitReady()
	n.becomes(e, true, "")
	n.becomes(d, true, "")
}

// TestNomadDeviceRights: the token of an observer is enough, and with one that
// has no rights, what it is not shown is unknown.
func TestNomadDeviceRights(t *testing.T) {
	t.Parallel()
	const root = "2b5ff1ac-0a5f-4a3e-9b0e-5e0f6d1c7a11"
	c := harness.StartConsul(t, harness.WithACL(root))
	n := newDeviceNodeWith(t, c.Addr, "n1", root)
	n.applied("revision = 1\n")
	acl := c.Client().ACL()
	device := func(rules string) *nomadtest.Devices {
		t.Helper()
		token := &api.ACLToken{}
		if rules != "" {
			p, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: "device", Rules: rules}, nil)
			if err != nil {
				t.Fatal(err)
			}
			token.Policies = []*api.ACLTokenPolicyLink{{ID: p.ID}}
		}
		token, _, err := acl.TokenCreate(token, nil)
		if err != nil {
			t.Fatal(err)
		}
		file := n.write("token"+token.AccessorID, token.SecretID+"\n")
		return n.watched(n.plugin(), n.settings(map[string]cty.Value{"consul": cty.ObjectVal(map[string]cty.Value{
			"address": cty.StringVal(n.addr), "token_file": cty.StringVal(file),
		})}))
	}
	reads := device(harness.Output(t, cmdLimit, n.spec("acl", "observer")))
	n.becomes(reads, true, "")
	holder := n.holdLock()
	n.becomes(reads, false, "its lock is HOT: long: held for")
	n.becomes(device(""), false, "unknown: its lock: ")
	holder.Signal(syscall.SIGTERM)
	holder.Wait(deviceLimit)
	n.becomes(reads, true, "")
}

// TestNomadDeviceEnds: a plugin ends with SIGTERM and with its host, and SIGINT,
// which a terminal sends to both, is no matter to it.
func TestNomadDeviceEnds(t *testing.T) {
	t.Parallel()
	bin := harness.Aimlock.Path(t)
	const cookie = "NOMAD_PLUGIN_MAGIC_COOKIE=e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"

	p := harness.Start(t, harness.Spec{Path: bin, Args: []string{"nomad-device-plugin"}, Env: []string{cookie}})
	harness.Eventually(t, deviceLimit, "the handshake is written", func() bool { return strings.HasPrefix(p.Stdout(), "1|2|unix|") })
	p.Signal(syscall.SIGINT)
	// Two signals that are sent at once may arrive the other way round.
	harness.Eventually(t, deviceLimit, "the interrupt has arrived", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), "\nShdPnd:\t0000000000000000\n")
	})
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(deviceLimit); code != 0 && code != 143 {
		t.Errorf("exit %d", code)
	}
	if strings.Contains(p.Stderr(), "panic") {
		t.Error(p.Stderr())
	}

	host := harness.Start(t, harness.Spec{Path: "/bin/sh", Args: []string{"-c", `"$0" nomad-device-plugin & echo "pid $!"; wait`, bin}, Env: []string{cookie}})
	harness.Eventually(t, deviceLimit, "the handshake is written", func() bool { return strings.Contains(host.Stdout(), "1|2|unix|") })
	var pid int
	for line := range strings.Lines(host.Stdout()) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "pid "); ok {
			pid, _ = strconv.Atoi(text)
		}
	}
	if pid == 0 || !alive(strconv.Itoa(pid)) {
		t.Fatalf("no plugin: %s", host.Stdout())
	}
	if err := syscall.Kill(host.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, deviceLimit, "the plugin ends with its host", func() bool { return !alive(strconv.Itoa(pid)) })

	// By hand it says what it is for.
	r := harness.Run(t, cmdLimit, harness.Spec{Path: bin, Args: []string{"nomad-device-plugin"}})
	if r.Code != 2 || !strings.Contains(r.Stderr, "started by a Nomad client") {
		t.Errorf("by hand: exit %d: %s", r.Code, r.Stderr)
	}
	// Its link is the plugin itself.
	link := filepath.Join(t.TempDir(), nomaddevice.Name)
	if err := os.Symlink(bin, link); err != nil {
		t.Fatal(err)
	}
	h, err := nomadtest.Start(exec.Command(link))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Kill()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := h.Fingerprint(ctx, &nomadpb.FingerprintRequest{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stream that was cancelled: %v", err)
	}
}

package command_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// TestConsulTemplate runs the files of examples/consul-template by the real
// consul-template: content of any bytes arrives, a failing order is reported
// and does not end it, an older one is refused, and a restore restores.
func TestConsulTemplate(t *testing.T) {
	bin := consulTemplate(t)
	srv, err := devconsul.Start(devconsul.Config{NodeName: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.URL()})
	if err != nil {
		t.Fatal(err)
	}
	n := &templated{kv: kv, dir: t.TempDir(), prefix: keys.DefaultPrefix}
	n.start(t, bin, srv.URL())

	// A slash of the prefix, a tricky content, and a chunk limit within it.
	first := n.order(t, 1, "one {{ key \"x\" }}\r\n\xff\x00 # no newline at the end")
	n.wait(t, first, records.ResultApplied)
	bad := n.order(t, 2, "bad\n", func(d *records.Desired) {
		d.Validate = &records.Command{Argv: []string{"/bin/sh", "-c", "grep bad ${staged}; exit 1"}}
	})
	if a := n.wait(t, bad, records.ResultFailed); a.Output != "bad" {
		t.Errorf("output %q", a.Output)
	}
	good := n.order(t, 3, "three\n")
	if a := n.wait(t, good, records.ResultApplied); a.Previous != first.Revision {
		t.Errorf("previous %q, want %q", a.Previous, first.Revision)
	}
	n.putFor(t, templatedConfig, first)
	if a := n.wait(t, good, records.ResultRefused); a.Refused == nil || *a.Refused != first.Order {
		t.Errorf("%+v", a)
	}
	back := n.order(t, 4, "three\n", func(d *records.Desired) { d.Action, d.Rollout = records.ActionRestore, good.Rollout })
	n.wait(t, back, records.ResultRolledBack)
	b, err := os.ReadFile(n.path("root/etc/aim.conf"))
	if err != nil || !bytes.HasPrefix(b, []byte("one {{ key")) {
		t.Errorf("%q %v", b, err)
	}
}

// TestConsulTemplateSeveral runs the example for several configs of one rollout:
// a node never has a part of an order, and a failing one leaves all as it is.
func TestConsulTemplateSeveral(t *testing.T) {
	bin := consulTemplate(t)
	srv, err := devconsul.Start(devconsul.Config{NodeName: "dev"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.URL()})
	if err != nil {
		t.Fatal(err)
	}
	n := &templated{kv: kv, dir: t.TempDir(), prefix: keys.DefaultPrefix}
	configs := []string{templatedConfig, "aim_limits.conf"}
	tmpl, err := os.ReadFile("../examples/consul-template/aimlock.ctmpl")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		text := strings.Replace(string(tmpl), `{{- $config := env "AIMLOCK_CONFIG_NAME" -}}`, `{{- $config := "`+c+`" -}}`, 1)
		if text == string(tmpl) {
			t.Fatal("the template has no line that names the config")
		}
		if err := os.WriteFile(n.path(c+".ctmpl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := os.ReadFile("../examples/consul-template/consul-template-several.hcl")
	if err != nil {
		t.Fatal(err)
	}
	n.startWith(t, bin, srv.URL(), strings.NewReplacer("/etc/aimlock", n.dir, "/var/lib/aimlock/staged", n.path("staged")).Replace(string(cfg)))

	group := func(seq uint64, v string, edit func(i int, d *records.Desired)) []records.Desired {
		ds := make([]records.Desired, len(configs))
		for i, c := range configs {
			ds[i] = n.content(t, c, seq, v+" "+c+"\n")
			ds[i].Rollout, ds[i].Destination = "r"+v, "/etc/"+c
			ds[i].Action, ds[i].Requires, ds[i].Configs = records.ActionApplyWith, []string{records.FeatureGroups}, configs
			if edit != nil {
				edit(i, &ds[i])
			}
		}
		return ds
	}
	stands := func(v string) {
		t.Helper()
		for _, c := range configs {
			if b, err := os.ReadFile(n.path("root/etc/" + c)); err != nil || string(b) != v+" "+c+"\n" {
				t.Errorf("%s: %q %v", c, b, err)
			}
		}
	}
	// The entries come one by one: the first waits.
	one := group(1, "one", nil)
	n.putFor(t, configs[0], one[0])
	n.waitFor(t, configs[0], "that it waits", func(a *records.Actual) bool { return strings.HasPrefix(a.Waiting, "order "+one[0].Order.String()) })
	if _, err := os.Stat(n.path("root/etc")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part was applied: %v", err)
	}
	n.putFor(t, configs[1], one[1])
	for i, c := range configs {
		n.waitFor(t, c, "applied", func(a *records.Actual) bool { return a.Order == one[i].Order && a.Result == records.ResultApplied })
	}
	stands("one")
	two := group(2, "two", func(i int, d *records.Desired) {
		if i == 1 {
			d.Validate = &records.Command{Argv: []string{"/bin/false"}}
		}
	})
	for i, c := range configs {
		n.putFor(t, c, two[i])
	}
	for i, c := range configs {
		n.waitFor(t, c, "failed", func(a *records.Actual) bool {
			return a.Order == two[i].Order && a.Result == records.ResultFailed && strings.HasPrefix(a.Error, "aim_limits.conf: validate")
		})
	}
	stands("one")
}

// consulTemplate finds the program as `make test` provides it.
func consulTemplate(t *testing.T) string {
	t.Helper()
	for _, p := range []string{os.Getenv("CONSUL_TEMPLATE_BIN"), "../.tools/bin/consul-template"} {
		if abs, err := filepath.Abs(p); p != "" && err == nil {
			if fi, err := os.Stat(abs); err == nil && fi.Mode().IsRegular() {
				return abs
			}
		}
	}
	p, err := exec.LookPath("consul-template")
	if err != nil {
		t.Skip("SKIPPED: no consul-template: run `make tools`, or set CONSUL_TEMPLATE_BIN")
	}
	return p
}

// templated is a node that consul-template serves.
type templated struct {
	kv     *consulkv.Client
	dir    string
	prefix keys.Prefix
	out    output
}

const (
	templatedConfig = "aim_lock_config.conf"
	templatedNode   = "web-1"
)

func (n *templated) path(p string) string { return filepath.Join(n.dir, p) }

func (n *templated) start(t *testing.T, bin, addr string) {
	t.Helper()
	example, err := filepath.Abs("../examples/consul-template")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := os.ReadFile(filepath.Join(example, "consul-template.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	n.startWith(t, bin, addr, strings.NewReplacer("/etc/aimlock", example, "/var/lib/aimlock/staged", n.path("staged")).Replace(string(cfg)))
}

func (n *templated) startWith(t *testing.T, bin, addr, text string) {
	t.Helper()
	// The node of the test lives below a folder of its own.
	text = strings.ReplaceAll(text, `"aimlock agent apply`, `"aimlock agent apply -root `+n.path("root"))
	if err := errors.Join(os.Mkdir(n.path("root"), 0o755), os.WriteFile(n.path("ct.hcl"), []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "-config", n.path("ct.hcl"), "-log-level", "info")
	// It ends by SIGINT and by nothing milder than SIGKILL else.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "CONSUL_HTTP_ADDR="+addr, "AIMLOCK_STATE_DIR="+n.path("state"),
		"AIMLOCK_NODE="+templatedNode, "AIMLOCK_CONFIG_NAME="+templatedConfig)
	cmd.Stdout, cmd.Stderr = &n.out, &n.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(n.out.String())
		}
	})
}

// order publishes content in chunks of 7 bytes and desires it.
func (n *templated) order(t *testing.T, seq uint64, content string, edit ...func(*records.Desired)) records.Desired {
	t.Helper()
	d := n.content(t, templatedConfig, seq, content)
	for _, e := range edit {
		e(&d)
	}
	n.putFor(t, templatedConfig, d)
	return d
}

func (n *templated) content(t *testing.T, config string, seq uint64, content string) records.Desired {
	t.Helper()
	h := sha256.Sum256([]byte(content))
	sum := hex.EncodeToString(h[:])
	o := orchestrator.Order{Epoch: 1, Token: 1 << 40, Seq: seq}
	d := records.Desired{
		Version: 1, Revision: sum[:12], Order: o, Rollout: "r" + o.String(), SHA256: sum, Size: int64(len(content)),
		Destination: "/etc/aim.conf",
	}
	for i := 0; i < len(content); i += 7 {
		if err := n.kv.Put(t.Context(), n.prefix.ConfigChunk(config, sum, d.Chunks), []byte(content[i:min(i+7, len(content))])); err != nil {
			t.Fatal(err)
		}
		d.Chunks++
	}
	return d
}

func (n *templated) putFor(t *testing.T, config string, d records.Desired) {
	t.Helper()
	// As people write it by hand: on several lines.
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.kv.Put(t.Context(), n.prefix.Desired(config, templatedNode), b); err != nil {
		t.Fatal(err)
	}
}

func (n *templated) wait(t *testing.T, d records.Desired, result string) *records.Actual {
	t.Helper()
	return n.waitFor(t, templatedConfig, "order "+d.Order.String()+" as "+result, func(a *records.Actual) bool {
		return a.Order == d.Order && a.Result == result
	})
}

func (n *templated) waitFor(t *testing.T, config, what string, ok func(*records.Actual) bool) *records.Actual {
	t.Helper()
	key := n.prefix.Actual(config, templatedNode)
	var a records.Actual
	n.eventually(t, config+" is "+what, func() bool {
		p, err := n.kv.Get(t.Context(), key)
		if err != nil || p == nil {
			return false
		}
		a = records.Actual{}
		if err := records.Decode(key, p.Value, &a); err != nil {
			t.Fatal(err)
		}
		return ok(&a)
	})
	return &a
}

func (n *templated) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("never: %s", what)
		}
	}
}

type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

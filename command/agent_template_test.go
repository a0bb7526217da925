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
	n.put(t, first)
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
	text := strings.NewReplacer("/etc/aimlock", example, "/var/lib/aimlock/staged", n.path("staged")).Replace(string(cfg))
	// The node of the test lives below a folder of its own.
	text = strings.Replace(text, "agent apply", "agent apply -root "+n.path("root"), 1)
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
	h := sha256.Sum256([]byte(content))
	sum := hex.EncodeToString(h[:])
	o := orchestrator.Order{Epoch: 1, Token: 1 << 40, Seq: seq}
	d := records.Desired{
		Version: 1, Revision: sum[:12], Order: o, Rollout: "r" + o.String(), SHA256: sum, Size: int64(len(content)),
		Destination: "/etc/aim.conf",
	}
	for i := 0; i < len(content); i += 7 {
		if err := n.kv.Put(t.Context(), n.prefix.ConfigChunk(templatedConfig, sum, d.Chunks), []byte(content[i:min(i+7, len(content))])); err != nil {
			t.Fatal(err)
		}
		d.Chunks++
	}
	for _, e := range edit {
		e(&d)
	}
	n.put(t, d)
	return d
}

func (n *templated) put(t *testing.T, d records.Desired) {
	t.Helper()
	// As people write it by hand: on several lines.
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.kv.Put(t.Context(), n.prefix.Desired(templatedConfig, templatedNode), b); err != nil {
		t.Fatal(err)
	}
}

func (n *templated) wait(t *testing.T, d records.Desired, result string) *records.Actual {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	key := n.prefix.Actual(templatedConfig, templatedNode)
	var a records.Actual
	for {
		p, err := n.kv.Get(ctx, key)
		if err == nil && p != nil {
			a = records.Actual{}
			if err := records.Decode(key, p.Value, &a); err != nil {
				t.Fatal(err)
			}
			if a.Order == d.Order && a.Result == result {
				return &a
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("order %s never became %s; the last report is %+v", d.Order, result, a)
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

package agent_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/secrets"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// Sizes around a chunk's, and the largest that an agent takes.
func TestContentSizes(t *testing.T) {
	const chunk, largest = 256 << 10, 4 << 20
	sizes := []int{0, 1, chunk - 1, chunk, chunk + 1}
	if !testing.Short() {
		sizes = append(sizes, largest)
	}
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	for i, size := range sizes {
		content := strings.Repeat("0123456789abcde\n", size/16+1)[:size]
		d := b.publish(t, orchestrator.Order{Token: uint64(i + 1)}, content, chunk)
		if size == 0 {
			b.put(t, prefix.ConfigChunk(conf, d.SHA256, 0), nil)
			d.Chunks = 1
		}
		b.desire(t, "n1", d)
		rep := b.answer(t, "n1", func(a *records.Actual) bool { return a.Order == d.Order })
		if rep.Result != records.ResultApplied {
			t.Fatalf("%d bytes: %s", size, rep.Error)
		}
		got, err := os.ReadFile(filepath.Join(cfg.Root, d.Destination))
		if err != nil || !bytes.Equal(got, []byte(content)) {
			t.Fatalf("%d bytes: the file has %d, %v", size, len(got), err)
		}
	}
}

// What is missing or damaged on the way fails the order, by its name.
func TestContentDamaged(t *testing.T) {
	const chunk = 16
	b := newBench(t)
	cfg := b.config(t, "n1")
	run(t, cfg)
	content := strings.Repeat("0123456789abcdef", 4)
	for i, tc := range []struct {
		name, want string
		damage     func(d *records.Desired)
	}{
		{"missing", "chunk 3 of 4 is missing", func(d *records.Desired) {
			if _, err := b.API().KV().Delete(prefix.ConfigChunk(conf, d.SHA256, 2), nil); err != nil {
				t.Fatal(err)
			}
		}},
		{"changed", "has the SHA-256", func(d *records.Desired) {
			b.put(t, prefix.ConfigChunk(conf, d.SHA256, 1), []byte("0123456789abcdeX"))
		}},
		{"short", "bytes, its entry says 64", func(d *records.Desired) {
			b.put(t, prefix.ConfigChunk(conf, d.SHA256, 3), []byte("0123"))
		}},
		{"long", "has more than the 64 bytes", func(d *records.Desired) {
			b.put(t, prefix.ConfigChunk(conf, d.SHA256, 3), []byte(content))
		}},
		{"too large", "67108865", func(d *records.Desired) { d.Size = 64<<20 + 1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := b.publish(t, orchestrator.Order{Token: uint64(i + 1)}, content, chunk)
			tc.damage(&d)
			b.desire(t, "n1", d)
			rep := b.answer(t, "n1", func(a *records.Actual) bool { return a.Order == d.Order })
			if rep.Result != records.ResultFailed || !strings.Contains(rep.Error, tc.want) {
				t.Errorf("%s: %s, want %q", rep.Result, rep.Error, tc.want)
			}
			if _, err := os.Stat(filepath.Join(cfg.Root, d.Destination)); err == nil {
				t.Error("a file was written")
			}
		})
	}
}

// A file that consul-template rendered has placeholders too: the values come in
// behind the fence.
func TestStagedSecret(t *testing.T) {
	b := newBench(t)
	cfg := b.config(t, "n1")
	a, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text := "password = " + secrets.Placeholder("db", "1") + "\n"
	d := b.publish(t, orchestrator.Order{Token: 7}, text, 1<<10)
	d.Mode, d.Action, d.Requires = "0600", records.ActionApplyWith, []string{records.FeatureSecrets}
	d.Secrets = []records.Secret{{Name: "db", Version: "1", ConsulKey: "app/db/password"}}
	s := &agent.Staged{Config: conf, Node: "n1", Desired: d, Content: []byte(text)}
	all, err := a.Apply(t.Context(), s)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if res := all[0]; res.Report.Result != records.ResultFailed || !strings.Contains(res.Report.Error, "app/db/password") {
		t.Fatalf("without the key: %+v", res.Report)
	}
	b.put(t, "app/db/password", []byte("hunter2\x00{{aimlock:"))
	s.Desired.Seq = 1
	all, err = a.Apply(t.Context(), s)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	if res := all[0]; res.Report.Result != records.ResultApplied || res.Report.SHA256 != d.SHA256 {
		t.Fatalf("%+v", res.Report)
	}
	got, err := os.ReadFile(filepath.Join(cfg.Root, d.Destination))
	if err != nil || string(got) != "password = hunter2\x00{{aimlock:\n" {
		t.Errorf("the file is %q, %v", got, err)
	}
	// Nothing that stands in Consul under aimlock's prefix has the value.
	list, err := b.List(t.Context(), string(prefix))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range list {
		if bytes.Contains(kv.Value, []byte("hunter2")) {
			t.Errorf("%s has the value", kv.Key)
		}
	}
}

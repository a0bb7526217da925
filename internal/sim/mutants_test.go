//go:build simmutants

package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	most     = flag.Uint64("most", 10000, "how many seeds a mutant is looked for in")
	only     = flag.String("mutant", "", "only mutants whose name has this in it")
	replayed = flag.String("overlay", "", "the overlay that has a seed replay; empty: the seed may be another one the next time")
)

// mutant is one guard of the protocol left out: a piece of text that stands once in
// a file, and what it is replaced by. Where two guards of a file refuse the same, it is
// both: old and new have a piece for each, divided by a form feed.
type mutant struct{ name, file, old, new string }

const (
	locks   = "orchestrator/locksmith"
	agents  = "orchestrator/agent"
	runners = "orchestrator/runner"
)

var mutants = []mutant{
	{"check-session in the holder's writes", locks + "/hold.go",
		"h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))",
		"h.guards = append(h.guards, consulkv.CheckIndex(k, h.token))"},
	{"check-index of the lock in the holder's writes", locks + "/hold.go",
		"h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id), consulkv.CheckIndex(k, h.token))",
		"h.guards = append(h.guards, consulkv.CheckSession(k, h.sess.id))"},
	{"the pen: late writes of the same hold", locks + "/write.go",
		"consulkv.CheckIndex(h.penKey(), pen))",
		"consulkv.GetOrEmpty(h.penKey()))"},
	{"check-session in a break", locks + "/breaking.go",
		"ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}",
		"ops := []consulkv.Op{consulkv.CheckIndex(s.Key, s.Index())}"},
	{"check-index of the lock in a break", locks + "/breaking.go",
		"ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}",
		"ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID())}"},
	{"TOCTOU: check-index of the progress in a break", locks + "/breaking.go",
		"list := []string{c.keys.Progress(s.Name), c.keys.Fence(s.Name)}",
		"list := []string{c.keys.Fence(s.Name)}"},
	{"the guards of the intent", locks + "/breaking.go",
		"	out, err := b.c.consul.Txn(ctx, ops...)\n	switch {\n	case err == nil:\n		for _, t := range b.targets {\n			t.index = out.Find(t.key).ModifyIndex\n		}\n		return nil",
		"	out, err := b.c.consul.Txn(ctx, ops[len(ops)-len(b.targets):]...)\n	switch {\n	case err == nil:\n		for _, t := range b.targets {\n			t.index = out.Find(t.key).ModifyIndex\n		}\n		return nil"},
	{"the intent of a break", locks + "/breaking.go",
		"		ops = append(ops, consulkv.CAS(t.key, records.Encode(&t.rec), 0))\n",
		"		_ = t.key\n		ops = append(ops, consulkv.GetOrEmpty(t.key))\n"},
	{"the outcome of a break by compare-and-set", locks + "/ending.go",
		"e.outcome = consulkv.CAS(t.key, records.Encode(&rec), t.index)",
		"e.outcome = consulkv.Set(t.key, records.Encode(&rec))"},
	{"the budget by compare-and-set", locks + "/permit.go",
		"return consulkv.CAS(key, records.Encode(&rec), permit.budgetIndex), \"\"",
		"return consulkv.Set(key, records.Encode(&rec)), \"\""},
	{"the budget", locks + "/permit.go",
		"	case len(rec.Breaks) > b.Max:\n",
		"	case len(rec.Breaks) > b.Max+5:\n"},
	{"an unknown freeze blocks", locks + "/permit.go",
		"frozen != policies.False {",
		"frozen == policies.True {"},
	{"the silence", locks + "/permit.go",
		"	if silence.ModifyIndex != 0 {\n",
		"	if silence.ModifyIndex == 1 {\n"},
	{"the durable quiesce of a break", locks + "/ending.go",
		"	ops = append(ops, b.c.setFence(t.v.Snapshot, e.fence)...)\n",
		"	ops = append(ops, consulkv.Delete(b.c.keys.Fence(name)))\n"},
	{"the durable quiesce of an end that was not clean", locks + "/acquire.go",
		"		ops = append(ops, c.setFence(s, fence)...)\n",
		""},
	{"the quiesce that is owed is served", locks + "/wait.go",
		"	if owe <= 0 {\n",
		"	if owe <= 0 || owe > 0 {\n"},
	{"self-fencing", locks + "/session.go",
		"	return left - LeaseMargin\n",
		"	return max(left, time.Second)\n"},
	{"self-fencing of a process that wakes", locks + "/session.go",
		"	if s.leaseLeft() <= 0 {\n		s.die(errLeaseOver)\n	}\n	s.mu.Lock()",
		"	s.mu.Lock()"},
	{"a reused session after an acquisition that did not stand", locks + "/wait.go",
		"	case errors.Is(err, errNotOurs):\n		w.drop(ctx)\n",
		"	case errors.Is(err, errNotOurs):\n		w.att = nil\n"},
	{"a re-used token", runners + "/drive.go",
		"orchestrator.Acquired{Order: orchestrator.Order{Epoch: d.h.Epoch(), Token: d.h.Token(), Seq: d.seq}}",
		"orchestrator.Acquired{Order: orchestrator.Order{Epoch: d.h.Epoch(), Token: max(1, d.header.Token), Seq: d.seq}}"},
	{"the epoch raised after a restore", locks + "/recover.go",
		"r.out.Epoch = max(r.out.Epoch+1, req.Epoch)",
		"r.out.Epoch = max(r.out.Epoch, req.Epoch)"},
	{"the order check on the node, and the look again before the mark is written", agents + "/fence.go",
		"	case c < 0:\n\ffunc (w *work) recheck() error {\n",
		"	case c < 0 && w.dir == \"\":\n\ffunc (w *work) recheck() error {\n	if w.dir != \"\" {\n		return nil\n	}\n"},
	{"every check again on the node", agents + "/fence.go",
		"func (w *work) recheck() error {\n",
		"func (w *work) recheck() error {\n	if w.dir != \"\" {\n		return nil\n	}\n"},
	{"the journals of a group before its first rename", agents + "/group.go",
		"		if err := w.save(phaseStaged); err != nil {\n			return err\n		}\n	}\n	for _, w := range g.ws {\n",
		"	}\n	for _, w := range g.ws {\n"},
	{"a remote clock tells the age of a progress", "orchestrator/evidence/facts.go",
		"		f.num(\"age\", d.Seconds(), src)\n	}\n	return f.facts\n}\n\n// finishedStates",
		"		f.num(\"age\", max(d.Seconds(), n.now.Sub(p.At).Seconds()), src)\n	}\n	return f.facts\n}\n\n// finishedStates"},
	{"a lost fsync: of the folder of the mark", "internal/durable/durable.go",
		"	return SyncDir(filepath.Dir(path))\n",
		"	return nil\n"},
	{"a lost fsync: of the mark itself", "internal/durable/durable.go",
		"	if err := Sync(f.File); err != nil {\n",
		"	if err := error(nil); err != nil {\n"},
}

var violation = regexp.MustCompile(`VIOLATION seed (\d+): (.*)`)

// TestMutants: the simulation finds each of the planted bugs.
func TestMutants(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var table []string
	for _, m := range mutants {
		if !strings.Contains(m.name, *only) {
			continue
		}
		start := time.Now()
		seed, invariant, err := m.hunt(t, root)
		row := fmt.Sprintf("| %s | %s | %s |", m.name, seed, invariant)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
			row = fmt.Sprintf("| %s | not found | |", m.name)
		}
		table = append(table, row)
		t.Logf("%s (%s)", row, time.Since(start).Round(time.Second))
	}
	fmt.Printf("\n| guard left out | found at seed | invariant |\n|---|---|---|\n%s\n", strings.Join(table, "\n"))
}

// hunt runs seeds with the mutant until one of them breaks an invariant.
func (m mutant) hunt(t *testing.T, root string) (seed, invariant string, err error) {
	overlay := m.overlay(t, root)
	bin := filepath.Join(t.TempDir(), "sim.test")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-tags", "simreplay", "-overlay", overlay, "-o", bin, "./internal/sim")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s does not compile: %v\n%s", m.name, err, out)
	}
	run := exec.CommandContext(ctx, bin, "-test.run", "^TestSeeds$", "-test.timeout", "2h", "-seeds", fmt.Sprint(*most), "-shrink=false", "-harder", "-workers", fmt.Sprint(*workers))
	run.Dir = filepath.Join(root, "internal", "sim")
	out, rerr := run.CombinedOutput()
	if got := violation.FindSubmatch(out); got != nil {
		return string(got[1]), string(got[2]), nil
	}
	return "", "", fmt.Errorf("not found in %d seeds: %v\n%.2000s", *most, rerr, out)
}

// overlay writes the changed file and what tells the Go tool of it, beside what makes
// a seed replay.
func (m mutant) overlay(t *testing.T, root string) string {
	path := filepath.Join(root, m.file)
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, old := range strings.Split(m.old, "\f") {
		if n := bytes.Count(src, []byte(old)); n != 1 {
			t.Fatalf("%s: the text of %q stands there %d times, and not once: write the mutant anew for the code as it is now:\n%s", m.file, m.name, n, old)
		}
		src = bytes.Replace(src, []byte(old), []byte(strings.Split(m.new, "\f")[i]), 1)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(changed, src, 0o600); err != nil {
		t.Fatal(err)
	}
	list := struct{ Replace map[string]string }{map[string]string{}}
	if *replayed != "" {
		b, err := os.ReadFile(*replayed)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
	}
	list.Replace[path] = changed
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// TestStand: the text of each mutant stands in the code.
func TestStand(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		m.overlay(t, root)
	}
}

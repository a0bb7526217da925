package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
)

// picture is all that a stopped holder could change when it wakes.
type picture struct {
	keys  map[string]uint64 // ModifyIndex
	files map[string]string
}

func takePicture(t *testing.T, c *harness.Consul, prefix string, files ...string) picture {
	t.Helper()
	p := picture{map[string]uint64{}, map[string]string{}}
	list, _, err := c.Client().KV().List(prefix, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range list {
		p.keys[kv.Key] = kv.ModifyIndex
	}
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		p.files[path] = fmt.Sprintf("inode %d, changed %s: %q", info.Sys().(*syscall.Stat_t).Ino, info.ModTime(), readFile(t, path))
	}
	return p
}

// same fails the test for every key and file that differs.
func (p picture) same(t *testing.T, now picture) {
	t.Helper()
	if len(p.keys) == 0 {
		t.Error("no keys to compare")
	}
	if !maps.Equal(p.keys, now.keys) {
		for k, i := range now.keys {
			if p.keys[k] != i {
				t.Errorf("%s was at index %d and is at %d", k, p.keys[k], i)
			}
		}
		for k := range p.keys {
			if now.keys[k] == 0 {
				t.Errorf("%s was deleted", k)
			}
		}
	}
	for path, was := range p.files {
		if now.files[path] != was {
			t.Errorf("%s was %s and is %s", path, was, now.files[path])
		}
	}
}

// wakesLost lets a stopped holder go on, which must find out and say so.
func wakesLost(t *testing.T, p *harness.Process, lock string) {
	t.Helper()
	p.Thaw()
	if code := p.Wait(cmdLimit); code != 7 {
		t.Errorf("the stopped holder woke and ended with %d, want 7:\n%s", code, p.Stderr())
	}
	if want := "ERROR: " + lock + ": LOST\n"; !strings.Contains(p.Stderr(), want) {
		t.Errorf("the stopped holder did not say %q:\n%s", want, p.Stderr())
	}
}

// An orchestrator is stopped in mid-stage for longer than its check's TTL. The
// next one takes over and finishes; the first wakes and writes nothing at all.
func TestStoppedRollout(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	turns := t.TempDir()
	f := newFleet(t, c, "stopped", 4, reload(turns))
	f.watchOrders()
	touch(t, filepath.Join(turns, "open-1"))
	a := harness.Start(t, f.rollout())
	harness.Eventually(t, fleetLimit, "the second node works", func() bool { return exists(filepath.Join(turns, "2")) })
	a.Freeze()
	touch(t, filepath.Join(turns, "open"))
	f.finishes()
	f.succeeded()
	var files []string
	for _, n := range f.nodes {
		files = append(files, f.file(n))
	}
	before := takePicture(t, c, string(f.prefix), files...)
	wakesLost(t, a, fleetConfig)
	before.same(t, takePicture(t, c, string(f.prefix), files...))
}

// quickPolicy breaks a holder that is alive, long before Consul would give it up.
const quickPolicy = `policy "quick" {
  locks = ["**"]
  hot "held" {
    when = lock.held_for > duration("1s")
  }
  break {
    approval = "auto"
    confirm {
      observations = 2
      every        = "200ms"
    }
    step "request" {
      when = holder.alive
      wait = "500ms"
    }
    step "take" {
    }
    budget {
      max = 3
      per = "1h"
    }
  }
}
`

// A holder of lock exec is stopped. Whether Consul ends its session or a policy
// breaks it at once: its command is dead before the next one's starts, and when
// it wakes it writes nothing.
func TestStoppedExec(t *testing.T) {
	t.Parallel()
	c := harness.StartConsul(t)
	// Both wait most of the time: they share one turn of the parallel tests.
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, by := range []struct {
		name   string
		policy string
	}{{"expiry", ""}, {"break", quickPolicy}} {
		wg.Go(func() { t.Run(by.name, func(t *testing.T) { stoppedExec(t, c, by.name, by.policy) }) })
	}
}

func stoppedExec(t *testing.T, c *harness.Consul, name, policy string) {
	dir := t.TempDir()
	prefix := "exec-" + name
	events, done := filepath.Join(dir, "events"), filepath.Join(dir, "done")
	args := []string{"lock", "exec", "-prefix", prefix}
	if policy != "" {
		path := filepath.Join(dir, "policy.hcl")
		if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-policy", path)
	}
	const script = `echo start $AIMLOCK_TOKEN $$ >>"$0"
				while [ ! -e "$1" ]; do echo works $AIMLOCK_TOKEN $$ >>"$0"; sleep 0.05; done
				echo end $AIMLOCK_TOKEN $$ >>"$0"`
	spec := harness.Spec{Path: harness.Aimlock.Path(t), Args: append(args, "push", "--", "sh", "-c", script, events, done), Env: c.Env()}

	starts := func() []string {
		var tokens []string
		b, err := os.ReadFile(events)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); f[0] == "start" {
				tokens = append(tokens, f[1])
			}
		}
		return tokens
	}
	a := harness.Start(t, spec)
	harness.Eventually(t, cmdLimit, "the first command runs", func() bool { return len(starts()) == 1 })
	a.Freeze()
	b := harness.Start(t, spec)
	// TTL of the check, and the lock-delay, while which the quiesce is served.
	harness.Eventually(t, fleetLimit, "the second command runs", func() bool { return len(starts()) == 2 })
	touch(t, done)
	if code := b.Wait(cmdLimit); code != 0 {
		t.Errorf("the second holder: exit %d:\n%s", code, b.Stderr())
	}
	before := takePicture(t, c, prefix+"/", events)
	wakesLost(t, a, "push")
	before.same(t, takePicture(t, c, prefix+"/", events))

	tokens, owner := starts(), ""
	if tokens[0] == tokens[1] {
		t.Errorf("both holders had token %s", tokens[0])
	}
	for line := range strings.Lines(readFile(t, events)) {
		f := strings.Fields(line)
		if f[0] == "start" {
			owner = f[1]
		}
		if f[1] != owner || f[0] == "end" && f[1] == tokens[0] {
			t.Fatalf("%q while %s was the holder, after %s", line, owner, tokens[0])
		}
	}
}

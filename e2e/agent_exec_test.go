package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

// keptNode is a node whose agent is `agent exec`, and its command: a shell script
// that logs what it does.
type keptNode struct {
	*fleet
	node, log string
}

func newKeptNode(t *testing.T, c *harness.Consul, id string) *keptNode {
	t.Helper()
	client, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		t.Fatal(err)
	}
	n := &keptNode{
		fleet: &fleet{t: t, consul: c, client: client, prefix: keys.Prefix(id + "/"), dir: t.TempDir(), env: c.Env(), nodes: []string{id}},
		node:  id,
	}
	n.log = filepath.Join(n.dir, "log")
	n.write("fleet.json", fmt.Sprintf(`[{"node": %q}]`, id))
	n.write("log", "")
	// A content names what the command does with it.
	n.write("child.sh", `exec 3>>"$1"
what=$(cat "$2")
echo "boot $what $$" >&3
case $what in
slow*) sleep 0.3 ;;
stuck*) sleep 600 ;;
late*) sleep 1; exit 3 ;;
esac
trap 'echo "hup $(cat "$2") $$" >&3' HUP
trap 'echo "term $$" >&3; exit 9' TERM
sleep 600 & echo "up $what $$ $!" >&3
wait
while :; do sleep 600 & wait; done
`)
	return n
}

func (n *keptNode) exec(env []string, flags ...string) *harness.Process {
	n.t.Helper()
	args := append([]string{
		"agent", "exec", "-prefix", string(n.prefix), "-node", n.node, "-root", filepath.Join(n.dir, n.node, "root"),
		"-state-dir", filepath.Join(n.dir, n.node, "state"),
	}, flags...)
	args = append(args, fleetConfig, "--", "sh", filepath.Join(n.dir, "child.sh"), n.log, n.file(n.node))
	return harness.Start(n.t, harness.Spec{Path: harness.Aimlock.Path(n.t), Args: args, Env: append(n.env, env...), Name: "agent exec"})
}

// says waits for a line of the log that begins so, after those before, and
// returns the pids in it.
func (n *keptNode) says(line string, nth int) (pids []int) {
	n.t.Helper()
	harness.Eventually(n.t, cmdLimit, fmt.Sprintf("%q stands %d times in the log", line, nth), func() bool {
		pids = nil
		seen := 0
		for l := range strings.Lines(readFile(n.t, n.log)) {
			if rest, ok := strings.CutPrefix(l, line+" "); ok && strings.HasSuffix(l, "\n") {
				if seen++; seen == nth {
					for _, f := range strings.Fields(rest) {
						if pid, err := strconv.Atoi(f); err == nil {
							pids = append(pids, pid)
						}
					}
					return true
				}
			}
		}
		return false
	})
	return pids
}

func (n *keptNode) gone(pids []int) {
	n.t.Helper()
	harness.Eventually(n.t, cmdLimit, fmt.Sprintf("processes %v are gone", pids), func() bool {
		for _, pid := range pids {
			if b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
				return false
			}
		}
		return true
	})
}

func (n *keptNode) roll(content string) *harness.Process {
	n.t.Helper()
	n.write("app.conf", content)
	n.write("rollout.hcl", fmt.Sprintf(`rollout "app" {
  config %q {
    source      = "app.conf"
    destination = "/etc/app/app.conf"
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "all" {
    percent = 100
  }
}
`, fleetConfig))
	return harness.Start(n.t, n.rollout())
}

func (n *keptNode) stands(content string) {
	n.t.Helper()
	if got := readFile(n.t, n.file(n.node)); got != content {
		n.t.Errorf("%q stands, want %q", got, content)
	}
}

// An agent that keeps a command is killed by SIGKILL, without Consul, and while a
// config is tried by which the command ends.
func TestAgentExecKilled(t *testing.T) {
	t.Parallel()
	n := newKeptNode(t, harness.StartConsul(t), "ek")
	p := n.exec(nil, "-settle", "300ms")
	waitForAgents(t, n.consul, n.nodes)
	if code := n.roll("one").Wait(fleetLimit); code != 0 {
		t.Fatalf("exit %d", code)
	}
	first := n.says("up one", 1)
	p.Kill()
	n.gone(first)
	if !strings.Contains(readFile(t, n.log), fmt.Sprintf("term %d\n", first[0])) {
		t.Errorf("it was not asked to end:\n%s", readFile(t, n.log))
	}

	// With what it has, without Consul.
	p = n.exec([]string{"CONSUL_HTTP_ADDR=127.0.0.1:1"})
	second := n.says("up one", 2)
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(cmdLimit); code != 9 {
		t.Errorf("exit %d, want the command's 9", code)
	}
	n.gone(second)

	// The new config ends the command after a second; before that the agent is
	// killed. The next one comes to the same end as if nothing had happened.
	p = n.exec(nil, "-settle", "3s")
	n.says("up one", 3)
	waitForAgents(t, n.consul, n.nodes)
	roll := n.roll("late")
	n.says("boot late", 1)
	p.Kill()
	n.stands("late")
	p = n.exec(nil, "-settle", "3s")
	n.says("boot late", 2)
	last := n.says("up one", 4)
	n.stands("one")
	if code := roll.Wait(fleetLimit); code != 6 {
		t.Errorf("the rollout: exit %d\n%s", code, roll.Stderr())
	}
	var a records.Actual
	n.record(n.prefix.Actual(fleetConfig, n.node), &a)
	if a.Result != records.ResultFailed && a.Result != records.ResultRolledBack {
		t.Errorf("%s", records.Encode(a))
	}
	p.Signal(syscall.SIGTERM)
	p.Wait(cmdLimit)
	n.gone(last)
}

// What others deliver is followed; a command that has just started gets no signal
// of which it would die.
func TestAgentExecSignal(t *testing.T) {
	t.Parallel()
	n := newKeptNode(t, harness.StartConsul(t), "es")
	apply := func(seq uint64, content string, validate ...string) harness.Result {
		t.Helper()
		h := sha256.Sum256([]byte(content))
		sum := hex.EncodeToString(h[:])
		d := records.Desired{
			Version: 1, Revision: sum[:12], Order: orchestrator.Order{Token: 1, Seq: seq}, Rollout: fmt.Sprint("r", seq),
			Chunks: 1, Size: int64(len(content)), SHA256: sum, Destination: "/etc/app/app.conf",
		}
		if len(validate) > 0 {
			d.Validate = &records.Command{Argv: validate}
		}
		staged := agent.Staged{Config: fleetConfig, Node: n.node, Desired: d, Content: []byte(content)}
		n.write("staged", string(staged.Encode()))
		return harness.Run(t, cmdLimit, n.aimlock("agent", "apply", "-staged", "staged", "-state-dir", filepath.Join(n.dir, n.node, "state"),
			"-root", filepath.Join(n.dir, n.node, "root")))
	}
	p := n.exec(nil, "-follow", "-signal", "HUP", "-settle", "1s", "-restarts", "0")
	apply(1, "slow")
	boot := n.says("boot slow", 1)
	apply(2, "two")
	if hup := n.says("hup two", 1); hup[0] != boot[0] {
		t.Errorf("process %d was told, %d had started", hup[0], boot[0])
	}
	// One that is not valid is none of its business.
	if r := apply(3, "three", "/bin/false"); r.Code != 1 {
		t.Errorf("exit %d", r.Code)
	}
	apply(4, "four")
	n.says("hup four", 1)
	if log := readFile(t, n.log); strings.Contains(log, "three") || strings.Count(log, "boot") != 1 {
		t.Errorf("%s", log)
	}
	// Signals that come while it starts end it, and nothing is left.
	p.Signal(syscall.SIGHUP)
	n.says("hup four", 2)
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(cmdLimit); code != 9 {
		t.Errorf("exit %d", code)
	}
	apply(5, "stuck")
	p = n.exec(nil, "-follow")
	boot = n.says("boot stuck", 1)
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(cmdLimit); code != 143 {
		t.Errorf("exit %d", code)
	}
	n.gone(boot)
}

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
)

var groupConfigs = []string{"main.conf", "limits.conf", "routes.conf"}

// groupFleet is a fleet of agents that are processes of their own, and get three
// configs by one rollout.
type groupFleet struct {
	*fleet
	mu     sync.Mutex
	agents map[string]*harness.Process
}

func newGroupFleet(t *testing.T, c *harness.Consul, id string, n int) *groupFleet {
	t.Helper()
	client, err := consulkv.New(consulkv.Config{Address: c.Addr})
	if err != nil {
		t.Fatal(err)
	}
	f := &groupFleet{
		fleet:  &fleet{t: t, consul: c, client: client, prefix: keys.Prefix(id + "/"), dir: t.TempDir(), env: c.Env()},
		agents: map[string]*harness.Process{},
	}
	var list []string
	for i := range n {
		f.nodes = append(f.nodes, fmt.Sprintf("%s-n%d", id, i+1))
		list = append(list, fmt.Sprintf(`{"node": %q}`, f.nodes[i]))
	}
	f.write("fleet.json", "["+strings.Join(list, ",")+"]")
	for _, node := range f.nodes {
		f.launch(node)
	}
	waitForAgents(t, c, f.nodes)
	return f
}

func (f *groupFleet) launch(node string) {
	p := harness.Start(f.t, harness.Spec{
		Path: harness.Aimlock.Path(f.t), Env: f.env, Dir: f.dir, Name: "agent " + node,
		Args: []string{
			"agent", "-prefix", string(f.prefix), "-node", node,
			"-state-dir", filepath.Join(f.dir, node, "state"), "-root", filepath.Join(f.dir, node, "root"),
		},
	})
	f.mu.Lock()
	f.agents[node] = p
	f.mu.Unlock()
}

func (f *groupFleet) agent(node string) *harness.Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents[node]
}

// spec writes the rollout of revision v; extra stands in the config block that
// is named.
func (f *groupFleet) spec(v int, each string, extra map[string]string) {
	var s strings.Builder
	s.WriteString("rollout \"group\" {\n")
	for _, c := range groupConfigs {
		f.write(c, fmt.Sprintf("%s of revision %d\n", c, v))
		fmt.Fprintf(&s, "  config %q {\n    source      = %q\n    destination = \"/etc/group/%s\"\n%s\n%s\n  }\n", c, c, c, each, extra[c])
	}
	s.WriteString("  fleet {\n    file {\n      path = \"fleet.json\"\n    }\n  }\n  stage \"all\" {\n    percent = 100\n  }\n  failure {\n    max_failed = 1\n  }\n}\n")
	f.write("rollout.hcl", s.String())
}

// revisions are those of a node's files: one that does not exist is 0.
func (f *groupFleet) revisions(node string) []int {
	f.t.Helper()
	out := make([]int, len(groupConfigs))
	for i, c := range groupConfigs {
		b, err := os.ReadFile(filepath.Join(f.dir, node, "root/etc/group", c))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, serr := fmt.Sscanf(string(b), c+" of revision %d\n", &out[i]); err != nil || serr != nil {
			f.t.Fatalf("%s of %s is %q: %v %v", c, node, b, err, serr)
		}
	}
	return out
}

// all checks that every file of a node is of revision v.
func (f *groupFleet) all(node string, v int) {
	f.t.Helper()
	for i, got := range f.revisions(node) {
		if got != v {
			f.t.Errorf("%s of %s is of revision %d, want %d; all are %v", groupConfigs[i], node, got, v, f.revisions(node))
		}
	}
}

// One config of three is not valid on one node: that node has all of its old
// files, its three answers say which config it was, and the others have all of
// the new ones.
func TestGroupAllOrNone(t *testing.T) {
	t.Parallel()
	f := newGroupFleet(t, harness.StartConsul(t), "ga", 3)
	f.spec(1, "", nil)
	f.finishes()
	for _, node := range f.nodes {
		f.all(node, 1)
	}
	f.spec(2, "", map[string]string{"limits.conf": `    validate = ["/bin/sh", "-c", "echo limit 7 is unknown; test $AIMLOCK_NODE != ga-n2"]`})
	r := harness.Run(t, fleetLimit, f.rollout())
	if r.Code != 0 {
		t.Errorf("exit %d; %s\n%s", r.Code, r.Stdout, r.Stderr)
	}
	f.all("ga-n1", 2)
	f.all("ga-n2", 1)
	f.all("ga-n3", 2)
	for _, c := range groupConfigs {
		var a records.Actual
		f.record(f.prefix.Actual(c, "ga-n2"), &a)
		if a.Result != records.ResultFailed || !strings.HasPrefix(a.Error, "limits.conf: validate: sh ended with status 1") || a.Output != "limit 7 is unknown" {
			t.Errorf("%s: %s", c, records.Encode(a))
		}
	}
	status := harness.Output(t, cmdLimit, harness.Spec{
		Path: harness.Aimlock.Path(t), Args: []string{"agent", "status", "-state-dir", filepath.Join(f.dir, "ga-n2", "state")},
	})
	if !strings.Contains(status, "ALL OR NONE WITH") || !strings.Contains(status, "limits.conf, routes.conf") {
		t.Errorf("%s", status)
	}
}

// TestGroupKilledUnderLoad kills agents by SIGKILL at moments of chance while
// rollouts of three configs go over them, one after the other, and starts them
// again. Each rollout ends well, and no node is left with files of two
// revisions, nor between the kill and the next order.
func TestGroupKilledUnderLoad(t *testing.T) {
	t.Parallel()
	const rounds, size = 6, 5
	f := newGroupFleet(t, harness.StartConsul(t), "gk", size)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	mixed, kills := 0, 0
	for v := 1; v <= rounds; v++ {
		// The marks tell that a node is at work; the commands take their time, so
		// that a kill meets all of it.
		mark := filepath.Join(f.dir, fmt.Sprint("mark-", v, "-"))
		f.spec(v, fmt.Sprintf(`    validate = ["/bin/sh", "-c", "touch %s$AIMLOCK_NODE; sleep 0.02"]
    reload   = ["/bin/sh", "-c", "sleep 0.05"]`, mark), nil)
		p := harness.Start(t, f.rollout())
		var wg sync.WaitGroup
		for i, node := range f.nodes {
			rnd := rand.New(rand.NewPCG(seed, uint64(v*size+i)))
			wg.Go(func() {
				harness.Eventually(t, fleetLimit, node+" is at work", func() bool {
					_, err := os.Stat(mark + node)
					return err == nil
				})
				wait := time.NewTimer(time.Duration(rnd.IntN(250)) * time.Millisecond)
				defer wait.Stop()
				select {
				case <-wait.C:
				case <-t.Context().Done():
					return
				}
				old := f.agent(node)
				old.Signal(syscall.SIGKILL)
				<-old.Done()
				f.mu.Lock()
				kills++
				if r := f.revisions(node); r[0] != r[1] || r[1] != r[2] {
					mixed++
				}
				f.mu.Unlock()
				f.launch(node)
			})
		}
		wg.Wait()
		if code := p.Wait(fleetLimit); code != 0 {
			t.Fatalf("round %d: exit %d\n%s\n%s", v, code, p.Stdout(), p.Stderr())
		}
		for _, node := range f.nodes {
			f.all(node, v)
			var order orchestrator.Order
			for i, c := range groupConfigs {
				var a records.Actual
				f.record(f.prefix.Actual(c, node), &a)
				if i == 0 {
					order = a.Order
				}
				if a.Result != records.ResultApplied || a.Order != order {
					t.Errorf("round %d: %s: %s", v, node, records.Encode(a))
				}
			}
		}
	}
	t.Logf("%d kills, of which %d left files of two revisions until the agent was back", kills, mixed)
	// A node that is killed and comes back without an orchestrator, and without
	// Consul, is of one revision too.
	f.spec(rounds+1, fmt.Sprintf(`    reload = ["/bin/sh", "-c", "touch %s-$AIMLOCK_NODE; sleep 0.3"]`, filepath.Join(f.dir, "last")), nil)
	p := harness.Start(t, f.rollout())
	node := f.nodes[0]
	harness.Eventually(t, fleetLimit, "it is at work", func() bool {
		_, err := os.Stat(filepath.Join(f.dir, "last-"+node))
		return err == nil
	})
	old := f.agent(node)
	old.Signal(syscall.SIGKILL)
	<-old.Done()
	p.Kill()
	f.env = append(f.env, "CONSUL_HTTP_ADDR=127.0.0.1:1")
	f.launch(node)
	harness.Eventually(t, fleetLimit, "it has ended what was under way", func() bool {
		all, err := agent.ReadStatus(filepath.Join(f.dir, node, "state"))
		if err != nil || len(all) != len(groupConfigs) {
			return false
		}
		for _, s := range all {
			if s.State != records.ResultApplied || s.Order != all[0].Order {
				return false
			}
		}
		return true
	})
	f.all(node, rounds+1)
}

package soak

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/e2e/harness"
	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

var (
	forTime = flag.Duration("for", 0, "soak for so long; 0: not at all")
	every   = flag.Duration("every", 3*time.Second, "a rollout begins so often")
)

const (
	// agents in this process, whose goroutines and heap are counted; one more is
	// a process of its own.
	agents = 8
	// killEvery is in how many rounds a holder is killed, and its lock broken.
	killEvery = 20
	// keptRollouts is how many finished rollouts are kept at most. What is kept
	// of them grows until there are as many.
	keptRollouts = 100
	limit        = 2 * time.Minute
)

const rolloutSpec = `rollout "app" {
  config "app.conf" {
    source      = "app.conf"
    destination = "/etc/app.conf"
    validate    = ["/bin/true"]
  }
  fleet {
    file {
      path = "fleet.json"
    }
  }
  stage "canary" {
    nodes = 1
  }
  stage "rest" {
    percent = 100
  }
}
`

// policy breaks as often as it has to.
const policy = `policy "soak" {
  locks = ["**"]
  hot "dead" {
    when  = holder.alive == false
    proof = true
  }
  break {
    approval = "auto"
    step "take" {
    }
    budget {
      max = 100000
      per = "1h"
    }
  }
}
`

// TestSoak: in the whole run memory, goroutines, file descriptors and what stands
// in Consul stay where they are.
func TestSoak(t *testing.T) {
	if *forTime == 0 {
		t.Skip("NOT RUN: make soak DURATION=30m runs it")
	}
	s := start(t)
	begin := time.Now()
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for time.Since(begin) < *forTime {
		s.round()
		s.measure(time.Since(begin))
		<-tick.C
	}
	s.judge()
}

type soak struct {
	t         *testing.T
	consul    *harness.Consul
	client    *api.Client
	dir       string
	locks     *locksmith.Client
	agent     *harness.Process
	locksmith *harness.Process
	metrics   string

	rounds, broken int
	all            []*series
}

func start(t *testing.T) *soak {
	t.Helper()
	s := &soak{t: t, consul: harness.StartConsul(t, harness.WithData(), harness.WithHCL("limits { http_max_conns_per_client = 1000 }")), dir: t.TempDir()}
	s.client = s.consul.Client()
	var fleet []orchestrator.Node
	for i := range agents {
		name := fmt.Sprintf("inside-%d", i)
		fleet = append(fleet, orchestrator.Node{Name: name})
		a, err := agent.New(agent.Config{Node: name, StateDir: filepath.Join(s.dir, name, "state"), Root: filepath.Join(s.dir, name, "root"), Consul: s.kv(), Prefix: keys.DefaultPrefix})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	fleet = append(fleet, orchestrator.Node{Name: "outside"})
	s.agent = s.start("agent", "-node", "outside", "-state-dir", filepath.Join(s.dir, "outside", "state"), "-root", filepath.Join(s.dir, "outside", "root"))
	s.write("policy.hcl", policy)
	s.locksmith = s.start("locksmith", "-policy", "policy.hcl", "-log-level", "info", "-listen", "127.0.0.1:0", "-journal", filepath.Join(s.dir, "journal"))
	address := regexp.MustCompile(`serving metrics and health: address=(\S+)`)
	harness.Eventually(t, limit, "the locksmith serves its metrics", func() bool {
		if m := address.FindStringSubmatch(s.locksmith.Stderr()); m != nil {
			s.metrics = "http://" + m[1] + "/metrics"
		}
		return s.metrics != ""
	})
	harness.Eventually(t, limit, "all agents have checked in", func() bool {
		l, _, err := s.client.Health().Service(agent.ServiceName, "", true, &api.QueryOptions{RequireConsistent: true})
		return err == nil && len(l) == len(fleet)
	})
	var err error
	if s.locks, err = locksmith.New(locksmith.Config{Consul: s.kv(), Reuse: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.locks.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	list, err := json.Marshal(fleet)
	if err != nil {
		t.Fatal(err)
	}
	s.write("fleet.json", string(list))
	s.write("rollout.hcl", rolloutSpec)
	return s
}

func (s *soak) kv() *consulkv.Client {
	s.t.Helper()
	c, err := consulkv.New(consulkv.Config{Address: s.consul.Addr})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *soak) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) start(args ...string) *harness.Process {
	s.t.Helper()
	return harness.Start(s.t, harness.Spec{Path: harness.Aimlock.Path(s.t), Args: args, Env: s.consul.Env(), Dir: s.dir, Name: "aimlock " + args[0]})
}

// round is a rollout of a new content, a lock taken and released in this process,
// and at times a command under a lock, whose holder is killed so that its lock is
// broken.
func (s *soak) round() {
	s.t.Helper()
	s.rounds++
	s.write("app.conf", fmt.Sprintf("revision = %d\n%s", s.rounds, strings.Repeat("x", 4<<10)))
	// Not by the harness, which keeps every process until the test ends: that would
	// be what grows.
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.Aimlock.Path(s.t), "rollout", "start", "rollout.hcl")
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), s.consul.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("round %d: rollout start: %v: %s", s.rounds, err, out)
	}
	hold, err := s.locks.Acquire(s.t.Context(), locksmith.Request{Names: []string{"inside"}, Operation: "soak"})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := hold.Release(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if s.rounds%killEvery != 0 {
		return
	}
	e := s.start("lock", "exec", "job", "--", "sleep", "1000")
	token := func() uint64 {
		kv, _, err := s.client.KV().Get("aimlock/locks/job", &api.QueryOptions{RequireConsistent: true})
		if err != nil || kv == nil || kv.Session == "" {
			return 0
		}
		return kv.ModifyIndex
	}
	harness.Eventually(s.t, limit, "the lock is held", func() bool { return token() != 0 })
	e.Kill()
	harness.Eventually(s.t, limit, "the lock of the killed holder is broken", func() bool { return token() == 0 })
	s.broken++
}

// series finds or makes the series of that name.
func (s *soak) series(name, unit string, slack float64) *series {
	if i := slices.IndexFunc(s.all, func(x *series) bool { return x.name == name }); i >= 0 {
		return s.all[i]
	}
	// Room for all samples, so that what is kept here does not grow.
	room := int(*forTime / *every) + 100
	s.all = append(s.all, &series{name: name, unit: unit, slack: slack, at: make([]time.Duration, 0, room), values: make([]float64, 0, room)})
	return s.all[len(s.all)-1]
}

const mb = 1 << 20

func (s *soak) measure(at time.Duration) {
	s.t.Helper()
	add := func(name, unit string, slack, v float64) { s.series(name, unit, slack).add(at, v) }

	runtime.GC()
	debug.FreeOSMemory()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	add("agents and locks in this process: heap after GC", "MB", 0.5, float64(mem.HeapAlloc)/mb)
	add("agents and locks in this process: goroutines", "", 10, float64(runtime.NumGoroutine()))
	add("agents and locks in this process: descriptors", "", 10, s.descriptors(os.Getpid()))

	add("agent: resident memory", "MB", 1.5, s.resident(s.agent.Pid()))
	add("agent: descriptors", "", 3, s.descriptors(s.agent.Pid()))
	add("locksmith: resident memory", "MB", 1.5, s.resident(s.locksmith.Pid()))
	add("locksmith: descriptors", "", 3, s.descriptors(s.locksmith.Pid()))
	add("locksmith: goroutines", "", 3, s.goroutines())
	add("Consul: resident memory", "MB", -1, s.resident(s.consul.Pid()))

	list, _, err := s.client.KV().Keys("aimlock/", "", &api.QueryOptions{RequireConsistent: true})
	if err != nil {
		s.t.Fatal(err)
	}
	folders := map[string]float64{}
	for _, k := range list {
		folder, _, _ := strings.Cut(strings.TrimPrefix(k, "aimlock/"), "/")
		folders[folder]++
	}
	if int(folders["breaks"]) != s.broken {
		s.t.Fatalf("%v records of breaks, and %d locks were broken", folders["breaks"], s.broken)
	}
	add("keys in Consul: breaks/ (one for each, kept for 90 days)", "", -1, folders["breaks"])
	delete(folders, "breaks")
	total := 0.0
	for _, f := range []string{"rollouts", "configs", "desired", "actual", "observed", "fence", "locks", "progress"} {
		add("keys in Consul: "+f+"/", "", 3, folders[f])
		total, folders[f] = total+folders[f], 0
	}
	rest := 0.0
	for _, n := range folders {
		rest += n
	}
	add("keys in Consul: others", "", 3, rest)

	sessions, _, err := s.client.Session().List(&api.QueryOptions{RequireConsistent: true})
	if err != nil {
		s.t.Fatal(err)
	}
	add("sessions", "", 3, float64(len(sessions)))
	services, err := s.client.Agent().Services()
	if err != nil {
		s.t.Fatal(err)
	}
	add("services of the Consul agent", "", 3, float64(len(services)))
	add("disk of an agent's state", "KB", 20, s.disk(filepath.Join(s.dir, "outside", "state")))
}

// judge prints the table, and fails for what has grown.
func (s *soak) judge() {
	s.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%d rollouts to %d agents and %d broken locks in %s, each row from its %d samples after the first two fifths:\n\n", s.rounds, agents+1, s.broken, *forTime, len(s.all[0].settled().at))
	b.WriteString("| | first | median | last | grew by, as fitted | allowed |\n|---|---|---|---|---|---|\n")
	settled := s.rounds*2/5 > keptRollouts+20
	for _, x := range s.all {
		y := x.settled()
		if len(y.values) == 0 {
			s.t.Fatal("there are no samples: soak for longer")
		}
		allowed := fmt.Sprintf("%.2f", y.allowed())
		kept := strings.HasPrefix(x.name, "keys in Consul: rollouts") || strings.HasPrefix(x.name, "keys in Consul: configs")
		switch {
		case x.slack < 0:
			allowed = "any"
		case kept && !settled:
			allowed = fmt.Sprintf("any (the run is too short: retention keeps %d rollouts)", keptRollouts)
		case y.growth() > y.allowed():
			s.t.Errorf("%s: grew by %.2f %s in the run, and %.2f are allowed", x.name, y.growth(), x.unit, y.allowed())
		}
		unit := ""
		if x.unit != "" {
			unit = " (" + x.unit + ")"
		}
		fmt.Fprintf(&b, "| %s%s | %.2f | %.2f | %.2f | %+.2f | %s |\n", x.name, unit, y.values[0], median(y.values), y.values[len(y.values)-1], y.growth(), allowed)
	}
	fmt.Println(b.String())
}

func (s *soak) resident(pid int) float64 {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return kb / 1024
}

func (s *soak) descriptors(pid int) float64 {
	s.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	return float64(len(list))
}

// goroutines are those that the locksmith's metrics tell of.
func (s *soak) goroutines() float64 {
	s.t.Helper()
	resp, err := http.Get(s.metrics)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	for in.Scan() {
		if n, ok := strings.CutPrefix(in.Text(), "go_goroutines "); ok {
			v, err := strconv.ParseFloat(n, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return v
		}
	}
	s.t.Fatal("the locksmith does not tell how many goroutines it has")
	return 0
}

// disk is what the files of a folder hold, in KB.
func (s *soak) disk(dir string) float64 {
	s.t.Helper()
	total := 0.0
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		total += float64(info.Size()) / 1024
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return total
}

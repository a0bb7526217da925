// Package demo tells aimlock's whole story with real processes on this
// machine: a fleet of agents, a rollout, its orchestrator killed in the middle
// of a stage, a HOT lock that is explained, broken and taken, a stopped
// orchestrator that gives up when it wakes, an order of its that a node refuses,
// and the timeline of it all. It checks the outcome itself, by reading the files.
//
// The programs are this very binary, run as anybody would run it, against package
// devconsul or a Consul of the caller's. Staged is one thing: the late order, which
// the story writes itself.
package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

//go:embed files
var files embed.FS

// Lock is the name of the demo's config and so of its lock.
const Lock = "aim_lock_config.conf"

// destination is where each node's file stands, below its root.
const destination = "/etc/aim/aim_lock_config.conf"

// nodes of the demo's fleet: drones, arms and a research cluster.
var nodes = []string{
	"drone-1", "drone-2", "drone-3", "drone-4", "drone-5", "drone-6",
	"arm-1", "arm-2", "arm-3", "arm-4", "lab-1", "lab-2",
}

// Config says how to run the demo.
type Config struct {
	// Exe is the aimlock binary.
	Exe string
	// Dir is where everything is written; it must exist and be empty.
	Dir string
	// Keep: Dir is there when the story has ended.
	Keep bool
	Out  io.Writer
	Log  hclog.Logger
	// Consul is the address of a Consul to tell the story on, whose keys below
	// the default prefix are not in use. Empty starts an embedded one.
	Consul string
}

// story is one run.
type story struct {
	cfg    Config
	ctx    context.Context //nolint:containedctx // the run itself
	consul string          // address
	kv     *consulkv.Client
	agents []*process
	start  time.Time
	chap   int
}

// step bounds every wait of the story.
const step = 25 * time.Second

// Run tells the story. It returns an error if anything came out otherwise than
// it should, and leaves no process behind.
func Run(ctx context.Context, cfg Config) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg.Out = &lines{w: cfg.Out}
	s := &story{cfg: cfg, ctx: ctx, start: time.Now()}
	if s.consul = cfg.Consul; s.consul == "" {
		embedded, serr := devconsul.Start(devconsul.Config{NodeName: "demo", Log: cfg.Log})
		if serr != nil {
			return fmt.Errorf("start the embedded Consul: %w", serr)
		}
		defer func() { err = errors.Join(err, embedded.Close()) }()
		s.consul = embedded.Addr()
	}
	if s.kv, err = consulkv.New(consulkv.Config{Address: s.consul, Log: cfg.Log}); err != nil {
		return err
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	defer s.stopAgents()
	return s.tell()
}

func (s *story) tell() error {
	where := "runs inside this process"
	if s.cfg.Consul != "" {
		where = "listens on " + s.cfg.Consul
	}
	s.chapter("A fleet of %d machines, and a Consul that %s", len(nodes), where)
	s.line("6 drones, drone-1 to drone-6; 4 arms, arm-1 to arm-4; a research cluster, lab-1 and lab-2")
	if err := s.startAgents(); err != nil {
		return err
	}
	stays := "until the story ends (`aimlock demo -dir FOLDER` keeps them)"
	if s.cfg.Keep {
		stays = "and stay there"
	}
	s.line("each has an agent, a process of this machine, and all have checked in; their files are below %s %s", filepath.Join(s.cfg.Dir, "nodes"), stays)

	s.chapter("The first rollout gives every node revision 1")
	if err := s.finishes("first", "rollout", "start", "first.hcl"); err != nil {
		return err
	}
	if err := s.allHave("v1.conf"); err != nil {
		return err
	}

	first, err := s.desired()
	if err != nil {
		return err
	}

	s.chapter("Revision 2 goes out in stages; its orchestrator A dies by SIGKILL in the middle of one")
	a, err := s.run("A", "rollout", "start", "second.hcl", "-policy", "demo-policy.hcl")
	if err != nil {
		return err
	}
	defer a.kill()
	if err := s.applied(a, "v2.conf", 3); err != nil {
		return err
	}
	a.signal(syscall.SIGKILL)
	_ = a.wait(step)
	s.line("A (pid %d) is gone. Its lock is not: the fleet is held against change", a.pid())

	s.chapter("The next orchestrator B wants the lock, finds it HOT, breaks it and goes on where A died")
	b, err := s.run("B", "rollout", "start", "second.hcl", "-policy", "demo-policy.hcl")
	if err != nil {
		return err
	}
	defer b.kill()
	if err := s.applied(b, "v2.conf", 7); err != nil {
		return err
	}
	if !b.said("ERROR: " + Lock + ": HOT") {
		return errors.New("B did not say that the lock is HOT. If this machine was so busy that it took more than ten seconds, Consul gave the dead A up by itself: try again when it is calmer")
	}

	s.chapter("B hangs: it is stopped by SIGSTOP, alive and silent, and holds the lock")
	b.signal(syscall.SIGSTOP)
	s.line("with `consul lock` the next one would wait some 40 s, until Consul has ended B's session. The demo's policy calls a holder without progress for 3 s HOT")
	stopped, err := s.desired()
	if err != nil {
		return err
	}
	s.line("nodes that B has ordered to change do so without it: more of them are done than B has counted")
	c, err := s.run("C", "rollout", "start", "second.hcl", "-policy", "demo-policy.hcl")
	if err != nil {
		return err
	}
	defer c.kill()
	if err := c.wait(step); err != nil {
		return fmt.Errorf("C was to finish the rollout: %w", err)
	}
	if !c.said("ERROR: " + Lock + ": HOT") {
		return errors.New("C did not say that the lock is HOT")
	}
	if err := s.allHave("v2.conf"); err != nil {
		return err
	}

	s.chapter("B wakes, still believing that it holds the lock, finds that it has lost it, and gives up")
	before, err := s.desired()
	if err != nil {
		return err
	}
	b.signal(syscall.SIGCONT)
	if code := b.exit(step); code != 7 {
		return fmt.Errorf("B ended with %d and not with 7, lock lost", code)
	}
	after, err := s.desired()
	if err != nil {
		return err
	}
	if !maps.EqualFunc(before, after, sameOrder) {
		return errors.New("B changed what the nodes shall have after it had lost the lock")
	}
	s.line("B exited with 7 (the lock was lost while working), and has given no order since it woke")

	s.chapter("An order of B that was still on its way would be refused by the node, by its token")
	if err := s.late(first, stopped, after); err != nil {
		return err
	}
	if err := s.allHave("v2.conf"); err != nil {
		return err
	}

	s.chapter("What caused it? The lock tells its story")
	if err := s.finishes("", "lock", "explain", Lock); err != nil {
		return err
	}
	if err := s.allHave("v2.conf"); err != nil {
		return err
	}
	s.chapter("Done: %d files read, %d of %d are revision 2", len(nodes), len(nodes), len(nodes))
	return nil
}

func (s *story) chapter(format string, args ...any) {
	s.chap++
	_, _ = fmt.Fprintf(s.cfg.Out, "\n[%4.1fs] %d. %s\n", time.Since(s.start).Seconds(), s.chap, fmt.Sprintf(format, args...))
}

func (s *story) line(format string, args ...any) {
	_, _ = fmt.Fprintf(s.cfg.Out, "      - %s\n", fmt.Sprintf(format, args...))
}

func (s *story) writeFiles() error {
	list, err := files.ReadDir("files")
	if err != nil {
		return err
	}
	for _, f := range list {
		b, err := files.ReadFile("files/" + f.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.cfg.Dir, f.Name()), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) startAgents() error {
	for _, n := range nodes {
		p, err := s.quiet(n, "agent", "-node", n, "-state-dir", filepath.Join("nodes", n, "state"), "-root", filepath.Join("nodes", n, "root"))
		if err != nil {
			return err
		}
		s.agents = append(s.agents, p)
	}
	return s.until("all agents to register", func() (bool, error) {
		list, _, err := s.kv.API().Health().Service("aimlock-agent", "", true, nil)
		return len(list) == len(nodes), err
	}, s.agents...)
}

func (s *story) stopAgents() {
	for _, p := range s.agents {
		p.signal(syscall.SIGTERM)
	}
	for _, p := range s.agents {
		p.exit(5 * time.Second)
		p.kill()
	}
}

// until waits for a condition, by asking several times a second; a process
// among ps that ends before it holds is an error.
func (s *story) until(what string, cond func() (bool, error), ps ...*process) error {
	deadline := time.NewTimer(step)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := cond(); err != nil || ok {
			return err
		}
		for _, p := range ps {
			select {
			case <-p.done:
				return fmt.Errorf("%s ended (exit code %d) while waiting for %s%s", p.title, p.code, what, p.unseen())
			default:
			}
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("waited %s for %s", step, what)
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// applied waits until at least n nodes' files are the demo's file name.
func (s *story) applied(p *process, name string, n int) error {
	return s.until(fmt.Sprintf("%d nodes to have %s", n, name), func() (bool, error) {
		have, err := s.count(name)
		return have >= n, err
	}, p)
}

func (s *story) count(name string) (int, error) {
	want, err := files.ReadFile("files/" + name)
	if err != nil {
		return 0, err
	}
	have := 0
	for _, n := range nodes {
		got, err := os.ReadFile(filepath.Join(s.cfg.Dir, "nodes", n, "root", destination))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		if string(got) == string(want) {
			have++
		}
	}
	return have, nil
}

// allHave reads every node's file.
func (s *story) allHave(name string) error {
	have, err := s.count(name)
	if err != nil {
		return err
	}
	if have != len(nodes) {
		return fmt.Errorf("only %d of %d nodes have %s", have, len(nodes), name)
	}
	s.line("read %d files: every node has %s", have, name)
	return nil
}

// desired is what each node shall have.
func (s *story) desired() (map[string]records.Desired, error) {
	list, err := s.kv.List(s.ctx, keys.Prefix(keys.DefaultPrefix).DesiredAll(Lock))
	if err != nil {
		return nil, err
	}
	all := map[string]records.Desired{}
	for _, p := range list {
		var d records.Desired
		if err := records.Decode(p.Key, p.Value, &d); err != nil {
			return nil, err
		}
		all[keys.LastSegment(p.Key)] = d
	}
	return all, nil
}

func sameOrder(a, b records.Desired) bool { return a.Order == b.Order && a.Revision == b.Revision }

// late writes an order of the stopped B past its lock, to a node that C has given
// one since: back to what it had at first. stopped is what stood when B was
// stopped, now what stands. The node is to refuse it.
func (s *story) late(first, stopped, now map[string]records.Desired) error {
	var last orchestrator.Order
	for _, d := range stopped {
		if last.Less(d.Order) {
			last = d.Order
		}
	}
	last.Seq++
	node := ""
	for _, n := range nodes {
		if last.Less(now[n].Order) {
			node = n
		}
	}
	if node == "" {
		return errors.New("C gave no node an order, and was to finish the rollout")
	}
	d, prefix := first[node], keys.Prefix(keys.DefaultPrefix)
	d.Order, d.Rollout, d.After = last, now[node].Rollout, nil
	s.line("the story writes one in B's name, with B's token %d, into Consul: %s back to revision 1. C has given it one with token %d", last.Token, node, now[node].Token)
	if err := s.kv.Put(s.ctx, prefix.Desired(Lock, node), records.Encode(&d)); err != nil {
		return err
	}
	var answer records.Actual
	err := s.until(node+" to refuse the order", func() (bool, error) {
		p, err := s.kv.Get(s.ctx, prefix.Actual(Lock, node))
		if err != nil || p == nil {
			return false, err
		}
		answer = records.Actual{}
		err = records.Decode(p.Key, p.Value, &answer)
		return answer.Refused != nil && *answer.Refused == last, err
	}, s.agents...)
	if err != nil {
		return err
	}
	s.line("%s answers: %s", node, answer.Error)
	return nil
}

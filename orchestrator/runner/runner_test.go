package runner_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/devconsul"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
)

const config = "app.conf"

// fleet is a Consul, agents of this process and the files that they write.
type fleet struct {
	t     *testing.T
	ctx   context.Context // what agents are started with
	kv    *consulkv.Client
	dir   string
	nodes []orchestrator.Node
	stop  map[string]context.CancelFunc
	done  map[string]chan struct{}
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	return newFleetIn(context.Background(), t, n)
}

// newFleetIn is newFleet with agents whose context has what ctx carries.
func newFleetIn(ctx context.Context, t *testing.T, n int) *fleet {
	t.Helper()
	srv, err := devconsul.Start(devconsul.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	kv, err := consulkv.New(consulkv.Config{Address: srv.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, ctx: context.WithoutCancel(ctx), kv: kv, dir: t.TempDir(), stop: map[string]context.CancelFunc{}, done: map[string]chan struct{}{}}
	for i := range n {
		f.nodes = append(f.nodes, orchestrator.Node{Name: fmt.Sprintf("n%02d", i)})
	}
	for _, n := range f.nodes {
		f.startAgent(n.Name)
	}
	f.registered()
	return f
}

// registered waits until each node's agent is.
func (f *fleet) registered() {
	f.t.Helper()
	f.until("agents to register", func() bool {
		l, _, err := f.kv.API().Health().Service(runner.AgentService, "", true, nil)
		return err == nil && len(l) == len(f.nodes)
	})
}

func (f *fleet) startAgent(node string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Join(f.dir, node, "root"), 0o755); err != nil {
		f.t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Node: node, StateDir: filepath.Join(f.dir, node, "state"), Root: filepath.Join(f.dir, node, "root"),
		Consul: f.kv, Prefix: keys.DefaultPrefix,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Run(ctx) }()
	f.stop[node], f.done[node] = cancel, done
	f.t.Cleanup(func() { cancel(); <-done })
}

func (f *fleet) until(what string, cond func() bool) {
	f.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited too long for %s", what)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-f.t.Context().Done():
			f.t.Fatal(f.t.Context().Err())
		}
	}
}

func (f *fleet) runner() *runner.Runner {
	f.t.Helper()
	return runner.New(runner.Config{Consul: f.kv, Prefix: keys.DefaultPrefix, Locks: runner.Locksmith(f.locks()), By: "tester",
		Tell: func(p runner.Progress) {
			if p.Text != "" {
				f.t.Logf("%s %s", p.Node, p.Text)
			}
		}})
}

func (f *fleet) input(content string, stages ...orchestrator.Stage) runner.Input {
	sum := sha256.Sum256([]byte(content))
	hash := hex.EncodeToString(sum[:])
	return runner.Input{
		Spec: orchestrator.Spec{
			Name: "app", Hash: hash,
			Configs: []orchestrator.Config{{Name: config, SHA256: hash, Revision: hash[:12], Size: int64(len(content)), Destination: "/etc/app.conf"}},
			Lock:    orchestrator.Lock{TTL: 15 * time.Second, Wait: time.Minute},
			Stages:  stages,
			Failure: orchestrator.Failure{Then: orchestrator.ThenPause, MaxUnreachablePercent: 100},
		},
		Contents: map[string][]byte{config: []byte(content)},
		Fleet:    runner.StaticFleet(f.nodes),
	}
}

func (f *fleet) file(node string) string {
	b, err := os.ReadFile(filepath.Join(f.dir, node, "root/etc/app.conf"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	return string(b)
}

func (f *fleet) count(content string) int {
	n := 0
	for _, x := range f.nodes {
		if f.file(x.Name) == content {
			n++
		}
	}
	return n
}

var (
	canary = orchestrator.Stage{Name: "canary", Nodes: 1}
	half   = orchestrator.Stage{Name: "half", Percent: 50, MaxParallel: 2}
	rest   = orchestrator.Stage{Name: "rest", Percent: 100}
)

func TestStart(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 8)
	r := f.runner()
	out, err := r.Start(t.Context(), f.input("one", canary, half, rest))
	if err != nil {
		t.Fatal(err)
	}
	if !out.Converged || out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassApplied] != 8 {
		t.Fatalf("%+v", out.Header)
	}
	if n := f.count("one"); n != 8 {
		t.Fatalf("%d of 8 files", n)
	}
	// A lock's timeline says what the nodes are that count as done.
	var said records.Progress
	key := keys.Prefix(keys.DefaultPrefix).Progress(config)
	if p, err := f.kv.Get(t.Context(), key); err != nil || p == nil || records.Decode(key, p.Value, &said) != nil || said.Done != 8 || said.Note != "8 applied; succeeded, stage rest" {
		t.Errorf("the last progress: %+v, %v", said, err)
	}
	head, err := r.Show(t.Context(), out.ID)
	if err != nil || head.State != orchestrator.Succeeded || head.FinishedAt == nil {
		t.Fatalf("%+v, %v", head, err)
	}
	again, err := r.Start(t.Context(), f.input("one", canary, half, rest))
	if err != nil || !again.Converged || again.ID != out.ID {
		t.Fatalf("a second start of the same: %+v, %v", again, err)
	}
	f.nodes = append(f.nodes, orchestrator.Node{Name: "late"})
	f.startAgent("late")
	late, err := r.Start(t.Context(), f.input("one", canary, half, rest))
	if err != nil || late.Header.Follows != out.ID || late.Header.Total != 1 || f.file("late") != "one" {
		t.Fatalf("a late joiner: %+v, %v", late, err)
	}
	if want := "it brought the revision of " + out.ID + " to nodes that had none of it"; late.Note != want {
		t.Errorf("it has succeeded: %q, want %q", late.Note, want)
	}
}

// A follow-up tells what it has done only once it has done it: before, and where it did
// not succeed, it tells what is to be done.
func TestNoteOfAFollowUp(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	r, in := f.runner(), f.input("one", rest)
	first, err := r.Start(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	// Where its file is to be stands a folder.
	if err := os.MkdirAll(filepath.Join(f.dir, "late/root/etc/app.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.nodes = append(f.nodes, orchestrator.Node{Name: "late"})
	f.startAgent("late")
	f.registered()
	in.Fleet = runner.StaticFleet(f.nodes)
	want := "the revision of " + first.ID + " is still to go to 1 node"
	if p, err := r.Preview(t.Context(), in); err != nil || p.Note != want {
		t.Errorf("before it: %v, %v, want %q", p, err, want)
	}
	out, err := r.Start(t.Context(), in)
	if err != nil || out.Header.Follows != first.ID || out.Header.State == orchestrator.Succeeded || out.Note != want {
		t.Errorf("it has failed: %+v, %v, want %q", out, err, want)
	}
}

// A canary that fails sends every node back to what it had.
func TestFailureRollsBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	r := f.runner()
	first := f.input("one", rest)
	if _, err := r.Start(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	in := f.input("two", canary, orchestrator.Stage{Name: "two", Nodes: 2}, rest)
	in.Spec.Failure = orchestrator.Failure{Then: orchestrator.ThenRollback, MaxUnreachablePercent: 100}
	// The canary, n00, is healthy; n01 is not.
	in.Spec.Configs[0].Healthy = &orchestrator.Command{Argv: []string{"sh", "-c", `case "$AIMLOCK_STAGED$AIMLOCK_DESTINATION" in *n01*) echo no good; exit 1;; esac`}}
	out, err := r.Start(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if out.Header.State != orchestrator.RolledBack {
		t.Fatalf("%s: %s", out.Header.State, out.Header.Reason)
	}
	if n := f.count("one"); n != 4 {
		t.Fatalf("%d of 4 nodes are back", n)
	}
	// Who plans it again is told.
	for spec, want := range map[*orchestrator.Spec]string{&in.Spec: out.ID, &first.Spec: ""} {
		got := ""
		past, err := r.Past(t.Context(), spec)
		if past.RolledBack != nil {
			got = past.RolledBack.ID
		}
		if err != nil || got != want || past.Measured == 0 {
			t.Errorf("rolled back: %q and %d measured, %v, want %q", got, past.Measured, err, want)
		}
	}
	c := out.Header.Counts
	if c.Total() != 4 || c[orchestrator.ClassFailed] != 1 || c[orchestrator.ClassRolledBack] != 2 || c[orchestrator.ClassSkipped] != 1 {
		t.Fatalf("counts %v", c)
	}
}

// A plan is compared with what those have that are to change, however few they are.
func TestPreviewComparesWithWhatChanges(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	r := f.runner()
	shows := func(in runner.Input, want string) {
		t.Helper()
		if p, err := r.Preview(t.Context(), in); err != nil || string(p.Now[config]) != want {
			t.Errorf("%q, %v, want %q", p.Now[config], err, want)
		}
	}
	most := orchestrator.Stage{Name: "most", Nodes: 2, Bake: time.Hour}
	in := f.input("one", most, rest)
	out, err := r.Tick(t.Context(), in)
	if err != nil || out.Header.State != orchestrator.Baking {
		t.Fatalf("%+v, %v", out, err)
	}
	shows(in, "") // the third has nothing that is known
	if _, err := r.Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Promote}); err != nil {
		t.Fatal(err)
	}
	if out, err := r.Start(t.Context(), in); err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v, %v", out, err)
	}
	shows(in, "one")
	// A Consul that began anew: the nodes say what they have, and that is the plan's own.
	kv, prefix := f.kv.API().KV(), keys.Prefix(keys.DefaultPrefix)
	sum := out.Header.Configs[0].SHA256
	content, _, err := kv.List(prefix.Config(config, sum), nil)
	if err != nil || len(content) != 1 {
		t.Fatalf("%v, %v", content, err)
	}
	if _, err := kv.DeleteTree(prefix.Config(config, sum), nil); err != nil {
		t.Fatal(err)
	}
	shows(in, "one")
	shows(f.input("two", most, rest), "")
	if _, err := kv.Put(content[0], nil); err != nil {
		t.Fatal(err)
	}
	in = f.input("two", most, rest)
	if out, err := r.Tick(t.Context(), in); err != nil || out.Header.State != orchestrator.Baking {
		t.Fatalf("%+v, %v", out, err)
	}
	shows(in, "one")
}

func TestTickDoesWhatItCanAndLeaves(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	r := f.runner()
	bake := canary
	bake.Bake = 2 * time.Second
	in := f.input("one", bake, rest)
	out, err := r.Tick(t.Context(), in)
	if err != nil || out.Converged || out.Header.State != orchestrator.Baking {
		t.Fatalf("%+v %v", out, err)
	}
	if f.count("one") != 1 {
		t.Fatalf("%d files", f.count("one"))
	}
	p, err := f.kv.Get(t.Context(), keys.Prefix(keys.DefaultPrefix).Lock(config))
	if err != nil || p.Session != "" {
		t.Fatalf("a tick kept the lock: %v", err)
	}
	f.until("the bake to end and a tick to finish", func() bool {
		out, err = r.Tick(t.Context(), in)
		return err == nil && out.Converged
	})
	if f.count("one") != 4 {
		t.Fatalf("%d files", f.count("one"))
	}
}

func TestTickLeavesItToAnotherCopy(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	c := f.locks()
	h, err := c.Acquire(t.Context(), locksmith.Request{Names: []string{config}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.runner().Tick(t.Context(), f.input("one", rest))
	if err != nil || out.Busy == nil || out.Busy.Name != config {
		t.Fatalf("%+v %v", out, err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Commands work from another process while the rollout runs, and while nobody
// runs it.
func TestCommands(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 4)
	r := f.runner()
	bake := canary
	bake.Bake = time.Hour
	in := f.input("one", bake, rest)
	ended := make(chan error, 1)
	go func() {
		out, err := r.Start(t.Context(), in)
		if err == nil && out.Header.State != orchestrator.Succeeded {
			err = fmt.Errorf("it is %s", out.Header.State)
		}
		ended <- err
	}()
	other := f.runner()
	id := ""
	f.until("the canary to bake", func() bool {
		var err error
		if id, err = other.Find(t.Context(), "app"); err != nil {
			return false
		}
		h, err := other.Show(t.Context(), id)
		return err == nil && h.State == orchestrator.Baking
	})
	for _, step := range []struct {
		verb orchestrator.Verb
		want orchestrator.Status
	}{{orchestrator.Pause, orchestrator.Paused}, {orchestrator.Resume, orchestrator.Baking}} {
		h, err := other.Command(t.Context(), runner.Order{ID: id, Verb: step.verb})
		if err != nil || !h.Command.OK || h.State != step.want {
			t.Fatalf("%s: %+v %v", step.verb, h, err)
		}
	}
	if h, err := other.Command(t.Context(), runner.Order{ID: id, Verb: orchestrator.Promote}); err != nil || !h.Command.OK {
		t.Fatalf("promote: %+v %v", h, err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if f.count("one") != 4 {
		t.Fatalf("%d files", f.count("one"))
	}

	// Nobody drives this one.
	in = f.input("two", bake, rest)
	out, err := r.Tick(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	h, err := other.Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Rollback, Reason: "no good"})
	if err != nil || h.State != orchestrator.RolledBack {
		t.Fatalf("%+v %v", h, err)
	}
	if f.count("one") != 4 {
		t.Fatalf("%d nodes are back", f.count("one"))
	}
	if _, err := other.Command(t.Context(), runner.Order{ID: out.ID, Verb: orchestrator.Pause}); err == nil {
		t.Fatal("a rollout that has ended was paused")
	}
}

// A new content takes the place of an unfinished rollout of the same config.
func TestSupersede(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	r := f.runner()
	bake := canary
	bake.Bake = time.Hour
	old, err := r.Tick(t.Context(), f.input("one", bake, rest))
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.Start(t.Context(), f.input("two", rest))
	if err != nil || out.Header.State != orchestrator.Succeeded {
		t.Fatalf("%+v %v", out, err)
	}
	h, err := r.Show(t.Context(), old.ID)
	if err != nil || h.State != orchestrator.Superseded || h.SupersededBy != out.ID {
		t.Fatalf("%+v %v", h, err)
	}
	if f.count("two") != 2 {
		t.Fatalf("%d files", f.count("two"))
	}
}

// A node whose agent is gone ends as unreachable and holds nobody up.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	f.nodes = append(f.nodes, orchestrator.Node{Name: "zz-never-there"})
	out, err := f.runner().Start(t.Context(), f.input("one", rest))
	if err != nil {
		t.Fatal(err)
	}
	if out.Header.State != orchestrator.Succeeded || out.Header.Counts[orchestrator.ClassUnreachable] != 1 || out.Header.Counts[orchestrator.ClassApplied] != 3 {
		t.Fatalf("%s %v", out.Header.State, out.Header.Counts)
	}
	// What became of it is said once.
	s, err := f.runner().Story(t.Context(), out.ID)
	if err != nil || len(s.Failures) != 1 || s.Failures[0].Class != orchestrator.ClassUnreachable || s.Failures[0].Why == "" || strings.Contains(s.Failures[0].Why, "unreachable") {
		t.Fatalf("%+v %v", s, err)
	}
	// It has its order all the same, and gets it when it comes.
	p, err := f.kv.Get(t.Context(), keys.Prefix(keys.DefaultPrefix).Desired(config, "zz-never-there"))
	if err != nil || p == nil {
		t.Fatalf("it has no order: %v", err)
	}
	var d records.Desired
	if err := records.Decode(p.Key, p.Value, &d); err != nil || d.Token != out.Header.Token {
		t.Fatalf("%+v %v", d, err)
	}
}

func TestAnEmptyFileIsAFileToo(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	if _, err := f.runner().Start(t.Context(), f.input("", rest)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "n00/root/etc/app.conf")); err != nil {
		t.Fatal(err)
	}
}

func (f *fleet) put(key string, v any) {
	f.t.Helper()
	if err := f.kv.Put(f.t.Context(), key, records.Encode(v)); err != nil {
		f.t.Fatal(err)
	}
}

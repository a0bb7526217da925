package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/durable"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/gates"
	"github.com/aim-control/aimlock/orchestrator/guard"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/orchestrator/runner"
	"github.com/aim-control/aimlock/policies"
)

// What the parts are about.
const (
	configName = "app.conf"
	secondName = "second.conf"
	configDir  = "/etc"

	policyName   = "sim"
	ruleStalled  = "stalled"
	stalledAfter = 6 * time.Second
	budgetMax    = 2
	budgetPer    = 2 * time.Minute

	maxParallel  = 2
	maxFailed    = 1
	nodeDeadline = 20 * time.Second
	// quiesce is what the holders of the job locks ask for.
	quiesce = 4 * time.Second
)

const policySource = `
policy "sim" {
  locks = ["**"]

  hot "stalled" {
    when = progress.age > 6
    for  = "1s"
  }

  hot "silent" {
    when = check.status == "critical"
    for  = "2s"
  }

  break {
    approval = "%s"

    confirm {
      observations = 2
      every        = "1s"
    }

    step "request" {
      when = lock.held_for > 1000
      wait = "2s"
    }

    step "take" {
    }

    budget {
      max = 2
      per = "2m"
    }
%s
  }
}
`

const freezeSource = `
    freeze {
      when = cluster.sessions_lost > 6
    }
`

// knownAfter is how long a cluster must have been watched until it is known how many
// sessions were lost in a minute: no policy with the freeze may break before.
const knownAfter = time.Minute

// The policies are read once: no run changes them.
//
//nolint:gochecknoglobals // read-only
var (
	plainPolicies  = parsed(fmt.Sprintf(policySource, "auto", ""))
	freezePolicies = parsed(fmt.Sprintf(policySource, "auto", freezeSource))
	manualPolicies = parsed(fmt.Sprintf(policySource, "manual", ""))
)

func parsed(src string) func() (*policies.Set, error) {
	return sync.OnceValues(func() (*policies.Set, error) {
		set, diags := policies.Parse("sim.hcl", []byte(src))
		if diags.HasErrors() {
			return nil, diags
		}
		return set, nil
	})
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

func atou(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// addAgent adds a node with its agent, and a second agent on the same disk, which
// does not run unless an event starts it.
func (w *World) addAgent(name string) *actor {
	d := newDisk(name, filepath.Join(w.dir, name), draw(w.seed, name+" disk", 0))
	first := &actor{w: w, name: name, disk: d, main: w.agent}
	w.actors = append(w.actors, first)
	first.twin = &actor{w: w, name: name + "b", disk: d, main: w.agent}
	return first
}

// agent is the process of an agent.
func (w *World) agent(ctx context.Context, inc *incarnation) {
	root, state := filepath.Join(inc.disk.root, "root"), filepath.Join(inc.disk.root, "state")
	err := os.MkdirAll(filepath.Join(root, configDir), 0o755)
	// A folder's own name is the only thing about it that is left to chance.
	if instance := filepath.Join(state, "instance"); err == nil && !exists(instance) {
		err = errors.Join(os.MkdirAll(state, 0o700), durable.WriteFile(instance, []byte(inc.Text("instance")+"\n")))
	}
	var ag *agent.Agent
	if err == nil {
		ag, err = agent.New(agent.Config{
			Node: inc.disk.node, StateDir: state, Root: root, Consul: inc.kv, Prefix: keys.DefaultPrefix, Version: "sim",
			Step: inc.step, NoEvents: true, Self: hostproc.Identity{Host: inc.disk.node},
		})
	}
	if err == nil {
		err = ag.Run(ctx)
	}
	if err != nil {
		w.note("%s: %v", inc, err)
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func destinationOf(config string) string { return path.Join(configDir, config) }

// content is revision k of the config.
func content(k int64) []byte { return fmt.Appendf(nil, "content %d\n", k) }

func (w *World) input(k int64) runner.Input {
	c := content(k)
	sum := sha256.Sum256(c)
	hash := hex.EncodeToString(sum[:])
	var nodes []orchestrator.Node
	for _, a := range w.actors {
		if a.disk != nil {
			nodes = append(nodes, orchestrator.Node{Name: a.name})
		}
	}
	in := runner.Input{
		Spec: orchestrator.Spec{
			Name: "app", Hash: hash,
			Lock: orchestrator.Lock{TTL: 15 * time.Second, Wait: 40 * time.Second},
			Stages: []orchestrator.Stage{
				{Name: "canary", Nodes: 1, Bake: 2 * time.Second},
				{Name: "rest", Percent: 100, MaxParallel: maxParallel},
			},
			NodeDeadline: nodeDeadline,
			Failure:      orchestrator.Failure{MaxFailed: maxFailed, MaxUnreachablePercent: 100, Then: w.plan.Then},
		},
		Contents: map[string][]byte{},
		Fleet:    runner.StaticFleet(nodes),
	}
	for _, name := range w.plan.configs() {
		in.Contents[name] = c
		in.Spec.Configs = append(in.Spec.Configs, orchestrator.Config{
			Name: name, SHA256: hash, Revision: hash[:12], Size: int64(len(c)), Destination: destinationOf(name),
		})
	}
	if w.plan.Gate {
		in.Spec.Gates = []orchestrator.Gate{{
			Name: gateName, Kind: orchestrator.GateKindPlugin, Plugin: &orchestrator.GatePlugin{Name: gateName},
			Interval: time.Second, Timeout: 3 * time.Second, FailureLimit: 1, UnknownLimit: 2,
		}}
		in.Spec.Stages[0].Gate = []string{gateName}
	}
	return in
}

const gateName = "plugin"

// pluginGate is the gate of a plugin that answers what it likes, or nothing at all.
type pluginGate struct{ inc *incarnation }

var _ gates.Kind = pluginGate{}

func (g pluginGate) Ask(ctx context.Context, q gates.Question) gates.Answer {
	w := g.inc.w
	n := g.inc.Int64N("answer of a gate", 10)
	answer := gates.Answer{}
	switch {
	case n < 4 || !w.calm.IsZero():
		answer.Answer = orchestrator.Pass
		w.check.passed(q.Rollout)
	case n < 6:
		answer.Answer = orchestrator.Fail
	case n == 6:
		answer.Error = true
	case n == 7:
		answer.Answer = orchestrator.Answer("perhaps")
	case n == 8:
		<-ctx.Done()
	}
	w.note("%s: the gate of %s says %v", g.inc, q.Rollout, answer.Answer)
	return answer
}

// believing tells the world of the holds of a locksmith client.
type believing struct {
	c   *locksmith.Client
	inc *incarnation
}

func (b believing) Acquire(ctx context.Context, req locksmith.Request) (runner.Hold, error) {
	h, err := b.c.Acquire(ctx, req)
	if err != nil {
		return nil, err
	}
	b.inc.believe(h)
	return h, nil
}

func (inc *incarnation) runner() (*runner.Runner, error) {
	c, err := inc.locks("orchestrator")
	if err != nil {
		return nil, err
	}
	return runner.New(runner.Config{
		Consul: inc.kv, Prefix: keys.DefaultPrefix, Locks: believing{c, inc}, By: inc.name,
		Gates: gates.New(gates.Config{Consul: inc.kv, Plugin: func(string) (gates.Kind, error) { return pluginGate{inc}, nil }}),
		Clock: func() (string, float64) { return inc.name, inc.w.clock() },
	}), nil
}

// addOrchestrator adds one that brings whatever content is wanted to the fleet.
func (w *World) addOrchestrator(name string, tick bool) {
	w.add(name, func(a *actor) *actor {
		a.main = func(ctx context.Context, inc *incarnation) {
			r, err := inc.runner()
			if err != nil {
				w.fail("set-up", "%v", err)
				return
			}
			for ctx.Err() == nil {
				k := w.goal.Load()
				var out *runner.Outcome
				if tick {
					out, err = r.Tick(ctx, w.input(k))
				} else {
					out, err = r.Start(ctx, w.input(k))
				}
				if ctx.Err() != nil {
					return
				}
				switch {
				case err != nil:
					w.note("%s: content %d: %v", inc, k, err)
				default:
					w.note("%s: content %d: %s, %v", inc, k, out.Header.State, out.Header.Counts)
				}
				for i := 0; i < 5 && (i == 0 || w.goal.Load() == k && err == nil); i++ {
					if !inc.pause(ctx, time.Second+fate.N(ctx, "pause", time.Second)) {
						return
					}
				}
			}
		}
		return a
	})
}

// pause is the process's own: false once it is to end.
func (inc *incarnation) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, "paused")
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// workRecord is what a holder writes under its lock.
type workRecord struct {
	Epoch uint64 `json:"epoch"`
	Token uint64 `json:"token"`
	Seq   uint64 `json:"seq"`
}

func (r workRecord) order() orchestrator.Order {
	return orchestrator.Order{Epoch: r.Epoch, Token: r.Token, Seq: r.Seq}
}

// addHolder adds a process that takes a lock, works under it, sometimes hangs, and
// lets it go, again and again.
func (w *World) addHolder(name, lock string) {
	w.add(name, func(a *actor) *actor {
		a.main = func(ctx context.Context, inc *incarnation) {
			c, err := inc.locks("holder")
			if err != nil {
				w.fail("set-up", "%v", err)
				return
			}
			for ctx.Err() == nil {
				h, err := c.Acquire(ctx, locksmith.Request{Names: []string{lock}, Operation: "job", Quiesce: quiesce, Wait: 90 * time.Second})
				if err != nil {
					if !inc.pause(ctx, time.Second) {
						return
					}
					continue
				}
				inc.believe(h)
				w.note("%s holds %s, token %d", inc, lock, h.Token())
				err = inc.job(h, lock)
				w.note("%s ends its hold of %s, token %d: %v", inc, lock, h.Token(), err)
				rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				_ = h.Release(rctx)
				cancel()
				if !inc.pause(ctx, 500*time.Millisecond+fate.N(ctx, "between holds", 4*time.Second)) {
					return
				}
			}
		}
		return a
	})
}

// job is what is done under a hold.
func (inc *incarnation) job(h *locksmith.Hold, lock string) error {
	ctx, cancel := context.WithCancelCause(h.Context())
	defer context.AfterFunc(inc.ctx, func() { cancel(context.Canceled) })()
	rec := workRecord{Epoch: h.Epoch(), Token: h.Token()}
	n := 2 + fate.N(ctx, "steps of a job", int64(4))
	for i := range n {
		if err := h.Progress(ctx, i, n, "steps", ""); err != nil {
			return err
		}
		for range 2 {
			rec.Seq++
			_, err := h.Txn(ctx, consulkv.Set("work/"+lock, records.Encode(rec)))
			if _, refused := errors.AsType[*consulkv.Refused](err); refused || err != nil && ctx.Err() != nil {
				return err
			}
		}
		d := 500*time.Millisecond + fate.N(ctx, "a step of a job", 2*time.Second)
		if inc.w.calm.IsZero() && fate.N(ctx, "whether a job hangs", int64(12)) == 0 {
			d = 10*time.Second + fate.N(ctx, "how long a job hangs", 25*time.Second)
			inc.w.note("%s hangs for %s", inc, d.Round(time.Second))
		}
		if !inc.pause(ctx, d) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// addGuard adds a locksmith.
func (w *World) addGuard(name string) {
	w.add(name, func(a *actor) *actor {
		a.main = func(ctx context.Context, inc *incarnation) {
			c, err := inc.locks("locksmith")
			if err != nil {
				w.fail("set-up", "%v", err)
				return
			}
			g, err := guard.New(guard.Config{Client: c, Source: guard.Sweeps(c.Reader())})
			if err == nil {
				err = g.Run(ctx)
			}
			if err != nil {
				w.note("%s: %v", inc, err)
			}
		}
		return a
	})
}

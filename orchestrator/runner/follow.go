package runner

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Least intervals between two reads.
const (
	// healthEvery is for the health of agents, catalogEvery for who there is
	// at all. Both are below the core's Grace, so that a restart is seen within it.
	healthEvery  = time.Second
	catalogEvery = 2 * time.Second
	// AgentService is the service that every agent registers, with a check;
	// its id is AgentService + "-" + the node's name.
	AgentService = "aimlock-agent"
)

// follower turns what changes in Consul into events for one drive. Its
// goroutines end with its context.
type follower struct {
	r      *Runner
	plan   *orchestrator.Plan
	index  map[string]int
	wake   chan struct{}                     // answers may be there
	arms   []chan struct{}                   // one for each config; see arm
	health chan orchestrator.Health          // the first one comes always
	gates  chan orchestrator.GateAnswered    // answers of gates
	cmds   chan orchestrator.OperatorCommand // operators' commands
	wg     sync.WaitGroup
}

func (r *Runner) newFollower(plan *orchestrator.Plan) *follower {
	return &follower{
		r: r, plan: plan, index: plan.Index(),
		wake: make(chan struct{}, 1), health: make(chan orchestrator.Health, 1),
		gates: make(chan orchestrator.GateAnswered, 8), cmds: make(chan orchestrator.OperatorCommand, 1),
	}
}

// start begins to follow; wait for its end by f.wg after ctx.
func (f *follower) start(ctx context.Context) {
	for _, c := range f.plan.Spec.Configs {
		// A listing of the buckets' names is short, and wakes for a change
		// anywhere below.
		prefix, arm := f.r.keys.ActualAll(c.Name), make(chan struct{}, 1)
		f.arms = append(f.arms, arm)
		f.wg.Go(func() {
			w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: prefix, MinInterval: answersEvery},
				func(q *api.QueryOptions) ([]string, *api.QueryMeta, error) {
					return f.r.consul.API().KV().Keys(prefix, "/", q)
				})
			each(ctx, f.r, w, func([]string) {
				f.poke()
				select {
				case <-arm:
				case <-ctx.Done():
				}
			})
		})
	}
	f.wg.Go(func() { f.followCommands(ctx) })
	f.wg.Go(func() { f.followHealth(ctx) })
}

// poke wakes the drive; one that is pending already is enough.
func (f *follower) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// arm lets the followers of answers ask again: a wake-up that nobody has read
// for yet needs no second one, and to the server each costs a walk over all of
// the config's answers. What changes meanwhile is not missed, because the next
// query asks from the index of the last.
func (f *follower) arm() {
	for _, a := range f.arms {
		select {
		case a <- struct{}{}:
		default:
		}
	}
}

// each calls fn for every answer of a watcher until ctx ends.
func each[T any](ctx context.Context, r *Runner, w *consulkv.Watcher[T], fn func(T)) {
	for ctx.Err() == nil {
		v, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("following Consul", "error", err)
				pauseAs(ctx, "follow "+w.Name(), time.Second)
			}
			continue
		}
		fn(v)
	}
}

func pause(ctx context.Context, d time.Duration) { pauseAs(ctx, "slept", d) }

// pauseAs is pause with a name, for what pauses beside others for as long.
func pauseAs(ctx context.Context, what string, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, what)
	case <-ctx.Done():
	}
}

func send[T any](ctx context.Context, ch chan<- T, v T) {
	select {
	case ch <- v:
	case <-ctx.Done():
	}
}

func (f *follower) followCommands(ctx context.Context) {
	key := f.r.commandKey(f.plan.ID)
	w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: key, MinInterval: 100 * time.Millisecond},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
			return f.r.consul.API().KV().Get(key, q)
		})
	each(ctx, f.r, w, func(p *api.KVPair) {
		if p == nil {
			return
		}
		var c commandRecord
		if err := records.Decode(key, p.Value, &c); err != nil {
			f.r.log.Warn("an operator's command cannot be read", "rollout", f.plan.ID, "error", err)
			return
		}
		send(ctx, f.cmds, c.event())
	})
}

// followHealth tells whose agent is down: registered nowhere, critical, or on a
// Consul node that is. Two queries follow it whatever the fleet's size: the
// critical checks, which are few, and the service's instances, which change
// seldom. Of ten thousand these are 15 MB, and after a failure of the network all
// checks may be critical: a server that is busy takes a while for either.
func (f *follower) followHealth(ctx context.Context) {
	type update struct {
		critical api.HealthChecks
		agents   []*api.CatalogService
	}
	updates := make(chan update)
	var wg sync.WaitGroup
	wg.Go(func() {
		w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: "critical checks", MinInterval: healthEvery, Timeout: consulkv.ScanTimeout},
			func(q *api.QueryOptions) (api.HealthChecks, *api.QueryMeta, error) {
				return f.r.consul.API().Health().State(api.HealthCritical, q)
			})
		each(ctx, f.r, w, func(c api.HealthChecks) {
			// Not nil, which stands for an update of the other kind.
			send(ctx, updates, update{critical: append(api.HealthChecks{}, c...)})
		})
	})
	wg.Go(func() {
		w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: "agents", MinInterval: catalogEvery, Timeout: consulkv.ScanTimeout},
			func(q *api.QueryOptions) ([]*api.CatalogService, *api.QueryMeta, error) {
				return f.r.consul.Services(q.Context(), AgentService, q)
			})
		each(ctx, f.r, w, func(l []*api.CatalogService) {
			send(ctx, updates, update{agents: append([]*api.CatalogService{}, l...)})
		})
	})
	v := newVitals(f.plan.Nodes)
	for first := true; ; {
		select {
		case u := <-updates:
			if u.agents != nil {
				v.setAgents(u.agents)
			} else {
				v.setCritical(u.critical)
			}
		case <-ctx.Done():
			wg.Wait()
			return
		}
		if ev, ok := v.judge(); ok && (first || len(ev.Up)+len(ev.Down) > 0) {
			first = false
			send(ctx, f.health, ev)
		}
	}
}

// vitals is what is known of the agents' health. It is used by one goroutine.
type vitals struct {
	nodes []string
	// on is the Consul node of each agent by service id; nil: not known.
	on map[string]string
	// critical are the service ids, and dead the Consul nodes, with a critical
	// check; nil: not known.
	critical, dead map[string]bool
	down           []bool
	told           bool
}

func newVitals(nodes []string) *vitals { return &vitals{nodes: nodes, down: make([]bool, len(nodes))} }

func (v *vitals) setAgents(list []*api.CatalogService) {
	v.on = make(map[string]string, len(list))
	for _, s := range list {
		v.on[s.ServiceID] = s.Node
		if n := s.ServiceMeta["node"]; n != "" {
			v.on[AgentService+"-"+n] = s.Node
		}
	}
}

func (v *vitals) setCritical(list api.HealthChecks) {
	v.critical, v.dead = map[string]bool{}, map[string]bool{}
	for _, c := range list {
		switch {
		case c.ServiceName == AgentService:
			v.critical[c.ServiceID] = true
		case c.CheckID == "serfHealth":
			v.dead[c.Node] = true
		}
	}
}

// judge returns whose health has changed since it was asked last. It knows
// nothing before both answers are in, nor where no agent at all is to be seen:
// that is what a token without rights sees.
func (v *vitals) judge() (ev orchestrator.Health, ok bool) {
	if v.on == nil || v.critical == nil {
		return ev, false
	}
	for i, n := range v.nodes {
		id := AgentService + "-" + n
		on, present := v.on[id]
		down := len(v.on) > 0 && (!present || v.critical[id] || v.dead[on])
		if down == v.down[i] && v.told {
			continue
		}
		if v.down[i] = down; down {
			ev.Down = append(ev.Down, i)
		} else {
			ev.Up = append(ev.Up, i)
		}
	}
	v.told = true
	return ev, true
}

package runner

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Least intervals between two reads.
const (
	// answersEvery is for the wake-up by nodes' answers.
	answersEvery = 200 * time.Millisecond
	// answersEveryMany is the same where more than manyFlying are in flight:
	// each wake-up reads them all.
	answersEveryMany = time.Second
	manyFlying       = 500
	// healthEvery is for the health of agents, catalogEvery for who there is
	// at all: both return much, and nothing depends on the second.
	healthEvery  = time.Second
	catalogEvery = 5 * time.Second
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
	events chan orchestrator.Event           // everything else
	gates  chan orchestrator.GateAnswered    // answers of gates
	cmds   chan orchestrator.OperatorCommand // operators' commands
	wg     sync.WaitGroup
}

func (r *Runner) newFollower(plan *orchestrator.Plan) *follower {
	return &follower{
		r: r, plan: plan, index: plan.Index(),
		wake: make(chan struct{}, 1), events: make(chan orchestrator.Event, 4),
		gates: make(chan orchestrator.GateAnswered, 8), cmds: make(chan orchestrator.OperatorCommand, 1),
	}
}

// start begins to follow; wait for its end by f.wg after ctx.
func (f *follower) start(ctx context.Context) {
	for _, c := range f.plan.Spec.Configs {
		// A listing of the buckets' names is short, and wakes for a change
		// anywhere below.
		prefix := f.r.keys.ActualAll(c.Name)
		f.wg.Go(func() {
			w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: prefix, MinInterval: answersEvery},
				func(q *api.QueryOptions) ([]string, *api.QueryMeta, error) {
					return f.r.consul.API().KV().Keys(prefix, "/", q)
				})
			each(ctx, f.r, w, func([]string) { f.poke() })
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

// each calls fn for every answer of a watcher until ctx ends.
func each[T any](ctx context.Context, r *Runner, w *consulkv.Watcher[T], fn func(T)) {
	for ctx.Err() == nil {
		v, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.log.Warn("following Consul", "error", err)
				pause(ctx, time.Second)
			}
			continue
		}
		fn(v)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
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
			f.r.log.Warn("an operator's command cannot be read", "error", err)
			return
		}
		send(ctx, f.cmds, c.event())
	})
}

// followHealth tells whose agent is down: registered nowhere, or critical.
// Two queries follow it whatever the fleet's size: the critical checks, which
// are few, and the service's instances, which change seldom.
func (f *follower) followHealth(ctx context.Context) {
	var mu sync.Mutex
	var present, critical map[string]bool
	down := map[int]bool{}
	judge := func() {
		mu.Lock()
		defer mu.Unlock()
		if present == nil || critical == nil {
			return
		}
		var ev orchestrator.Health
		for i, n := range f.plan.Nodes {
			id := AgentService + "-" + n
			switch isDown := !present[id] || critical[id]; {
			case isDown && !down[i]:
				down[i] = true
				ev.Down = append(ev.Down, i)
			case !isDown && down[i]:
				delete(down, i)
				ev.Up = append(ev.Up, i)
			}
		}
		if len(ev.Down)+len(ev.Up) > 0 {
			send(ctx, f.events, orchestrator.Event(ev))
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: "critical checks", MinInterval: healthEvery},
			func(q *api.QueryOptions) (api.HealthChecks, *api.QueryMeta, error) {
				return f.r.consul.API().Health().State(api.HealthCritical, q)
			})
		each(ctx, f.r, w, func(checks api.HealthChecks) {
			m := map[string]bool{}
			for _, c := range checks {
				if c.ServiceName == AgentService {
					m[c.ServiceID] = true
				}
			}
			mu.Lock()
			critical = m
			mu.Unlock()
			judge()
		})
	})
	wg.Go(func() {
		w := consulkv.NewWatcher(f.r.consul, consulkv.WatchOptions{Name: "agents", MinInterval: catalogEvery},
			func(q *api.QueryOptions) ([]*api.CatalogService, *api.QueryMeta, error) {
				return f.r.consul.API().Catalog().Service(AgentService, "", q)
			})
		each(ctx, f.r, w, func(list []*api.CatalogService) {
			m := make(map[string]bool, len(list))
			for _, s := range list {
				m[s.ServiceID] = true
			}
			mu.Lock()
			present = m
			mu.Unlock()
			judge()
		})
	})
	wg.Wait()
}

// ask puts a question to a gate in the background.
func (f *follower) ask(ctx context.Context, e orchestrator.AskGate) {
	f.wg.Go(func() { send(ctx, f.gates, f.r.ask(ctx, e)) })
}

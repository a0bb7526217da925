package builtin

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/filelock"
	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/plugin"
	"github.com/aim-control/aimlock/plugin/schema"
	"github.com/aim-control/aimlock/policies"
)

func evidencePlugins() []plugin.Plugin {
	list := []struct {
		name, doc string
		make      func() plugin.Evidence
	}{
		{"file_locks", "The kernel's locks on a file of this machine, and who keeps them.", func() plugin.Evidence { return &fileLocks{} }},
		{"process", "Whether the holder's processes live, where they are this host's.", func() plugin.Evidence { return &process{} }},
		{"cluster", "Consul's leader, and the sessions that it lost.", func() plugin.Evidence { return &cluster{} }},
		{"nomad_alloc", "What Nomad says of the holder's allocation.", func() plugin.Evidence { return &nomadAlloc{} }},
	}
	var out []plugin.Plugin
	for _, e := range list {
		p := named(e.name, e.doc)
		p.Evidence = e.make
		out = append(out, p)
	}
	return out
}

// defs declares the facts of one of the policies' own objects, with the same types.
func defs(object string, names ...string) []plugin.FactDef {
	facts := policies.Schema()[object]
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(facts))
	}
	out := make([]plugin.FactDef, 0, len(names))
	for _, name := range names {
		out = append(out, plugin.FactDef{Name: name, Type: typeOf(facts[name].Type), Doc: facts[name].Doc})
	}
	return out
}

// typeOf is a type of the policies as one of plugins.
func typeOf(t cty.Type) plugin.Type {
	switch {
	case t == cty.Bool:
		return plugin.Bool
	case t == cty.Number:
		return plugin.Number
	case t.IsListType():
		return plugin.List(typeOf(t.ElementType()))
	case t.IsMapType():
		return plugin.Map(typeOf(t.ElementType()))
	case t.IsObjectType():
		fields := map[string]plugin.Type{}
		for name, f := range t.AttributeTypes() {
			fields[name] = typeOf(f)
		}
		return plugin.Object(fields)
	}
	return plugin.String
}

// said turns facts of the policies into those of a plugin. What is not known wholly
// is unknown: a plugin cannot say "at least".
func said(defs []plugin.FactDef, facts map[string]policies.Fact, now time.Time) []plugin.Fact {
	var out []plugin.Fact
	for _, def := range defs {
		f, ok := facts[def.Name]
		if !ok {
			continue
		}
		fact := plugin.Fact{Name: def.Name, Age: max(now.Sub(f.ObservedAt), 0)}
		switch v, err := schema.FromCty(f.Value, def.Type); {
		case !f.Value.IsWhollyKnown():
			fact.Unknown, fact.Why = true, f.Why
		case err != nil:
			fact.Unknown, fact.Why = true, err.Error()
		default:
			fact.Value = v
		}
		out = append(out, fact)
	}
	return out
}

type fileLocks struct {
	Path string `config:"path,required" doc:"the file"`

	r *evidence.Reader
}

func (e *fileLocks) Facts() []plugin.FactDef { return defs("file") }

func (e *fileLocks) Start(context.Context) error {
	e.r = &evidence.Reader{Files: &filelock.Scanner{}}
	return nil
}

func (e *fileLocks) Observe(context.Context, *plugin.ObserveRequest) ([]plugin.Fact, error) {
	now := time.Now()
	return said(e.Facts(), e.r.FileFacts(e.Path, nil, now), time.Now()), nil
}

type process struct{ r *evidence.Reader }

func (e *process) Facts() []plugin.FactDef { return defs("holder", "local", "alive") }

func (e *process) Start(context.Context) error {
	self, err := hostproc.Self()
	if err != nil {
		return err
	}
	e.r = &evidence.Reader{Self: self}
	return nil
}

// recordOf is what the request tells of the holder's record.
func recordOf(h *plugin.Holder) *records.Holder {
	return &records.Holder{
		Host: h.Host, PID: h.PID, StartTicks: h.StartTicks, BootID: h.BootID, PIDNS: h.PIDNS, AllocID: h.AllocID, AllocRegion: h.AllocRegion,
	}
}

func (e *process) Observe(_ context.Context, q *plugin.ObserveRequest) ([]plugin.Fact, error) {
	if q.Lock.Holder.PID == 0 {
		return []plugin.Fact{plugin.Unknown("local", "the holder recorded no process"), plugin.Unknown("alive", "the holder recorded no process")}, nil
	}
	h := recordOf(&q.Lock.Holder)
	out := []plugin.Fact{plugin.Known("local", e.r.Local(h))}
	switch alive, why := e.r.HolderAlive(h, nil); alive {
	case hostproc.True:
		out = append(out, plugin.Known("alive", true))
	case hostproc.False:
		out = append(out, plugin.Known("alive", false))
	default:
		out = append(out, plugin.Unknown("alive", "%s", why))
	}
	return out, nil
}

type cluster struct {
	consulConfig

	r    *evidence.Reader
	cl   *evidence.Cluster
	stop context.CancelFunc
	done <-chan struct{}
}

func (e *cluster) Facts() []plugin.FactDef { return defs("cluster") }

func (e *cluster) Start(context.Context) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	// It watches for as long as the instance lives, which is longer than this call.
	var ctx context.Context
	ctx, e.stop = context.WithCancel(context.Background())
	e.r = &evidence.Reader{Consul: c}
	e.cl, e.done = evidence.WatchCluster(ctx, c)
	return nil
}

func (e *cluster) Close() error {
	if e.stop != nil {
		e.stop()
		<-e.done
	}
	return nil
}

func (e *cluster) Observe(context.Context, *plugin.ObserveRequest) ([]plugin.Fact, error) {
	now := time.Now()
	return said(e.Facts(), e.r.Facts(&evidence.Snapshot{ReadAt: now}, nil, e.cl, now)["cluster"], now), nil
}

type nomadAlloc struct {
	nomadConfig

	n evidence.Nomad
}

func (e *nomadAlloc) Facts() []plugin.FactDef { return defs("nomad") }

func (e *nomadAlloc) Validate(context.Context) error { return e.named() }

func (e *nomadAlloc) Start(context.Context) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	e.n = evidence.NewNomad(c)
	return nil
}

func (e *nomadAlloc) Observe(ctx context.Context, q *plugin.ObserveRequest) ([]plugin.Fact, error) {
	h := &q.Lock.Holder
	out := map[string]plugin.Fact{}
	for _, def := range e.Facts() {
		out[def.Name] = plugin.Null(def.Name)
	}
	put := func(f plugin.Fact) { out[f.Name] = f }
	if h.AllocID == "" {
		return slices.Collect(maps.Values(out)), nil
	}
	put(plugin.Known("alloc_id", h.AllocID))
	a, _, err := e.n.Alloc(ctx, evidence.AllocRef{ID: h.AllocID, Region: h.AllocRegion}, evidence.Since{})
	switch {
	case err != nil:
		return nil, errors.Join(plugin.ErrUnavailable, err)
	case a.Gone:
		put(plugin.Known("gone", true))
	default:
		put(plugin.Known("gone", false))
		put(plugin.Known("client_status", a.ClientStatus))
		put(plugin.Known("desired_status", a.DesiredStatus))
		put(plugin.Known("job", a.Job))
		if put(plugin.Known("node_status", a.NodeStatus)); a.NodeStatus == "" {
			put(plugin.Unknown("node_status", "%s", a.NodeWhy))
		}
	}
	return slices.Collect(maps.Values(out)), nil
}

var (
	_ plugin.Evidence = (*fileLocks)(nil)
	_ plugin.Evidence = (*process)(nil)
	_ plugin.Evidence = (*cluster)(nil)
	_ plugin.Evidence = (*nomadAlloc)(nil)
)

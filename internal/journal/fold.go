package journal

import (
	"fmt"
	"maps"
	"math/big"
	"sort"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/policies"
)

// Fold puts the observations of a journal together again: an entry has only
// what changed. Give it every entry, in order. The zero value is ready.
type Fold struct {
	// Start is who wrote the run that the last entry is of; nil if the journal
	// does not say.
	Start *Start
	run   string
	// Last is when the last entry of the run was written.
	Last     time.Duration
	locks    map[string]*Observed // by key
	clusters []clusterAt          // of this run, oldest first
}

// Observed is one observation, whole.
type Observed struct {
	Entry
	// Facts are all that the journal has, as of the entry. They are shared: do
	// not change them.
	Facts policies.Facts
	// Missing says why some of them are not in the journal; empty if all are.
	Missing string
}

type clusterAt struct {
	id    uint64
	t     time.Duration
	facts map[string]policies.Fact
}

// ID is the lock's name for policies.Set.For.
func (o *Observed) ID() policies.LockID {
	return policies.LockID{Name: o.Lock, Key: o.Observation.Key, Own: o.Observation.Own}
}

// Add takes the next entry. It returns the observation that the entry is of,
// nil if it is none. fresh is true where the entry is the first of another run:
// nothing that stood before is known to have gone on.
func (f *Fold) Add(e *Entry) (o *Observed, fresh bool) {
	if e.Run != f.run {
		fresh = f.run != ""
		*f = Fold{run: e.Run}
	}
	f.Last = max(f.Last, e.T)
	switch {
	case e.Kind == KindStart:
		f.Start = e.Start
	case e.Kind == KindCluster:
		facts := policies.DecodeFacts("cluster", e.Cluster.Facts, e.Cluster.ReadAt)
		f.clusters = append(f.clusters, clusterAt{id: e.Cluster.ID, t: e.T, facts: facts})
	case e.Observation != nil:
		return f.observe(e), fresh
	}
	return nil, fresh
}

func (f *Fold) observe(e *Entry) *Observed {
	if f.locks == nil {
		f.locks = map[string]*Observed{}
	}
	ob := e.Observation
	o := &Observed{Entry: *e}
	old := f.locks[ob.Key]
	f.locks[ob.Key] = o
	if ob.Hold == nil {
		return o
	}
	o.Facts = policies.Facts{}
	switch {
	case ob.Base == 0:
	case old != nil && old.Observation.N == ob.Base && old.Facts != nil:
		for object, facts := range old.Facts {
			o.Facts[object] = maps.Clone(facts)
		}
		o.Missing = old.Missing
	default:
		o.Missing = fmt.Sprintf("the journal lacks observation %d of the lock, which this one rests on", ob.Base)
		lacks(o, o.Missing)
	}
	for object, in := range ob.Facts {
		if o.Facts[object] == nil {
			o.Facts[object] = map[string]policies.Fact{}
		}
		maps.Copy(o.Facts[object], policies.DecodeFacts(object, in, ob.ReadAt))
	}
	for _, full := range ob.Gone {
		if object, name, ok := policies.SplitFact(full); ok {
			delete(o.Facts[object], name)
		}
	}
	o.Facts["now"] = policies.Clock(e.At)
	f.shared(o)
	for full, n := range ob.Numbers {
		if object, name, ok := policies.SplitFact(full); ok {
			if fact, there := o.Facts[object][name]; there {
				o.Facts[object][name] = withNumber(fact, n)
			}
		}
	}
	return o
}

// lacks makes unknown what a lost observation would have told.
func lacks(o *Observed, why string) {
	for object, facts := range policies.Schema() {
		if object == "now" || object == "cluster" {
			continue
		}
		o.Facts[object] = make(map[string]policies.Fact, len(facts))
		for name, def := range facts {
			o.Facts[object][name] = policies.UnknownFact(def.Type, "journal", o.Observation.ReadAt, why)
		}
	}
}

// shared puts the cluster's facts beside those of the lock.
func (f *Fold) shared(o *Observed) {
	id := o.Observation.ClusterID
	if id == 0 {
		return
	}
	for i := len(f.clusters) - 1; i >= 0; i-- {
		if f.clusters[i].id == id {
			o.Facts["cluster"] = maps.Clone(f.clusters[i].facts)
			return
		}
	}
	o.Missing = fmt.Sprintf("the journal lacks entry %d of the cluster, which this observation rests on", id)
	o.Facts["cluster"] = map[string]policies.Fact{}
	for name, def := range policies.Schema()["cluster"] {
		o.Facts["cluster"][name] = policies.UnknownFact(def.Type, "journal", o.Observation.ReadAt, o.Missing)
	}
}

// FactsAt are the facts of an observation of the present run as they were at t,
// given that no other came between: ages have grown.
func (f *Fold) FactsAt(o *Observed, t time.Duration) policies.Facts {
	d := t - o.T
	if d <= 0 || o.Facts == nil {
		return o.Facts
	}
	out := make(policies.Facts, len(o.Facts))
	schema := policies.Schema()
	for object, facts := range o.Facts {
		switch object {
		case "now":
			out[object] = policies.Clock(o.At.Add(d))
		case "cluster":
			out[object] = f.clusterAt(o, t)
		default:
			out[object] = grown(facts, schema[object], d)
		}
	}
	return out
}

func (f *Fold) clusterAt(o *Observed, t time.Duration) map[string]policies.Fact {
	i := sort.Search(len(f.clusters), func(i int) bool { return f.clusters[i].t > t }) - 1
	if i < 0 || f.clusters[i].t <= o.T {
		return grown(o.Facts["cluster"], policies.Schema()["cluster"], t-o.T)
	}
	return grown(f.clusters[i].facts, policies.Schema()["cluster"], t-f.clusters[i].t)
}

// ClusterAfter is when the facts of the cluster changed next after t.
func (f *Fold) ClusterAfter(t time.Duration) (time.Duration, bool) {
	i := sort.Search(len(f.clusters), func(i int) bool { return f.clusters[i].t > t })
	if i == len(f.clusters) {
		return 0, false
	}
	return f.clusters[i].t, true
}

func grown(facts map[string]policies.Fact, schema map[string]policies.FactDef, d time.Duration) map[string]policies.Fact {
	out := maps.Clone(facts)
	for name, def := range schema {
		if n, ok := numberOf(facts[name]); ok && def.Age {
			out[name] = withNumber(facts[name], n+d.Seconds())
		}
	}
	return out
}

// numberOf is the value of a known number, or the lower bound of an unknown.
func numberOf(f policies.Fact) (float64, bool) {
	v := f.Value
	if v == cty.NilVal || v.Type() != cty.Number || v.IsNull() {
		return 0, false
	}
	if !v.IsKnown() {
		low, _ := v.Range().NumberLowerBound()
		if !low.IsKnown() || low.AsBigFloat().IsInf() {
			return 0, false
		}
		v = low
	}
	n, _ := v.AsBigFloat().Float64()
	return n, true
}

// withNumber is a fact with another number, or with another lower bound where
// it is unknown.
func withNumber(f policies.Fact, n float64) policies.Fact {
	if _, ok := numberOf(f); !ok || n != n {
		return f
	}
	v := cty.NumberVal(new(big.Float).SetFloat64(n))
	if !f.Value.IsKnown() {
		v = cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(v, true).NewValue()
	}
	f.Value = v
	return f
}

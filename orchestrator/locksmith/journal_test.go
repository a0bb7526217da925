package locksmith

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"
	"pgregory.net/rapid"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/replay"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// lockLife draws what an observer of one lock sees over time.
type lockLife struct {
	name    string
	hold    int
	held    bool
	facts   policies.Facts
	born    map[string]time.Time // since when each age counts
	obs     policies.Memory
	atLeast map[string]bool // of which age only the least is known
}

const lifePolicy = `policy "p" {
  locks = ["**"]

  warm "slow" {
    when = progress.age > 20
  }

  hot "dead" {
    when = holder.alive == false
    for  = "5s"
  }

  hot "stalled" {
    when   = progress.age > 60
    for    = "10s"
    reason = "no progress for ${progress.age} s"
  }

  hot "quiet" {
    when = plugin.radio.heard == false && cluster.sessions_lost < 3
  }
}
`

func newLife(name string) *lockLife {
	return &lockLife{name: name, facts: policies.Facts{}, born: map[string]time.Time{}, atLeast: map[string]bool{}}
}

// step draws what happened until now.
func (l *lockLife) step(t *rapid.T, now time.Time) {
	changes := rapid.IntRange(0, 2).Draw(t, l.name+" changes")
	if rapid.IntRange(0, 9).Draw(t, l.name+" hands") == 0 || len(l.facts) == 0 {
		l.hold++
		l.held = rapid.IntRange(0, 3).Draw(t, l.name+" held") > 0
		l.facts, l.born = policies.Facts{}, map[string]time.Time{}
		changes = 60
	}
	schema := policies.Schema()
	for range changes {
		object := rapid.SampledFrom([]string{"lock", "session", "check", "node", "holder", "nomad", "progress", "rollout", "file", "plugin.radio"}).Draw(t, "object")
		if l.facts[object] == nil {
			l.facts[object] = map[string]policies.Fact{}
		}
		if object == "plugin.radio" {
			l.facts[object]["heard"] = policies.Known(rapid.SampledFrom([]cty.Value{cty.True, cty.False, cty.NullVal(cty.Bool)}).Draw(t, "heard"), "radio", now)
			continue
		}
		name := rapid.SampledFrom(slices.Sorted(maps.Keys(schema[object]))).Draw(t, "fact")
		l.facts[object][name] = drawFact(t, schema[object][name].Type, now)
		if schema[object][name].Age {
			l.born[object+"."+name] = now.Add(-time.Duration(rapid.IntRange(0, 90).Draw(t, "age")) * time.Second)
			l.atLeast[object+"."+name] = rapid.IntRange(0, 4).Draw(t, "at least") == 0
		}
	}
}

func drawFact(t *rapid.T, ty cty.Type, now time.Time) policies.Fact {
	f := policies.Known(cty.NullVal(ty), rapid.SampledFrom([]string{"consul kv", "this observer"}).Draw(t, "source"), now)
	switch rapid.IntRange(0, 5).Draw(t, "value") {
	case 0:
	case 1:
		f.Value, f.Why = cty.UnknownVal(ty), rapid.SampledFrom([]string{"nobody looked", "no rights"}).Draw(t, "why")
	default:
		switch ty {
		case cty.Bool:
			f.Value = cty.BoolVal(rapid.Bool().Draw(t, "bool"))
		case cty.Number:
			f.Value = cty.NumberFloatVal(float64(rapid.IntRange(0, 100).Draw(t, "number")))
		case cty.String:
			f.Value = cty.StringVal(rapid.SampledFrom([]string{"a", "b", "passing"}).Draw(t, "string"))
		}
	}
	return f
}

// verdict is what the observer makes of it now.
func (l *lockLife) verdict(t *rapid.T, set *policies.Set, cluster map[string]policies.Fact, begun, now time.Time) *Verdict {
	s := &evidence.Snapshot{Name: l.name, Key: "aimlock/locks/" + l.name, Own: true, ReadAt: now, Tool: "aimlock",
		Pair: &api.KVPair{ModifyIndex: uint64(l.hold)}}
	v := &Verdict{Snapshot: s, State: Free, PolicyHash: set.Hash, At: now}
	if !l.held {
		return v
	}
	s.Pair.Session = fmt.Sprintf("session-%d", l.hold)
	v.Facts = policies.Facts{"now": policies.Clock(now), "cluster": cluster}
	for object, facts := range l.facts {
		v.Facts[object] = map[string]policies.Fact{}
		for name, f := range facts {
			f.ObservedAt = now
			full := object + "." + name
			if born, ok := l.born[full]; ok && f.Value.IsKnown() && !f.Value.IsNull() {
				age := cty.NumberFloatVal(now.Sub(born).Seconds())
				f.Value = age
				if l.atLeast[full] {
					f.Value, f.Why = cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(age, true).NewValue(), "not seen to begin"
				}
			}
			v.Facts[object][name] = f
		}
	}
	v.Policy = set.For(policies.LockID{Name: s.Name, Key: s.Key, Own: true})
	v.Judgement = v.Policy.Judge(v.Facts, &l.obs, s.Hold(), now.Sub(begun))
	v.State = v.Judgement.State
	return v
}

// recordLives drives locks through random lives and records what is seen of them.
// each is called for every verdict, and told what was written of it.
func recordLives(t *rapid.T, w *journal.Writer, set *policies.Set, each func(v *Verdict)) {
	rec := NewRecorder(w)
	lives := []*lockLife{newLife("a"), newLife("b")}
	now := time.Now()
	begun := now
	cluster := map[string]policies.Fact{}
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		now = now.Add(time.Duration(rapid.IntRange(1, 30_000_000_000).Draw(t, "passed")))
		if rapid.IntRange(0, 4).Draw(t, "cluster") == 0 || len(cluster) == 0 {
			cluster = map[string]policies.Fact{
				"leader":        policies.Known(cty.StringVal(rapid.SampledFrom([]string{"s1", "s2"}).Draw(t, "leader")), "consul status", now),
				"sessions_lost": policies.Known(cty.NumberFloatVal(float64(rapid.IntRange(0, 5).Draw(t, "lost"))), "this observer", now),
			}
		}
		for _, l := range lives {
			if rapid.Bool().Draw(t, "looks") {
				l.step(t, now)
				v := l.verdict(t, set, maps.Clone(cluster), begun, now)
				if err := rec.Observe(v); err != nil {
					t.Fatal(err)
				}
				each(v)
			}
		}
	}
	if err := rec.Close(); err != nil {
		t.Fatal(err)
	}
}

func lifeSet(t *rapid.T) *policies.Set {
	set, diags := policies.Parse("life.hcl", []byte(lifePolicy))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return set
}

func tempDir(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Whatever was seen stands in the journal: at each verdict, written or not, the
// facts that it tells of are those that were judged, but for small errors of
// ages where nothing was written.
func TestRecorderKeepsWhatWasSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, dir := lifeSet(t), tempDir(t)
		w, err := journal.Open(dir, journal.Options{MaxFile: int64(rapid.IntRange(9000, 60000).Draw(t, "file"))})
		if err != nil {
			t.Fatal(err)
		}
		var seen []*Verdict
		var since []time.Duration
		recordLives(t, w, set, func(v *Verdict) { seen, since = append(seen, v), append(since, w.Since(v.At)) })

		var fold journal.Fold
		last := map[string]*journal.Observed{}
		next := 0
		// check holds the verdicts seen before t against what was told so far.
		check := func(until time.Duration) {
			for ; next < len(seen) && since[next] < until; next++ {
				v := seen[next]
				o := last[v.Snapshot.Name]
				if o == nil {
					if v.Snapshot.Held() {
						t.Fatalf("at %s nothing is told of lock %s", since[next], v.Snapshot.Name)
					}
					continue
				}
				if o.Observation.Verdict.State != v.State {
					t.Fatalf("at %s lock %s is told to be %s and was %s", since[next], v.Snapshot.Name, o.Observation.Verdict.State, v.State)
				}
				if v.Snapshot.Held() {
					sameFacts(t, since[next] == o.T, fold.FactsAt(o, since[next]), v.Facts)
				}
			}
		}
		for e, err := range journal.Read(dir) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind != journal.KindStart && e.Kind != journal.KindWatching {
				check(e.T) // the times of the others are real
			}
			if o, _ := fold.Add(&e); o != nil {
				last[o.Lock] = o
			}
		}
		check(math.MaxInt64)
	})
}

func sameFacts(t *rapid.T, exact bool, got, want policies.Facts) {
	for object, facts := range want {
		if len(got[object]) != len(facts) {
			t.Fatalf("%s: told of %v, want %v", object, got[object], facts)
		}
		for name, f := range facts {
			g := got[object][name]
			if g.Source != f.Source || g.Why != f.Why {
				t.Fatalf("%s.%s: told %#v, want %#v", object, name, g, f)
			}
			if g.Value.Type().Equals(f.Value.Type()) && g.Value.RawEquals(f.Value) {
				continue
			}
			a, ok1 := number(g)
			b, ok2 := number(f)
			if exact || !ok1 || !ok2 || g.Value.IsKnown() != f.Value.IsKnown() || math.Abs(a-b) > ageSlack+1 {
				t.Fatalf("%s.%s: told %#v, want %#v (exact %t)", object, name, g, f, exact)
			}
		}
	}
}

// Judged anew by the very policies that judged then, a journal shows no
// difference; nor by others that say the same.
func TestReplayOfTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, dir := lifeSet(t), tempDir(t)
		w, err := journal.Open(dir, journal.Options{MaxFile: int64(rapid.IntRange(9000, 60000).Draw(t, "file")), Start: journal.Start{Lag: 1e6}})
		if err != nil {
			t.Fatal(err)
		}
		held := 0
		recordLives(t, w, set, func(v *Verdict) {
			if v.Snapshot.Held() {
				held++
			}
		})
		same, diags := policies.Parse("same.hcl", []byte(lifePolicy+"\npolicy \"more\" {\n  locks = [\"none\"]\n}\n"))
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		for _, by := range []*policies.Set{set, same} {
			rep, err := replay.Run(dir, by, replay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(rep.Differences) > 0 || rep.Skipped > 0 || held > 0 && rep.Observations == 0 {
				t.Fatalf("by %.8s: %+v", by.Hash, rep)
			}
		}
	})
}

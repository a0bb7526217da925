package locksmith

import (
	"encoding/json"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/policies"
)

// Recorder writes to a journal what observers of locks see, and only what time
// alone does not tell: a lock whose facts stand still, and whose verdict does,
// is not written again. A nil Recorder writes nothing. It is safe for
// concurrent use.
//
// Invariant: whenever a rule's answer changes, the facts of that moment are
// written as they are. So whoever judges the journal by the same policies at
// the times of its entries comes to the same verdicts.
type Recorder struct {
	w *journal.Writer

	mu      sync.Mutex
	locks   map[string]*recorded // by key
	cluster recordedCluster
	wrote   time.Duration // when the last entry was written
}

// recorded is what the journal has of one lock. It holds no facts but their
// fingerprints: there may be many locks.
type recorded struct {
	file  uint64 // of the last observation
	n     uint64
	hold  string
	mark  verdictMark
	rules uint64 // what each rule said
	// prints are the facts' fingerprints in the order of recordedFacts, and
	// extra those of facts that no schema has.
	prints []uint64
	extra  map[string]uint64
	// numbers are those of recordedNumbers, as of at.
	numbers []float64
	at      time.Duration
	cluster uint64
}

// verdictMark tells whether a verdict is another one.
type verdictMark struct{ state, rule, policy, hash string }

func markOf(v *journal.Verdict) verdictMark {
	return verdictMark{v.State, v.Rule, v.Policy, v.PolicyHash}
}

func (m verdictMark) verdict() *journal.Verdict {
	return &journal.Verdict{State: m.state, Rule: m.rule, Policy: m.policy, PolicyHash: m.hash}
}

type recordedCluster struct {
	file   uint64
	id     uint64
	print  uint64
	number float64
	at     time.Duration
}

// NewRecorder records to w. The caller closes w after it.
func NewRecorder(w *journal.Writer) *Recorder {
	return &Recorder{w: w, locks: map[string]*recorded{}}
}

// watchingEvery is how long a journal is silent before it says that nothing
// changed: so far, after a crash, its last entries are known to have stood.
const watchingEvery = time.Minute

// ageSlack is how far an age may be from what the time that passed makes of the
// one written last.
const ageSlack = 0.5

// Observe records a verdict, if it or what it rests on has changed. The error
// is the journal's: what was lost of it is written whole next time.
func (r *Recorder) Observe(v *Verdict) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := v.Snapshot.Key
	old := r.locks[key]
	now := r.w.Since(v.At)
	if !v.Snapshot.Held() {
		if old == nil || old.mark.state == v.State {
			return r.alive(v.At)
		}
		return r.free(v, old)
	}
	if err := r.shared(v, now); err != nil {
		return err
	}
	o := observation(v)
	next := r.look(v, o, now)
	whole := old == nil || old.hold != next.hold || old.file != next.file || len(old.prints) == 0
	if !whole && old.same(next) {
		return r.alive(v.At)
	}
	o.ClusterID = next.cluster
	next.n = 1
	if old != nil {
		next.n = old.n + 1
		if old.mark != next.mark {
			o.Was = old.mark.verdict()
		}
	}
	o.N = next.n
	if whole {
		o.Facts = map[string]map[string]json.RawMessage{}
		for object, facts := range v.Facts {
			if object != "now" && object != "cluster" {
				o.Facts[object] = policies.EncodeFacts(object, facts, v.Snapshot.ReadAt)
			}
		}
	} else {
		o.Base = old.n
		o.Facts, o.Gone = changed(v, old, next)
	}
	o.Numbers = numbersOf(v.Facts, next.numbers)
	kind := journal.KindObservation
	if o.Was != nil || old == nil {
		kind = journal.KindVerdict
	}
	return r.put(journal.Entry{Kind: kind, At: v.At, Lock: v.Snapshot.Name, Observation: o}, key, next)
}

// put writes an entry of a lock. After a failure the next one is whole.
func (r *Recorder) put(e journal.Entry, key string, next *recorded) error {
	err := r.w.Write(e)
	if err != nil {
		next.prints = nil
	} else {
		r.wrote = r.w.Since(e.At)
	}
	r.locks[key] = next
	return err
}

// free records that nobody holds a lock that somebody held.
func (r *Recorder) free(v *Verdict, old *recorded) error {
	o := observation(v)
	o.N, o.Was = old.n+1, old.mark.verdict()
	next := &recorded{file: r.w.File(), n: o.N, mark: markOf(&o.Verdict)}
	return r.put(journal.Entry{Kind: journal.KindVerdict, At: v.At, Lock: v.Snapshot.Name, Observation: o}, v.Snapshot.Key, next)
}

// Forget drops what is known of a lock that is not watched any more.
func (r *Recorder) Forget(key string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.locks, key)
}

// Watching says that whatever is not recorded stands still. Call it now and
// then where no lock is observed for long.
func (r *Recorder) Watching() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.alive(time.Now())
}

func (r *Recorder) alive(now time.Time) error {
	if r.w.Since(now)-r.wrote < watchingEvery {
		return nil
	}
	return r.write(journal.Entry{Kind: journal.KindWatching, At: now})
}

// Close says that nothing changed since, and closes the journal.
func (r *Recorder) Close() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.write(journal.Entry{Kind: journal.KindWatching, At: time.Now()})
	if cerr := r.w.Close(); err == nil {
		err = cerr
	}
	return err
}

// Break records one event of a break of the lock called name.
func (r *Recorder) Break(name string, b journal.Break) error {
	return r.event(journal.Entry{Kind: journal.KindBreak, Lock: name, Break: &b})
}

// Leader records that this locksmith is the one who acts, or no longer is.
func (r *Recorder) Leader(l journal.Leader) error {
	return r.event(journal.Entry{Kind: journal.KindLeader, Leader: &l})
}

// Reload records that policies were read anew.
func (r *Recorder) Reload(l journal.Reload) error {
	return r.event(journal.Entry{Kind: journal.KindReload, Reload: &l})
}

// Error records what went wrong; name is the lock that it is about, or "".
func (r *Recorder) Error(name, what string, err error) error {
	return r.event(journal.Entry{Kind: journal.KindError, Lock: name, Error: &journal.Error{What: what, Error: printable(err.Error())}})
}

func (r *Recorder) event(e journal.Entry) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.At = time.Now()
	return r.write(e)
}

func (r *Recorder) write(e journal.Entry) error {
	err := r.w.Write(e)
	if err == nil {
		r.wrote = r.w.Since(e.At)
	}
	return err
}

// observation is what is written of a verdict beside the facts.
func observation(v *Verdict) *journal.Observation {
	s := v.Snapshot
	o := &journal.Observation{Key: s.Key, Own: s.Own, ReadAt: s.ReadAt.UTC(), Verdict: journal.Verdict{State: v.State}}
	if v.Policy != nil {
		o.Verdict.Policy = v.Policy.Name
	}
	o.Verdict.PolicyHash = v.PolicyHash
	if !s.Held() {
		return o
	}
	o.Hold = &journal.Hold{Session: s.SessionID(), Token: s.Index(), Tool: s.Tool}
	if h := s.Holder; h != nil {
		o.Hold.Host, o.Hold.PID, o.Hold.User, o.Hold.Operation = printable(h.Host), h.PID, printable(h.User), printable(h.Operation)
		if !h.AcquiredAt.IsZero() {
			at := h.AcquiredAt.UTC()
			o.Hold.AcquiredAt = &at
		}
	}
	j := &v.Judgement
	if j.Rule != nil {
		o.Verdict.Rule = j.Rule.Name
	}
	if j.Result != nil {
		o.Verdict.Reason = j.Result.Reason
		if v.State == Unknown {
			o.Verdict.Reason = j.Result.Why
		}
	}
	for i := range j.Results {
		if res := &j.Results[i]; res.Rule.For > 0 && res.Value == policies.True {
			if o.Verdict.Held == nil {
				o.Verdict.Held = map[string]time.Duration{}
			}
			o.Verdict.Held[res.Rule.Key()] = res.Held
		}
	}
	return o
}

// recordedFacts are the facts of the schema that stand in observations, and
// recordedNumbers those of them and of the cluster whose number changes by
// itself.
//
//nolint:gochecknoglobals // made once, and only read
var recordedFacts, recordedNumbers = func() (facts, numbers []factName) {
	schema := policies.Schema()
	for _, object := range slices.Sorted(maps.Keys(schema)) {
		if object == "now" {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(schema[object])) {
			f := factName{object: object, name: name, drifts: schema[object][name].Age || object == "progress" && name == "rate"}
			if f.drifts {
				numbers = append(numbers, f)
			}
			if object != "cluster" {
				facts = append(facts, f)
			}
		}
	}
	return facts, numbers
}()

type factName struct {
	object, name string
	drifts       bool
}

// look is what would be recorded of a verdict now.
func (r *Recorder) look(v *Verdict, o *journal.Observation, now time.Duration) *recorded {
	next := &recorded{file: r.w.File(), hold: v.Snapshot.Hold(), at: now, cluster: r.cluster.id}
	next.mark, next.rules = markOf(&o.Verdict), rulesPrint(v)
	next.prints = make([]uint64, len(recordedFacts))
	plain := 0
	for i, f := range recordedFacts {
		if fact, ok := v.Facts[f.object][f.name]; ok {
			next.prints[i] = fingerprint(fact, f.drifts)
			plain++
		}
	}
	next.numbers = make([]float64, len(recordedNumbers))
	for i, f := range recordedNumbers {
		next.numbers[i] = math.NaN()
		if fact, ok := v.Facts[f.object][f.name]; ok {
			if n, ok := number(fact); ok {
				next.numbers[i] = n
			}
		}
	}
	total := 0
	for object, facts := range v.Facts {
		if object != "now" && object != "cluster" {
			total += len(facts)
		}
	}
	if total == plain {
		return next
	}
	next.extra = map[string]uint64{}
	schema := factSchema()
	for object, facts := range v.Facts {
		for name, fact := range facts {
			if _, ok := schema[object][name]; !ok {
				next.extra[object+"."+name] = fingerprint(fact, false)
			}
		}
	}
	return next
}

// factSchema is only read.
var factSchema = sync.OnceValue(policies.Schema) //nolint:gochecknoglobals // made once, and only read

// same reports whether a look shows nothing new.
func (old *recorded) same(next *recorded) bool {
	if old.mark != next.mark || old.rules != next.rules || old.cluster != next.cluster || !slices.Equal(old.prints, next.prints) || !maps.Equal(old.extra, next.extra) {
		return false
	}
	passed := (next.at - old.at).Seconds()
	for i, f := range recordedNumbers {
		if f.object == "cluster" {
			continue
		}
		if drifted(f, old.numbers[i], next.numbers[i], passed) {
			return false
		}
	}
	return true
}

// drifted reports whether a number is not what time alone makes of an earlier
// one.
func drifted(f factName, was, is, passed float64) bool {
	switch {
	case math.IsNaN(was) || math.IsNaN(is):
		return math.IsNaN(was) != math.IsNaN(is)
	case f.name == "rate":
		return math.Abs(is-was) > 0.1*math.Abs(was)
	}
	return math.Abs(is-was-passed) > ageSlack
}

// changed are the facts that are not as in the last observation.
func changed(v *Verdict, old, next *recorded) (facts map[string]map[string]json.RawMessage, gone []string) {
	facts = map[string]map[string]json.RawMessage{}
	put := func(object, name string, is bool) {
		if !is {
			gone = append(gone, object+"."+name)
			return
		}
		if facts[object] == nil {
			facts[object] = map[string]json.RawMessage{}
		}
		facts[object][name] = policies.EncodeFact(object, name, v.Facts[object][name], v.Snapshot.ReadAt)
	}
	for i, f := range recordedFacts {
		if old.prints[i] != next.prints[i] {
			put(f.object, f.name, next.prints[i] != 0)
		}
	}
	schema := factSchema()
	for object, list := range v.Facts {
		for name := range list {
			full := object + "." + name
			if _, ok := schema[object][name]; !ok && old.extra[full] != next.extra[full] {
				put(object, name, true)
			}
		}
	}
	for full := range old.extra {
		if _, ok := next.extra[full]; !ok {
			gone = append(gone, full)
		}
	}
	slices.Sort(gone)
	return facts, gone
}

func numbersOf(facts policies.Facts, numbers []float64) map[string]float64 {
	out := map[string]float64{}
	for i, f := range recordedNumbers {
		if !math.IsNaN(numbers[i]) {
			out[f.object+"."+f.name] = numbers[i]
		}
	}
	return out
}

// shared records the facts of the cluster, which are the same for all locks.
func (r *Recorder) shared(v *Verdict, now time.Duration) error {
	facts := v.Facts["cluster"]
	if len(facts) == 0 {
		return nil
	}
	next := recordedCluster{file: r.w.File(), id: r.cluster.id, at: now, number: math.NaN()}
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		age := factSchema()["cluster"][name].Age
		next.print = next.print*31 + fingerprint(facts[name], age)
		if n, ok := number(facts[name]); ok && age {
			next.number = n
		}
	}
	old := r.cluster
	if old.id > 0 && old.file == next.file && old.print == next.print &&
		!drifted(factName{}, old.number, next.number, (now-old.at).Seconds()) {
		return nil
	}
	next.id++
	out := map[string]json.RawMessage{}
	for name, f := range facts {
		out[name] = policies.EncodeFact("cluster", name, f, v.At)
	}
	if err := r.write(journal.Entry{Kind: journal.KindCluster, At: v.At, Cluster: &journal.Cluster{ID: next.id, ReadAt: v.At.UTC(), Facts: out}}); err != nil {
		return err
	}
	r.cluster = next
	return nil
}

// rulesPrint is what each rule of a verdict said.
func rulesPrint(v *Verdict) uint64 {
	var h maphash.Hash
	h.SetSeed(printSeed)
	for i := range v.Judgement.Results {
		res := &v.Judgement.Results[i]
		_, _ = h.WriteString(res.Rule.Key())
		_ = h.WriteByte(byte(res.Value))
	}
	return h.Sum64()
}

var printSeed = maphash.MakeSeed() //nolint:gochecknoglobals // of this process, and only read

// fingerprint tells whether a fact is another one. Of a number that drifts it
// leaves out how much it is. It is never 0.
func fingerprint(f policies.Fact, drifts bool) uint64 {
	var h maphash.Hash
	h.SetSeed(printSeed)
	_, _ = h.WriteString(f.Source)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(f.Why)
	_ = h.WriteByte(0)
	v := f.Value
	n, isNumber := number(f)
	switch {
	case v == cty.NilVal:
	case drifts && isNumber && v.IsKnown():
		_ = h.WriteByte(1)
	case drifts && isNumber:
		_ = h.WriteByte(2)
	case v.IsKnown() && !v.IsNull() && v.Type() == cty.Bool:
		_ = h.WriteByte(3)
		if v.True() {
			_ = h.WriteByte(1)
		}
	case v.IsKnown() && !v.IsNull() && v.Type() == cty.String:
		_ = h.WriteByte(4)
		_, _ = h.WriteString(v.AsString())
	case v.IsKnown() && v.IsNull():
		_ = h.WriteByte(6)
	case v.Type().IsPrimitiveType() && v == cty.UnknownVal(v.Type()):
		_ = h.WriteByte(7)
	case isNumber && v.IsKnown():
		maphash.WriteComparable(&h, n)
	default:
		_ = h.WriteByte(5)
		_, _ = h.Write(policies.EncodeFact("", "", policies.Fact{Value: v}, time.Time{}))
	}
	return h.Sum64() | 1
}

// number is the value of a number that is written on its own: a known one, or a
// lower bound. It has the precision of a float64.
func number(f policies.Fact) (float64, bool) {
	v := f.Value
	if v == cty.NilVal || v.Type() != cty.Number || v.IsNull() {
		return 0, false
	}
	if !v.IsKnown() {
		low, inclusive := v.Range().NumberLowerBound()
		high, _ := v.Range().NumberUpperBound()
		if !inclusive || !v.Range().DefinitelyNotNull() || !low.IsKnown() || high.IsKnown() && !high.AsBigFloat().IsInf() {
			return 0, false
		}
		v = low
	}
	b := v.AsBigFloat()
	n, acc := b.Float64()
	return n, acc == 0 && b.Prec() == 53 && !b.IsInf()
}

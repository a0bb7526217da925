package replay

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/policies"
)

// Judged is a verdict in a difference.
type Judged struct {
	State      string `json:"state"`
	Rule       string `json:"rule"`
	Policy     string `json:"policy"`
	PolicyHash string `json:"policy_hash"`
	Reason     string `json:"reason"`
	// Broken is when the hold was broken or, of today's policies, would have
	// been by the first who was let; Break says what became of that else.
	Broken *time.Time `json:"broken"`
	Break  string     `json:"break,omitempty"`
}

// same is whether two verdicts say the same. Where no rule decided, it does not
// matter which policy had none that did.
func (j *Judged) same(o *Judged) bool {
	return j.State == o.State && j.Rule == o.Rule && (j.Rule == "" || j.Policy == o.Policy)
}

// Difference is a span of time in which a lock would have been judged otherwise
// than it was.
type Difference struct {
	Lock    string `json:"lock"`
	Key     string `json:"key"`
	Session string `json:"session"`
	Token   uint64 `json:"token"`
	// At is when it began, and Until when it ended, by the recorder's wall
	// clock. Until is null where the journal does not show its end.
	At    time.Time  `json:"at"`
	Until *time.Time `json:"until"`
	Then  Judged     `json:"then"`
	Now   Judged     `json:"now"`
	// Entry is where the journal tells of it, as file:line.
	Entry string `json:"entry"`
}

// Report is what a replay found.
type Report struct {
	// Differences are in the order of their beginning.
	Differences []Difference `json:"differences"`
	// From and To are when the first and the last entry were written.
	From         *time.Time `json:"from"`
	To           *time.Time `json:"to"`
	Entries      int        `json:"entries"`
	Observations int        `json:"observations"`
	Locks        int        `json:"locks"`
	Runs         int        `json:"runs"`
	// Skipped are lines of the journal that could not be read.
	Skipped int `json:"skipped"`
	// PolicyHash is that of today's policies, Recorded those of the policies
	// that judged then.
	PolicyHash string   `json:"policy_hash"`
	Recorded   []string `json:"recorded"`
}

// Options of Run.
type Options struct {
	// Lock, if not empty, is the name or the key of the only lock to judge.
	Lock string
	// Problem is told of each line that cannot be read; nil: nobody is.
	Problem func(*journal.Problem)
}

// Run judges the journal at path by set. The error is about the journal as a
// whole: what is bad in it is skipped, and counted.
func Run(path string, set *policies.Set, opts Options) (*Report, error) {
	r := &replayer{set: set, opts: opts, report: &Report{PolicyHash: set.Hash, Differences: []Difference{}, Recorded: []string{}},
		tracks: map[string]*track{}, locks: map[string]bool{}, hashes: map[string]bool{}}
	for e, err := range journal.Read(path) {
		if problem, ok := errors.AsType[*journal.Problem](err); ok {
			r.report.Skipped++
			if opts.Problem != nil {
				opts.Problem(problem)
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		r.entry(&e)
	}
	r.endRun()
	sort.SliceStable(r.report.Differences, func(i, j int) bool { return r.report.Differences[i].At.Before(r.report.Differences[j].At) })
	r.report.Locks = len(r.locks)
	r.report.Recorded = slices.Sorted(maps.Keys(r.hashes))
	return r.report, nil
}

type replayer struct {
	set    *policies.Set
	opts   Options
	report *Report
	fold   journal.Fold
	run    string
	tracks map[string]*track // by key, of this run
	locks  map[string]bool
	hashes map[string]bool
}

// track is one lock in one run.
type track struct {
	mem policies.Memory
	// o is what was observed last; it holds somebody's lock.
	o *journal.Observed
	// broken is when the present hold was broken, if it was.
	broken *time.Time
	// open is the difference that still goes on. openT is when it began, and
	// between that this was not at an entry.
	open    *Difference
	openT   time.Duration
	between bool

	hot hotness
}

// hotness is for how long today's policies call a hold HOT by the same rule.
type hotness struct {
	rule  string // Rule.Key; empty: it is not HOT
	since time.Duration
	// broken is when it would have been broken first, and why says why not yet.
	broken *time.Time
	why    string
}

func (r *replayer) entry(e *journal.Entry) {
	if e.Run != r.run {
		r.endRun()
		r.run = e.Run
		r.report.Runs++
	}
	r.report.Entries++
	at := e.At.UTC()
	if r.report.From == nil {
		r.report.From = &at
	}
	r.report.To = &at
	o, _ := r.fold.Add(e)
	switch {
	case o != nil:
		r.observation(o)
	case e.Break != nil && e.Break.Event == journal.BreakEnded && (e.Break.Outcome == "taken" || e.Break.Outcome == "unlocked"):
		r.wasBroken(e)
	}
}

// endRun judges what is left of a run: to its last entry, nothing changed.
func (r *replayer) endRun() {
	for _, key := range slices.Sorted(maps.Keys(r.tracks)) {
		t := r.tracks[key]
		r.between(t, r.fold.Last+1)
		r.close(t, nil)
	}
	r.tracks = map[string]*track{}
}

func (r *replayer) wasBroken(e *journal.Entry) {
	for _, t := range r.tracks {
		if h := t.hold(); h != nil && t.o.Lock == e.Lock && h.Session == e.Break.Session && h.Token == e.Break.Token {
			at := e.At.UTC()
			t.broken = &at
			if t.open != nil {
				t.open.Then.Broken = &at
			}
		}
	}
}

func (t *track) hold() *journal.Hold {
	if t.o == nil {
		return nil
	}
	return t.o.Observation.Hold
}

func (r *replayer) observation(o *journal.Observed) {
	if r.opts.Lock != "" && r.opts.Lock != o.Lock && r.opts.Lock != o.Observation.Key {
		return
	}
	r.report.Observations++
	ob := o.Observation
	r.locks[ob.Key] = true
	t := r.tracks[ob.Key]
	if t == nil {
		t = &track{}
		r.tracks[ob.Key] = t
	}
	r.between(t, o.T)
	if old := t.hold(); old == nil || ob.Hold == nil || old.ID() != ob.Hold.ID() {
		r.close(t, o)
		t.hot, t.broken = hotness{}, nil
	}
	t.o = o
	if ob.Hold == nil {
		return
	}
	if ob.Verdict.PolicyHash != "" {
		r.hashes[ob.Verdict.PolicyHash] = true
	}
	if ob.N == 1 {
		t.mem = policies.Memory{}
	}
	t.mem.Restore(remember(&t.mem, o))
	r.judge(t, o.T, false)
}

// remember is a memory of `for`, put right by what the recorder remembered: it
// may have known of the hold before its journal did, or for less long.
func remember(m *policies.Memory, o *journal.Observed) (string, map[string]time.Duration) {
	id := o.Observation.Hold.ID()
	hold, since := m.Hold()
	if hold != id {
		since = map[string]time.Duration{}
	}
	for key, held := range o.Observation.Verdict.Held {
		since[key] = o.T - held
	}
	return id, since
}

// between judges a lock from its last observation until just before end,
// whenever time alone may change the verdict.
func (r *replayer) between(t *track, end time.Duration) {
	if t.hold() == nil || t.o.Observation.Verdict.PolicyHash == r.set.Hash {
		// By these very policies nothing changed: it would have been written.
		return
	}
	p := r.set.For(t.o.ID())
	if p == nil {
		return
	}
	least := (end - t.o.T) / maxSteps
	for now := t.o.T; ; {
		next, ok := r.steady(t, p, now, end)
		if !ok {
			return
		}
		if now = max(next, now+least); now >= end {
			return
		}
		r.judge(t, now, true)
	}
}

// maxSteps bounds how often a lock is judged between two of its observations,
// for rules whose answer may change any time.
const maxSteps = 10_000

// steady is until when today's verdict stands from now on.
func (r *replayer) steady(t *track, p *policies.Policy, now, end time.Duration) (time.Duration, bool) {
	f := r.facts(t, p, now)
	wall := t.o.At.Add(now - t.o.T)
	next, found := end, false
	sooner := func(at time.Duration, ok bool) {
		if ok && at < next {
			next, found = at, true
		}
	}
	// Judged without a memory nothing is remembered twice: what waits for its
	// `for` is in the memory.
	j := p.Judge(f, t.mem.Clone(), t.hold().ID(), now)
	d, ok := p.Steady(f, &j, wall)
	sooner(now+d, ok)
	sooner(r.fold.ClusterAfter(now))
	if t.hot.rule != "" && t.hot.broken == nil && p.Break != nil {
		if at := t.hot.since + confirmTime(p, j.Rule); at > now {
			sooner(at, true)
		} else if p.Break.Freeze != nil {
			d, ok := p.Break.Freeze.Steady(f, wall)
			sooner(now+d, ok)
		}
	}
	return next, found
}

func confirmTime(p *policies.Policy, rule *policies.Rule) time.Duration {
	if rule == nil || rule.Proof || p.Break == nil {
		return 0
	}
	return time.Duration(max(0, p.Break.Confirm.Observations-1)) * p.Break.Confirm.Every
}

// facts are those that stood at now, with what the policy reads and the journal
// does not have as unknown.
func (r *replayer) facts(t *track, p *policies.Policy, now time.Duration) policies.Facts {
	f := r.fold.FactsAt(t.o, now)
	schema := policies.Schema()
	cloned := map[string]bool{}
	add := func(names []string) {
		for _, full := range names {
			if _, ok := f.Lookup(full); ok {
				continue
			}
			object, name, ok := policies.SplitFact(full)
			if !ok {
				continue
			}
			if len(cloned) == 0 {
				f = maps.Clone(f)
			}
			if !cloned[object] {
				cloned[object] = true
				f[object] = maps.Clone(f[object])
				if f[object] == nil {
					f[object] = map[string]policies.Fact{}
				}
			}
			typ := cty.DynamicPseudoType
			if def, ok := schema[object][name]; ok {
				typ = def.Type
			}
			why := t.o.Missing
			if why == "" {
				why = "the journal does not have it: nobody asked for it when this was recorded"
			}
			f[object][name] = policies.UnknownFact(typ, "journal", t.o.Observation.ReadAt, why)
		}
	}
	for _, rule := range p.Rules() {
		add(rule.Used())
	}
	if p.Break != nil && p.Break.Freeze != nil {
		add(p.Break.Freeze.Used())
	}
	return f
}

// judge compares today's verdict at now with the recorded one.
func (r *replayer) judge(t *track, now time.Duration, between bool) {
	o := t.o
	ob := o.Observation
	is := Judged{State: policies.StateHeld, PolicyHash: r.set.Hash}
	if p := r.set.For(o.ID()); p != nil {
		f := r.facts(t, p, now)
		j := p.Judge(f, &t.mem, ob.Hold.ID(), now)
		is.State, is.Policy = j.State, p.Name
		if j.Rule != nil {
			is.Rule, is.Reason = j.Rule.Name, j.Result.Reason
			if j.State == policies.StateUnknown {
				is.Reason = j.Result.Why
			}
		}
		t.breakable(p, f, &j, now)
		is.Broken, is.Break = t.hot.broken, t.hot.why
	}
	then := Judged{State: ob.Verdict.State, Rule: ob.Verdict.Rule, Policy: ob.Verdict.Policy, PolicyHash: ob.Verdict.PolicyHash,
		Reason: ob.Verdict.Reason, Broken: t.broken}
	at := o.At.Add(now - o.T).UTC()
	if t.open != nil {
		if t.open.Then.same(&then) && t.open.Now.same(&is) {
			t.open.Now.Broken, t.open.Now.Break = is.Broken, is.Break
			return
		}
		r.end(t, &at, now, between)
	}
	if then.same(&is) {
		return
	}
	t.open = &Difference{Lock: o.Lock, Key: ob.Key, Session: ob.Hold.Session, Token: ob.Hold.Token, At: at, Then: then, Now: is,
		Entry: fmt.Sprintf("%s:%d", o.File, o.Line)}
	t.openT, t.between = now, between
}

// breakable notes from when on a hold would have been broken.
func (t *track) breakable(p *policies.Policy, f policies.Facts, j *policies.Judgement, now time.Duration) {
	if j.State != policies.StateHot {
		t.hot.rule, t.hot.why = "", ""
		return
	}
	if t.hot.rule != j.Rule.Key() {
		t.hot.rule, t.hot.since = j.Rule.Key(), now
	}
	b := p.Break
	switch confirm := t.hot.since + confirmTime(p, j.Rule); {
	case t.hot.broken != nil:
	case b == nil || b.Approval == policies.ApprovalNever:
		t.hot.why = "the policy never breaks it"
	case now < confirm:
		t.hot.why = "not confirmed yet"
	case b.Approval == policies.ApprovalManual:
		t.hot.why = "a person would have to approve"
	default:
		if frozen, why := b.Frozen(f); frozen != policies.False && !j.Rule.Proof {
			t.hot.why = "breaking is frozen: " + why
			if frozen == policies.Unknown {
				t.hot.why = "it is not known whether breaking is frozen: " + why
			}
			return
		}
		at := t.o.At.Add(now - t.o.T).UTC()
		t.hot.broken, t.hot.why = &at, ""
	}
}

// close ends the difference of a hold that is no more; o is what was observed
// then, nil at the end of a run.
func (r *replayer) close(t *track, o *journal.Observed) {
	switch {
	case t.open == nil:
	case o == nil:
		r.end(t, nil, r.fold.Last, false)
	default:
		at := o.At.UTC()
		r.end(t, &at, o.T, false)
	}
}

// defaultLag is within what time an observer judges a change, where the journal
// does not say.
const defaultLag = 2 * time.Second

// end closes the open difference. One that was over in no time is none if it
// began or ended between two observations: nobody looks at a lock all the time,
// and the recorder judged the same a moment later.
func (r *replayer) end(t *track, until *time.Time, now time.Duration, between bool) {
	d := t.open
	t.open = nil
	lag := defaultLag
	if s := r.fold.Start; s != nil && s.Lag > 0 {
		lag = time.Duration(s.Lag * float64(time.Second))
	}
	if (t.between || between) && now-t.openT <= lag {
		return
	}
	d.Until = until
	r.report.Differences = append(r.report.Differences, *d)
}

package locksmith

import (
	"context"
	"fmt"
	"maps"
	"math"
	"time"

	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// States of a lock. The words are public interface.
const (
	Free    = "FREE"
	Held    = "HELD"
	Warm    = "WARM"
	Hot     = "HOT"
	Unknown = "UNKNOWN"
	Cooling = "COOLING"
)

// Verdict is what one observer makes of one snapshot at one moment.
type Verdict struct {
	State    string
	Snapshot *evidence.Snapshot
	// Facts are only to be read. See Glance for when they are not the whole.
	Facts policies.Facts
	// Policy is nil for a lock that no policy matches: it has no rules.
	Policy *policies.Policy
	// PolicyHash is that of all the policies that Policy was chosen from.
	PolicyHash string
	Judgement  policies.Judgement
	At         time.Time
	// DelayLeft is what is left of Consul's lock-delay while COOLING; negative
	// if that is not known.
	DelayLeft time.Duration
	// Slots are the verdicts on the slots of a semaphore; its State, Policy and
	// Judgement are those of the gravest.
	Slots []*Verdict
}

// Proof reports whether the rule that made the lock HOT rests on proof.
func (v *Verdict) Proof() bool { return v.State == Hot && v.Judgement.Rule.Proof }

// Observer judges one lock over time and remembers what it saw. It is used by
// one goroutine.
type Observer struct {
	c       *Client
	name    string
	ev      evidence.Memory
	pol     policies.Memory
	cluster *evidence.Cluster
	// lent is what a locksmith saw of the cluster, where cluster is nil.
	lent  *evidence.Cluster
	start time.Time
	// since is when the plugins were asked anew: no older answer counts.
	since time.Time
	// slots observe those of a semaphore, by their keys.
	slots map[string]*Observer
}

// NewObserver makes an observer of the lock called name. cluster may be nil:
// then no more is known of the cluster's past than what the leading locksmith
// has written down.
func (c *Client) NewObserver(name string, cluster *evidence.Cluster) *Observer {
	return &Observer{c: c, name: name, cluster: cluster, start: time.Now()}
}

// past is what is known of the cluster's past; nil: nothing.
func (o *Observer) past() *evidence.Cluster {
	if o.cluster != nil {
		return o.cluster
	}
	return o.lent
}

// Memory is what the observer saw of the lock.
func (o *Observer) Memory() *evidence.Memory { return &o.ev }

// Under makes the observer judge by the policies of c, with all that it
// remembers: what was seen of the lock, and since when a rule has held that says
// in both policies the same.
func (o *Observer) Under(c *Client) { o.c = c }

// Observe reads the lock and judges it. Of a free lock it also finds out
// whether it is COOLING.
func (o *Observer) Observe(ctx context.Context) (*Verdict, error) {
	v, err := o.observe(ctx)
	if err == nil {
		v, err = o.Settle(ctx, v)
	}
	if err == nil && o.c.cooling(ctx, v.Snapshot) {
		v.State = Cooling
	}
	return v, err
}

// Unsettled tells of a HOT lock whose holder is a process of this host: who lets go of a
// lock ends right after that, and may have done both between the read of the lock and
// the look at its holder. Only a read that is later than the look tells a holder that
// died from one that is done.
func (c *Client) Unsettled(v *Verdict) bool {
	h := v.Snapshot.Holder
	return v.State == Hot && v.Snapshot.Held() && h != nil && c.reader.Local(h)
}

// Settled is the last hold of one lock that was read again because it had become HOT: of
// each hold that is done once.
type Settled string

// Owes reports whether a lock is to be read again before anybody is told its verdict,
// and takes it that this is done.
func (s *Settled) Owes(c *Client, v *Verdict) bool {
	hold := Settled(v.Snapshot.Hold())
	switch {
	case v.State != Hot:
		*s = ""
		return false
	case *s == hold || !c.Unsettled(v):
		return false
	}
	*s = hold
	return true
}

// Settle reads a lock again of which that is so, and judges it anew where its hold has
// ended since.
func (o *Observer) Settle(ctx context.Context, v *Verdict) (*Verdict, error) {
	if !o.c.Unsettled(v) {
		return v, nil
	}
	s, err := o.c.reader.Read(ctx, v.Snapshot.Name)
	if err != nil {
		return nil, err
	}
	if s.Hold() == v.Snapshot.Hold() {
		return v, nil
	}
	return o.Judge(s, time.Now()), nil
}

func (o *Observer) observe(ctx context.Context) (*Verdict, error) {
	s, err := o.c.reader.Read(ctx, o.name)
	if err != nil {
		return nil, err
	}
	// Who has not watched the cluster for long takes what the locksmith saw.
	if s.Held() || s.Semaphore != nil {
		if o.cluster == nil && o.lent == nil {
			o.lent = evidence.NewCluster()
		}
		o.c.reader.Borrow(ctx, o.past())
	}
	o.askPlugins(ctx, s)
	return o.Judge(s, time.Now()), nil
}

// Judge judges a snapshot as of now. The same snapshot may be judged again
// later: ages grow and processes die without Consul.
func (o *Observer) Judge(s *evidence.Snapshot, now time.Time) *Verdict { return o.judge(s, now, true) }

// Glance is Judge for who looks at very many locks and shows none of them: it
// comes to the same verdict, and where that is not HOT its Facts are only those
// that the policy's rules read.
func (o *Observer) Glance(s *evidence.Snapshot, now time.Time) *Verdict {
	return o.judge(s, now, false)
}

func (o *Observer) judge(s *evidence.Snapshot, now time.Time, whole bool) *Verdict {
	o.ev.Observe(s, o.c.reader)
	v := &Verdict{Snapshot: s, At: now, State: Free, DelayLeft: -1}
	v.PolicyHash = o.c.set.Hash
	v.Policy = o.c.set.For(policies.LockID{Name: s.Name, Key: s.Key, Own: s.Own})
	var names *policies.Names // all of them
	if !whole {
		names = v.Policy.Judging()
	}
	v.Facts = o.c.reader.FactsOf(s, &o.ev, o.past(), now, names)
	o.pluginFacts(v)
	switch {
	case s.Semaphore != nil:
		o.judgeSemaphore(v, whole)
		if v.State == Hot && !whole {
			o.complete(v)
		}
		return v
	case !s.Held():
		return v
	case s.Slot != nil && !s.Slot.Holds:
		// Who waits holds nothing that rules are about.
		v.Policy = nil
	}
	v.State = Held
	if v.Policy.ReadsFile() {
		path, err := v.Policy.FilePath(v.Facts)
		v.Facts["file"] = o.c.reader.FileFacts(path, err, now)
	}
	if v.Policy != nil {
		v.Judgement = v.Policy.Judge(v.Facts, &o.pol, s.Hold(), now.Sub(o.start))
		v.State = v.Judgement.State
	}
	if v.State == Hot && !whole {
		o.complete(v)
	}
	return v
}

// complete adds the facts that no rule read: what is done about the lock may
// rest on them. Those that were judged stay as they were.
func (o *Observer) complete(v *Verdict) {
	facts := o.c.reader.Facts(v.Snapshot, &o.ev, o.past(), v.At)
	for object, judged := range v.Facts {
		all := maps.Clone(facts[object])
		maps.Copy(all, judged)
		facts[object] = all
	}
	v.Facts = facts
}

// Status is a verdict as people and programs are shown it.
type Status struct {
	Name       string             `json:"name"`
	Key        string             `json:"key"`
	State      string             `json:"state"`
	Rule       string             `json:"rule"`
	Reason     string             `json:"reason"`
	Policy     string             `json:"policy"`
	PolicyHash string             `json:"policy_hash"`
	Token      *uint64            `json:"token"`
	Session    *string            `json:"session"`
	Holder     *HolderView        `json:"holder"`
	Progress   *ProgressView      `json:"progress"`
	HeldFor    *float64           `json:"held_for"`
	Evidence   []records.Evidence `json:"evidence,omitempty"`
	Next       string             `json:"next"`
	// Decisive is how many of Evidence, from the first, the deciding rule read.
	Decisive int `json:"-"`

	// Since is when the hold began by the holder's own clock; for people.
	Since *time.Time `json:"since,omitempty"`
	// Checked is false where the session's TTL alone detects a dead holder.
	Checked bool `json:"checked"`
	// Operation is what the holder says that it does.
	Operation string `json:"operation,omitempty"`
	// Allocation is the Nomad allocation that the holder says it runs in; nil: it
	// names none.
	Allocation *AllocationView `json:"allocation,omitempty"`
	// Pending are rules that hold, but not yet for long enough.
	Pending []string `json:"pending,omitempty"`
	// Owed is the quiesce in seconds that the next holder serves.
	Owed float64 `json:"quiesce_owed,omitempty"`
	// Serves is that the present holder serves it now.
	Serves bool `json:"-"`
	// DelayLeft is what is left of Consul's lock-delay, when known.
	DelayLeft *float64 `json:"delay_left,omitempty"`
	// Semaphore is there for a lock of several slots, SlotOf for one of them.
	Semaphore *SemaphoreView `json:"semaphore,omitempty"`
	SlotOf    string         `json:"slot_of,omitempty"`
	// Silence is the operator's word that the lock is not to be broken for now.
	Silence *records.Silence `json:"silence,omitempty"`
	// Suspended is that all automatic breaking is suspended. Only lock status, lock
	// explain and lock list tell of it, of a held lock.
	Suspended *records.PolicySuspended `json:"suspended,omitempty"`
}

// HolderView are the facts of the object holder.
type HolderView struct {
	Local     *bool   `json:"local"`
	Host      *string `json:"host"`
	PID       *int64  `json:"pid"`
	Alive     *bool   `json:"alive"`
	BootID    *string `json:"boot_id"`
	PIDNS     *string `json:"pid_ns"`
	StartedAt *string `json:"started_at"`
	User      *string `json:"user"`
	Tool      *string `json:"tool"`
}

// AllocationView is a Nomad allocation as the holder record names it.
type AllocationView struct {
	ID        string `json:"id"`
	Job       string `json:"job"`
	Namespace string `json:"namespace"`
	Region    string `json:"region"`
}

// ProgressView are the facts of the object progress.
type ProgressView struct {
	Done  *int64   `json:"done"`
	Total *int64   `json:"total"`
	Unit  *string  `json:"unit"`
	Age   *float64 `json:"age"`
	Rate  *float64 `json:"rate"`
}

// Status shows the verdict. Evidence is what the deciding rule read; where no
// rule decided, what all rules read.
func (c *Client) Status(v *Verdict) *Status {
	s := v.Snapshot
	st := &Status{Name: s.Name, Key: s.Key, State: v.State, PolicyHash: c.set.Hash}
	if v.Policy != nil {
		st.Policy = v.Policy.Name
	}
	if owed, _ := c.owed(s); owed != nil {
		st.Owed, st.Serves = owed.Owed, s.ServesPause()
	}
	if s.Silence.Stands(v.At) {
		st.Silence = s.Silence
	}
	if s.Semaphore != nil {
		c.semaphoreStatus(v, st)
		return st
	}
	if s.Slot != nil {
		st.SlotOf = s.Slot.Of
	}
	if !s.Held() {
		if s.FenceErr != nil {
			st.Reason = s.FenceErr.Error()
		}
		if v.DelayLeft >= 0 {
			left := v.DelayLeft.Seconds()
			st.DelayLeft = &left
		}
		return st
	}
	if r := v.Judgement.Rule; r != nil {
		st.Rule = r.Name
	}
	if res := v.Judgement.Result; res != nil {
		st.Reason, st.Decisive = res.Reason, len(res.Used)
		if st.State == Unknown && res.Why != "" {
			st.Reason = res.Why
		}
	}
	token, session := s.Index(), s.SessionID()
	st.Token, st.Session = &token, &session
	st.Holder = holderView(v.Facts)
	st.Progress = progressView(v.Facts)
	st.HeldFor = heldFor(v)
	st.Evidence = policies.EvidenceOf(v.Facts, usedFacts(v))
	for _, p := range v.Judgement.Pending {
		st.Pending = append(st.Pending, fmt.Sprintf("rule %s holds; it counts in %s", p.Rule.Name, round(p.Left)))
	}
	st.Checked = s.Checked()
	if h := s.Holder; h != nil {
		st.Since = &h.AcquiredAt
		if h.AllocID != "" {
			st.Allocation = &AllocationView{printable(h.AllocID), printable(h.AllocJob), printable(h.AllocNamespace), printable(h.AllocRegion)}
		}
	} else if at, ok := foreignSince(s); ok {
		st.Since = &at
	}
	st.Operation = printable(s.Operation())
	return st
}

// basics are shown of every held lock, whatever the rules read.
var basics = []string{"holder.tool", "holder.local", "holder.alive", "session.ttl", "session.node", "check.status", "node.serf", "progress.age", "lock.held_for"}

// usedFacts are the facts behind a verdict: those of the deciding rule first.
func usedFacts(v *Verdict) []string {
	var names []string
	seen := map[string]bool{}
	add := func(list []string) {
		for _, n := range list {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
	}
	if v.Judgement.Result != nil {
		add(v.Judgement.Result.Used)
	}
	for _, r := range v.Judgement.Results {
		add(r.Used)
	}
	add(basics)
	return names
}

func fact(f policies.Facts, name string) (cty.Value, bool) {
	x, ok := f.Lookup(name)
	if !ok || x.Value == cty.NilVal || !x.Value.IsKnown() || x.Value.IsNull() {
		return cty.NilVal, false
	}
	return x.Value, true
}

func factString(f policies.Facts, name string) *string {
	v, ok := fact(f, name)
	if !ok {
		return nil
	}
	s := v.AsString()
	return &s
}

func factBool(f policies.Facts, name string) *bool {
	v, ok := fact(f, name)
	if !ok {
		return nil
	}
	b := v.True()
	return &b
}

func factFloat(f policies.Facts, name string) *float64 {
	v, ok := fact(f, name)
	if !ok {
		return nil
	}
	n, _ := v.AsBigFloat().Float64()
	return &n
}

func factInt(f policies.Facts, name string) *int64 {
	v, ok := fact(f, name)
	if !ok {
		return nil
	}
	n, _ := v.AsBigFloat().Int64()
	return &n
}

func holderView(f policies.Facts) *HolderView {
	return &HolderView{
		Local: factBool(f, "holder.local"), Host: factString(f, "holder.host"), PID: factInt(f, "holder.pid"),
		Alive: factBool(f, "holder.alive"), BootID: factString(f, "holder.boot_id"), PIDNS: factString(f, "holder.pid_ns"),
		StartedAt: factString(f, "holder.started_at"), User: factString(f, "holder.user"), Tool: factString(f, "holder.tool"),
	}
}

func progressView(f policies.Facts) *ProgressView {
	if _, ok := fact(f, "progress.done"); !ok {
		return nil
	}
	return &ProgressView{
		Done: factInt(f, "progress.done"), Total: factInt(f, "progress.total"), Unit: factString(f, "progress.unit"),
		Age: factFloat(f, "progress.age"), Rate: factFloat(f, "progress.rate"),
	}
}

// heldFor is the fact where it is known, with the pause that it leaves out. Where it
// is not, it is what the holder's clock says against ours: shown to people, never
// judged by.
func heldFor(v *Verdict) *float64 {
	pause := v.Snapshot.Pause()
	if n := factFloat(v.Facts, "lock.held_for"); n != nil && (*n > 0 || pause == 0) {
		d := *n + pause.Seconds()
		return &d
	}
	at, ok := foreignSince(v.Snapshot)
	if h := v.Snapshot.Holder; h != nil {
		at, ok = h.AcquiredAt, !h.AcquiredAt.IsZero()
	}
	if !ok {
		return nil
	}
	d := max(0, v.At.Sub(at).Seconds())
	return &d
}

func round(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}

// delayAtMost bounds what is left of the lock-delay of a lock that is COOLING: by
// what an observer saw, or by the whole delay that the last holder asked for.
func delayAtMost(v *Verdict) (time.Duration, bool) {
	if f, ok := v.Facts.Lookup("lock.delay_left"); ok && f.Value != cty.NilVal && !f.Value.IsKnown() {
		if most, _ := f.Value.Range().NumberUpperBound(); most.IsKnown() && !most.IsNull() {
			if n, _ := most.AsBigFloat().Float64(); !math.IsInf(n, 0) {
				return seconds(n), true
			}
		}
	}
	if h := v.Snapshot.Holder; h != nil && !h.Released && h.Quiesce > 0 {
		return min(seconds(h.Quiesce), MaxQuiesce), true
	}
	return 0, false
}

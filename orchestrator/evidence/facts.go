package evidence

import (
	"cmp"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/zclconf/go-cty/cty"

	"github.com/aim-control/aimlock/internal/hostproc"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/policies"
)

// Sources of facts, as evidence names them.
const (
	srcKV      = "consul kv"
	srcSession = "consul session"
	srcHealth  = "consul health"
	srcProc    = "this host's /proc"
	srcRecord  = "holder record"
	srcMemory  = "this observer"
	srcInfo    = "terraform lock info"
	srcCluster = "consul status"
	srcNomad   = "nomad"

	srcObserved = "observed/ in consul kv"
)

// set collects the facts of one object that somebody wants to know.
type set struct {
	facts map[string]policies.Fact
	at    time.Time
	want  map[string]bool
	all   bool
}

func newSet(object string, at time.Time, names *policies.Names) *set {
	s := &set{at: at}
	s.want, s.all = names.Object(object)
	n := len(s.want)
	if s.all {
		n = len(schema()[object])
	}
	s.facts = make(map[string]policies.Fact, n)
	return s
}

func (s *set) wants(name string) bool { return s.all || s.want[name] }

func (s *set) put(name string, f policies.Fact) {
	if s.wants(name) {
		s.facts[name] = f
	}
}

func (s *set) known(name string, v cty.Value, src string) {
	s.put(name, policies.Known(v, src, s.at))
}

// maxText bounds a text that comes from a record or from Consul.
const maxText = 300

// str is a text. Most come from records that anybody with key:write can write,
// and are shown to people: control characters do not pass.
func (s *set) str(name, v, src string) {
	if !s.wants(name) {
		return
	}
	s.known(name, cty.StringVal(text.Clip(text.Printable(v), maxText)), src)
}

// strOr is str, and null for what is empty: the fact cannot apply.
func (s *set) strOr(name, v, src string) {
	if v == "" {
		s.null(name, cty.String, src)
		return
	}
	s.str(name, v, src)
}

func (s *set) num(name string, v float64, src string) {
	if !s.wants(name) {
		return
	}
	s.known(name, cty.NumberFloatVal(v), src)
}

func (s *set) boolean(name string, v bool, src string) { s.known(name, cty.BoolVal(v), src) }

func (s *set) null(name string, t cty.Type, src string) { s.known(name, cty.NullVal(t), src) }

func (s *set) unknown(name string, t cty.Type, src, why string) {
	s.put(name, policies.UnknownFact(t, src, s.at, why))
}

// atLeast is an age of which only a lower bound is known.
func (s *set) atLeast(name string, d time.Duration, src, why string) {
	if !s.wants(name) {
		return
	}
	v := cty.UnknownVal(cty.Number).Refine().NotNull().
		NumberRangeLowerBound(cty.NumberFloatVal(d.Seconds()), true).NewValue()
	s.put(name, policies.Fact{Value: v, Source: src, ObservedAt: s.at, Why: why})
}

// schema is what policies may read; it is only read.
var schema = sync.OnceValue(policies.Schema) //nolint:gochecknoglobals // made once, and only read

// nulls makes every fact of an object null that is not set: the object cannot
// apply. Locks that were read at the same time share them.
func (r *Reader) nulls(object, src string, at time.Time, names *policies.Names) map[string]policies.Fact {
	return r.blanks.of(blank{object, src, names}, at)
}

// nullSet is nulls in a set of their own.
func nullSet(object, src string, at time.Time, names *policies.Names) *set {
	s := newSet(object, at, names)
	for name, def := range schema()[object] {
		s.null(name, def.Type, src)
	}
	return s
}

// blank is an object that is null, and blanks those of one moment.
type blank struct {
	object, src string
	names       *policies.Names
}

type blanks struct {
	mu   sync.Mutex
	at   time.Time
	made map[blank]map[string]policies.Fact
}

func (b *blanks) of(what blank, at time.Time) map[string]policies.Fact {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made == nil || !b.at.Equal(at) {
		b.at, b.made = at, map[blank]map[string]policies.Fact{}
	}
	facts, ok := b.made[what]
	if !ok {
		facts = nullSet(what.object, what.src, at, what.names).facts
		b.made[what] = facts
	}
	return facts
}

// unknowns makes every fact of an object unknown, in a set of their own.
func unknowns(object, src string, at time.Time, why string, names *policies.Names) *set {
	s := newSet(object, at, names)
	for name, def := range schema()[object] {
		s.unknown(name, def.Type, src, why)
	}
	return s
}

// Facts makes facts of a snapshot as of now. mem and cl are the observer's
// memory; either may be nil, and then what only a memory knows is unknown. Objects
// may be shared with other locks: they are only to be read.
func (r *Reader) Facts(s *Snapshot, mem *Memory, cl *Cluster, now time.Time) policies.Facts {
	return r.FactsOf(s, mem, cl, now, nil)
}

// FactsOf is Facts of which only those of names are made. They are the same.
func (r *Reader) FactsOf(s *Snapshot, mem *Memory, cl *Cluster, now time.Time, names *policies.Names) policies.Facts {
	n := factsAsk{s: s, mem: mem, cl: cl, now: now, names: names}
	out := make(policies.Facts, 8)
	for _, o := range objects {
		if want, all := names.Object(o.name); all || len(want) > 0 {
			out[o.name] = o.facts(r, &n)
		}
	}
	return out
}

// factsAsk is what facts are made of, and which.
type factsAsk struct {
	s     *Snapshot
	mem   *Memory
	cl    *Cluster
	now   time.Time
	names *policies.Names
}

func (n *factsAsk) set(object string) *set { return newSet(object, n.s.ReadAt, n.names) }

var objects = []struct {
	name  string
	facts func(*Reader, *factsAsk) map[string]policies.Fact
}{
	{"lock", (*Reader).lockFacts},
	{"session", (*Reader).sessionFacts},
	{"check", (*Reader).checkFacts},
	{"node", (*Reader).nodeFacts},
	{"holder", (*Reader).holderFacts},
	{"nomad", (*Reader).nomadFacts},
	{"progress", (*Reader).progressFacts},
	{"rollout", (*Reader).rolloutFacts},
	// FileFacts, where a policy names one.
	{"file", func(r *Reader, n *factsAsk) map[string]policies.Fact {
		return r.nulls("file", srcPolicy, n.s.ReadAt, n.names)
	}},
	{"cluster", func(_ *Reader, n *factsAsk) map[string]policies.Fact { return clusterFacts(n.cl, n.now, n.names) }},
	{"now", func(_ *Reader, n *factsAsk) map[string]policies.Fact { return policies.Clock(n.now) }},
}

// sameClock reports whether what the holder wrote on the boot bootID was written on
// this one and in this time namespace, so that its CLOCK_BOOTTIME can be compared
// with ours. Without a holder record it is taken to be in the first time namespace.
func (r *Reader) sameClock(s *Snapshot, bootID string) bool {
	ns := ""
	if s.Holder != nil {
		ns = s.Holder.PIDNS
	}
	return bootID != "" && bootID == r.Self.BootID && hostproc.TimeNS(ns) == hostproc.TimeNS(r.Self.PIDNS)
}

func (r *Reader) lockFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	f := n.set("lock")
	f.str("name", s.Name, srcKV)
	f.str("key", s.Key, srcKV)
	f.unknown("waiters", cty.Number, srcMemory, "Consul does not tell who waits")
	if !s.Held() {
		f.null("token", cty.Number, srcKV)
		f.null("held_for", cty.Number, srcKV)
		delayLeft(f, s, n.mem, n.now)
		return f.facts
	}
	f.known("token", cty.NumberUIntVal(s.Index()), srcKV)
	f.null("delay_left", cty.Number, srcKV)
	r.heldFor(f, s, n.mem, n.now)
	return f.facts
}

// heldFor leaves out the pause that a holder first waits out for the one before it:
// a policy that gives holders less time than that would break one after the other,
// each before it did anything, and each would leave the pause to the next.
func (r *Reader) heldFor(f *set, s *Snapshot, mem *Memory, now time.Time) {
	pause := s.Pause()
	if s.Holder != nil && r.sameClock(s, s.Holder.BootID) && s.Holder.AcquiredBoot > 0 {
		f.num("held_for", max(0, hostproc.BootSeconds()-s.Holder.AcquiredBoot-pause.Seconds()), srcRecord)
		return
	}
	d, whole, src := r.stood(s, mem, "hold", now)
	d = max(0, d-pause)
	if whole {
		f.num("held_for", d.Seconds(), src)
	} else {
		f.atLeast("held_for", d, src, "nobody here saw it being taken; Consul does not tell when")
	}
}

// delayLeft is known where there is none: a hold that was let go leaves no
// lock-delay, and neither does one that was broken. Else it is known as well as
// the end was seen.
func delayLeft(f *set, s *Snapshot, mem *Memory, now time.Time) {
	low, high, ok := mem.delayLeft(now)
	switch {
	case s.Holder != nil && s.Holder.Released:
		f.num("delay_left", 0, srcRecord)
	case ok && high == 0:
		f.num("delay_left", 0, srcMemory)
	case ok:
		f.put("delay_left", policies.Fact{
			Value: cty.UnknownVal(cty.Number).Refine().NotNull().NumberRangeLowerBound(cty.NumberFloatVal(low.Seconds()), true).
				NumberRangeUpperBound(cty.NumberFloatVal(high.Seconds()), true).NewValue(),
			Source: srcMemory, ObservedAt: f.at, Why: "the moment at which the last hold ended was not seen",
		})
	default:
		f.unknown("delay_left", cty.Number, srcMemory, "Consul does not tell the lock-delay that is left")
	}
}

func (r *Reader) sessionFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	if !s.Held() {
		return r.nulls("session", srcKV, s.ReadAt, n.names)
	}
	f := n.set("session")
	if s.Session == nil {
		f = unknowns("session", srcSession, s.ReadAt, s.SessionWhy, n.names)
		f.str("id", s.SessionID(), srcKV)
		return f.facts
	}
	e := s.Session
	f.str("id", e.ID, srcSession)
	f.boolean("exists", true, srcSession)
	f.str("node", e.Node, srcSession)
	f.str("behavior", e.Behavior, srcSession)
	ttl, err := time.ParseDuration(e.TTL)
	f.boolean("has_ttl", err == nil && ttl > 0, srcSession)
	if err == nil && ttl > 0 {
		f.num("ttl", ttl.Seconds(), srcSession)
	} else {
		f.null("ttl", cty.Number, srcSession)
	}
	d, whole, src := r.stood(s, n.mem, "hold", n.now)
	if whole {
		f.num("age", d.Seconds(), src)
	} else {
		f.atLeast("age", d, src, "Consul does not tell when a session was made")
	}
	return f.facts
}

func (r *Reader) checkFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	if !s.Held() {
		return r.nulls("check", srcKV, s.ReadAt, n.names)
	}
	id, c := s.checkOf()
	switch {
	case id == "" && (s.Session != nil || s.Holder != nil):
		// Held by a session's TTL alone.
		return r.nulls("check", srcSession, s.ReadAt, n.names)
	case id == "":
		return unknowns("check", srcSession, s.ReadAt, s.SessionWhy, n.names).facts
	case c == nil && s.ChecksWhy != "":
		return unknowns("check", srcHealth, s.ReadAt, s.ChecksWhy, n.names).facts
	case c == nil:
		return unknowns("check", srcHealth, s.ReadAt, "Consul does not show the check "+id+": it was deregistered, or the token lacks service:read", n.names).facts
	}
	f := n.set("check")
	f.str("status", c.Status, srcHealth)
	f.str("output", c.Output, srcHealth)
	d, whole, src := r.stood(s, n.mem, "check "+id, n.now)
	if whole {
		f.num("age", d.Seconds(), src)
	} else {
		f.atLeast("age", d, src, "Consul does not tell since when a check has its status")
	}
	return f.facts
}

func (r *Reader) nodeFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	if !s.Held() {
		return r.nulls("node", srcKV, s.ReadAt, n.names)
	}
	f := n.set("node")
	switch {
	case s.Session != nil:
		f.str("name", s.Session.Node, srcSession)
	case s.Holder != nil && s.Holder.Node != "":
		f.str("name", s.Holder.Node, srcRecord)
	default:
		f.unknown("name", cty.String, srcSession, s.SessionWhy)
	}
	if len(s.Checks) == 0 {
		f.unknown("exists", cty.Bool, srcHealth, s.ChecksWhy)
		f.unknown("serf", cty.String, srcHealth, s.ChecksWhy)
		return f.facts
	}
	f.boolean("exists", true, srcHealth)
	switch c := s.serf(); {
	case c == nil:
		f.unknown("serf", cty.String, srcHealth, "the node has no serfHealth check")
	case c.Status == api.HealthPassing:
		f.str("serf", "alive", srcHealth)
	case c.Status == api.HealthCritical:
		f.str("serf", "failed", srcHealth)
	default:
		f.unknown("serf", cty.String, srcHealth, "serfHealth is "+text.Clip(text.Printable(c.Status), maxText))
	}
	return f.facts
}

func (r *Reader) holderFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	if !s.Held() {
		return r.nulls("holder", srcKV, s.ReadAt, n.names)
	}
	f := n.set("holder")
	h := s.Holder
	if h == nil {
		why := s.HolderWhy
		if why == "" {
			why = "the lock's value is not a holder record of aimlock"
		}
		f = unknowns("holder", srcKV, s.ReadAt, why, n.names)
		f.str("tool", s.Tool, srcKV)
		if i := s.Info; i != nil {
			f.str("user", i.user(), srcInfo)
			f.str("host", i.host(), srcInfo)
			f.str("started_at", i.Created.UTC().Format(time.RFC3339), srcInfo)
		}
		return f.facts
	}
	f.str("tool", h.Tool, srcRecord)
	f.str("host", h.Host, srcRecord)
	f.num("pid", float64(h.PID), srcRecord)
	f.strOr("boot_id", h.BootID, srcRecord)
	f.strOr("pid_ns", h.PIDNS, srcRecord)
	if f.wants("started_at") {
		f.str("started_at", h.StartedAt.UTC().Format(time.RFC3339), srcRecord)
	}
	f.strOr("user", h.User, srcRecord)
	f.boolean("local", r.Local(h), srcRecord)
	if !f.wants("alive") {
		return f.facts // to look at processes costs more than all the rest
	}
	f.at = n.now
	alive, why, src := r.alive(s)
	switch alive {
	case hostproc.True:
		f.boolean("alive", true, src)
	case hostproc.False:
		f.boolean("alive", false, src)
	default:
		f.unknown("alive", cty.Bool, src, why)
	}
	return f.facts
}

// alive asks whoever can know: this host, or the agent of the holder's.
func (r *Reader) alive(s *Snapshot) (alive hostproc.Tri, why, source string) {
	if r.Local(s.Holder) {
		alive, why = r.HolderAlive(s.Holder, s.Progress)
		return alive, why, srcProc
	}
	alive, why = r.seenAlive(s)
	if s.Seen != nil {
		return alive, why, "agent of host " + shown(s.Seen.Host)
	}
	// Whoever looks at this host's own past or containers is told so.
	if s.Holder.Host == r.Self.Host {
		_, here := r.HolderAlive(s.Holder, s.Progress)
		why = here + "; " + why
	}
	return alive, why, srcObserved
}

// nomadFacts are null for a holder that no allocation runs.
func (r *Reader) nomadFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	switch {
	case !s.Held(), s.Holder != nil && s.Holder.AllocID == "":
		return r.nulls("nomad", srcRecord, s.ReadAt, n.names)
	case s.Holder == nil:
		// Whoever holds it may well be one.
		return unknowns("nomad", srcRecord, s.ReadAt, "the holder did not record an allocation", n.names).facts
	}
	f := n.set("nomad")
	a := s.Alloc
	switch {
	case a == nil:
		f = unknowns("nomad", srcNomad, s.ReadAt, s.AllocWhy, n.names)
	case a.Gone:
		f = nullSet("nomad", srcNomad, s.ReadAt, n.names)
		f.boolean("gone", true, srcNomad)
	default:
		f.boolean("gone", false, srcNomad)
		f.str("client_status", a.ClientStatus, srcNomad)
		f.str("desired_status", a.DesiredStatus, srcNomad)
		f.str("job", a.Job, srcNomad)
		if a.NodeStatus != "" {
			f.str("node_status", a.NodeStatus, srcNomad)
		} else {
			f.unknown("node_status", cty.String, srcNomad, a.NodeWhy)
		}
	}
	f.str("alloc_id", s.Holder.AllocID, srcRecord)
	return f.facts
}

func (r *Reader) progressFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	switch {
	case s.Held() && s.ProgressWhy != "":
		return unknowns("progress", srcKV, s.ReadAt, s.ProgressWhy, n.names).facts
	case !s.Held(), s.Progress == nil:
		return r.nulls("progress", srcKV, s.ReadAt, n.names)
	}
	p, f := s.Progress, n.set("progress")
	f.num("done", float64(p.Done), srcKV)
	f.num("total", float64(p.Total), srcKV)
	f.str("unit", p.Unit, srcKV)
	if rate, ok := n.mem.rate(n.now); ok {
		f.num("rate", rate, srcMemory)
	} else {
		f.unknown("rate", cty.Number, srcMemory, "this observer has not watched it long enough")
	}
	d, _, src := r.stood(s, n.mem, "progress", n.now)
	if r.sameClock(s, p.BootID) && p.Boot > 0 {
		// Same kernel, same clock: the record's own time is exact. It is
		// never less than what this observer saw.
		f.num("age", max(0, hostproc.BootSeconds()-p.Boot, d.Seconds()), srcKV)
	} else {
		// For as long as the observer saw it stand still; it may have stood
		// for longer, and then it only seems younger than it is.
		f.num("age", d.Seconds(), src)
	}
	return f.facts
}

// finishedStates end a rollout: of package orchestrator's states, those that
// nothing leaves.
var finishedStates = map[string]bool{"succeeded": true, "failed": true, "rolled_back": true, "aborted": true, "superseded": true}

func (r *Reader) rolloutFacts(n *factsAsk) map[string]policies.Fact {
	s := n.s
	switch {
	case s.Holder == nil || s.Holder.RolloutID == "" || !s.Held():
		return r.nulls("rollout", srcRecord, s.ReadAt, n.names)
	case s.Rollout == nil:
		f := unknowns("rollout", srcKV, s.ReadAt, s.RolloutWhy, n.names)
		f.str("id", s.Holder.RolloutID, srcRecord)
		if s.ServesPause() {
			// The record comes after the pause: it has not begun.
			f.boolean("finished", false, srcKV)
			f.null("finished_ago", cty.Number, srcKV)
		}
		return f.facts
	}
	f := n.set("rollout")
	f.str("id", s.Holder.RolloutID, srcRecord)
	f.str("state", s.Rollout.State, srcKV)
	finished := finishedStates[s.Rollout.State]
	f.boolean("finished", finished, srcKV)
	if finished {
		d, _, src := r.stood(s, n.mem, "rollout", n.now)
		f.num("finished_ago", d.Seconds(), src)
	} else {
		f.null("finished_ago", cty.Number, srcKV)
	}
	return f.facts
}

func clusterFacts(cl *Cluster, now time.Time, names *policies.Names) map[string]policies.Fact {
	v := cl.known(now)
	f := newSet("cluster", now, names)
	switch {
	case v.leader != "":
		f.str("leader", v.leader, srcCluster)
	default:
		f.unknown("leader", cty.String, srcCluster, cmp.Or(v.leaderWhy, v.why, noLeader))
	}
	src := srcMemory
	if v.from != "" {
		src = "observer " + v.from
	}
	switch {
	case v.changed:
		f.num("leader_changed_ago", v.changedAgo.Seconds(), srcMemory)
	case v.lentAge, v.why == "":
		f.atLeast("leader_changed_ago", v.watched, src, cmp.Or(v.ageWhy, "no change was seen yet"))
	default:
		f.unknown("leader_changed_ago", cty.Number, srcMemory, cmp.Or(v.ageWhy, v.why))
	}
	src = srcMemory
	if v.lostFrom != "" {
		src = "observer " + v.lostFrom
	}
	switch {
	case v.lostWhole:
		f.num("sessions_lost", float64(v.lost), src)
	case v.lostWhy != "":
		f.unknown("sessions_lost", cty.Number, srcMemory, v.lostWhy)
	default:
		f.put("sessions_lost", policies.Fact{
			Value: cty.UnknownVal(cty.Number).Refine().NotNull().
				NumberRangeLowerBound(cty.NumberIntVal(int64(v.lost)), true).NewValue(),
			Source: src, ObservedAt: now, Why: "not watched for a whole minute yet",
		})
	}
	return f.facts
}

package sim

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/devconsul/state"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/agent"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Invariants, as they are named where one does not hold.
const (
	InvFence     = "the fence never goes back"
	InvHolder    = "one effective holder"
	InvOrder     = "writes of a hold land in order"
	InvLease     = "self-fencing"
	InvGuards    = "guards on every write"
	InvIntent    = "intent before a break"
	InvOutcome   = "one outcome of a break"
	InvBudget    = "break budget"
	InvEvidence  = "no break on stale or unknown evidence"
	InvBrakes    = "brakes hold to the end"
	InvQuiesce   = "quiesce is served whole"
	InvClass     = "every node in one class"
	InvParallel  = "max_parallel"
	InvFailures  = "failure budget"
	InvEpoch     = "a recovery raises the epoch"
	InvApproval  = "no break without an approval"
	InvGate      = "nothing passes a gate that did not pass"
	InvAnswer    = "an answer never goes back"
	InvTogether  = "configs of one rollout are applied all or none"
	InvConverges = "everything converges"
)

// lease is what a process may reckon with for one of its sessions.
type lease struct {
	ttl     time.Duration
	renewed time.Time
	check   string
}

// lockModel is what the checks know of one lock, from the writes alone.
type lockModel struct {
	session string
	index   uint64
	value   []byte
	// since is when the present hold began, ended when the last one ended that owes
	// the pause owed: so long nothing is done under a later one.
	since, ended time.Time
	owed         time.Duration
	// used: something was done under it.
	used bool
}

// checker looks at every step at what must hold. What is about the state of the
// servers it takes from their writes, so the code that is tested has no say in it.
type checker struct {
	w *World

	locks    map[string]*lockModel
	progress map[string]time.Time // last change, by name
	work     map[string]workRecord
	breaks   map[string]records.Break
	// spent are when a hold was first meant to be broken, by its epoch and token.
	spent   map[string]time.Time
	desired map[string]map[string]records.Desired // by config and node
	actual  map[string]map[string]records.Actual
	given   map[string]time.Time // when a node's order was written
	// up are the nodes whose agent's check does not fail, and freed those, by config,
	// that gave their place up: it failed at some moment since their order.
	up       map[string]bool
	freed    map[string]bool
	silences map[string]time.Time
	suspends bool
	// approvals are those that stand, and nodes those that have had an order of a
	// rollout, by its name.
	approvals map[string]records.Request
	nodes     map[string]map[string]bool

	mu sync.Mutex
	// gates are the rollouts whose gate has passed.
	gates map[string]bool
	// forgiven are the rollouts that an operator resumes: it forgives their failures.
	forgiven map[string]bool
	// accepted is the highest order that each node had on disk, by node and config.
	accepted map[string]orchestrator.Order
}

func newChecker(w *World) *checker {
	c := &checker{w: w}
	c.reset()
	c.accepted, c.gates, c.forgiven = map[string]orchestrator.Order{}, map[string]bool{}, map[string]bool{}
	return c
}

func (c *checker) reset() {
	c.locks, c.progress = map[string]*lockModel{}, map[string]time.Time{}
	c.up, c.freed = map[string]bool{}, map[string]bool{}
	c.approvals, c.nodes = map[string]records.Request{}, map[string]map[string]bool{}
	c.work, c.breaks, c.spent = map[string]workRecord{}, map[string]records.Break{}, map[string]time.Time{}
	c.desired, c.actual = map[string]map[string]records.Desired{}, map[string]map[string]records.Actual{}
	c.given, c.silences, c.suspends = map[string]time.Time{}, map[string]time.Time{}, false
}

// sent looks at a request as a process sends it.
func (c *checker) sent(x *exchange) {
	if x.ops == nil || slices.ContainsFunc(x.ops, c.toBreak) {
		return
	}
	inc := x.inc
	inc.mu.Lock()
	defer inc.mu.Unlock()
	for _, op := range x.ops {
		if op.KV == nil || op.KV.Verb != "check-session" {
			continue
		}
		l := inc.leases[op.KV.Session]
		if l == nil {
			continue
		}
		end := l.renewed.Add(l.ttl)
		if at, ok := inc.checks[l.check]; ok && at.Add(locksmith.CheckTTL).Before(end) {
			end = at.Add(locksmith.CheckTTL)
		}
		if late := x.sentAt.Sub(end); late > 0 {
			c.w.fail(InvLease, "%s sent a write of its hold of %s %s after its lease was over: %.600s", inc, op.KV.Key, late, readable(x.body))
		}
	}
}

// toBreak tells an operation of who breaks, or asks to let go first: a process may do so
// to what it held itself, and lost, once a restore has brought it back.
func (c *checker) toBreak(op txnOp) bool {
	if op.KV == nil || op.KV.Verb != "set" && op.KV.Verb != "cas" {
		return false
	}
	return strings.HasPrefix(op.KV.Key, c.w.keys.BreaksRoot()) || strings.HasPrefix(op.KV.Key, c.w.keys.Requests())
}

// answered looks at an answer as a process gets it.
func (c *checker) answered(x *exchange, resp *http.Response) {
	path := x.req.URL.Path
	if resp.StatusCode != http.StatusOK || x.req.Method != http.MethodPut {
		return
	}
	inc := x.inc
	inc.mu.Lock()
	defer inc.mu.Unlock()
	switch {
	case path == "/v1/session/create":
		var in struct {
			TTL           string
			ServiceChecks []struct{ ID string }
		}
		var out struct{ ID string }
		b := bodyOf(resp)
		if json.Unmarshal(x.body, &in) != nil || json.Unmarshal(b, &out) != nil {
			return
		}
		l := &lease{renewed: x.sentAt}
		l.ttl, _ = time.ParseDuration(in.TTL)
		if len(in.ServiceChecks) > 0 {
			l.check = in.ServiceChecks[0].ID
		}
		inc.leases[out.ID] = l
	case strings.HasPrefix(path, "/v1/session/renew/"):
		if l := inc.leases[strings.TrimPrefix(path, "/v1/session/renew/")]; l != nil && x.sentAt.After(l.renewed) {
			l.renewed = x.sentAt
		}
	case path == "/v1/agent/service/register":
		var in struct{ ID string }
		if json.Unmarshal(x.body, &in) == nil {
			inc.checks[in.ID] = x.sentAt
		}
	case strings.HasPrefix(path, "/v1/agent/check/update/"):
		id, _ := url.PathUnescape(strings.TrimPrefix(path, "/v1/agent/check/update/"))
		if at, ok := inc.checks[id]; ok && x.sentAt.After(at) {
			inc.checks[id] = x.sentAt
		}
	}
}

// bodyOf reads an answer and leaves it to be read again.
func bodyOf(resp *http.Response) []byte {
	var b bytes.Buffer
	_, _ = b.ReadFrom(resp.Body)
	resp.Body = nopCloser{bytes.NewReader(b.Bytes())}
	return b.Bytes()
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

// committed looks at one write. x is the request that was served; nil: it was a
// timer of the servers, unless the world meddled.
func (c *checker) committed(s state.Commit, x *exchange, meddled bool) {
	now := time.Now()
	if x == nil && !meddled {
		c.timedOut(s, now)
	}
	if x != nil && x.ops != nil {
		c.guarded(s, x)
	}
	// Breaks first: a hold ends in the same write as its record is completed.
	before := map[string]records.Break{}
	for _, k := range s.KV {
		if strings.HasPrefix(k.Key(), c.w.keys.BreaksRoot()) {
			c.brk(k, before, x)
		}
	}
	for _, k := range s.KV {
		if strings.HasPrefix(k.Key(), c.w.keys.Locks()) {
			c.lock(k, s, before, now, x)
		}
	}
	for _, k := range s.Checks {
		c.health(k)
	}
	for _, k := range s.KV {
		c.key(k, now, x)
	}
}

// health looks at the check of an agent: a node whose agent is down is unreachable,
// and gives its place to another one.
func (c *checker) health(k state.CheckChange) {
	chk := k.After
	if chk == nil {
		chk = k.Before
	}
	node, ok := strings.CutPrefix(chk.CheckID, agent.ServiceName+"-")
	if !ok {
		return
	}
	c.up[node] = k.After != nil && chk.Status != "critical"
	for config := range c.desired {
		if !c.up[node] {
			c.freed[config+"/"+node] = true
		}
	}
}

func (c *checker) key(k state.KVChange, now time.Time, x *exchange) {
	key, p := k.Key(), c.w.keys
	name := keys.Unescape(keys.LastSegment(key))
	switch {
	case strings.HasPrefix(key, "work/"):
		c.worked(name, k, now)
	case strings.HasPrefix(key, string(p)+"progress/"):
		c.progress[name] = now
		var rec records.Progress
		if k.After != nil && json.Unmarshal(k.After.Value, &rec) == nil {
			c.underLock(name, rec.Session, rec.Token, key)
		}
	case strings.HasPrefix(key, p.DesiredRoot()):
		c.ordered(k, now)
	case strings.HasPrefix(key, p.ActualRoot()):
		var a records.Actual
		if k.After != nil && json.Unmarshal(k.After.Value, &a) == nil {
			if was, ok := c.actual[a.Config][a.Node]; ok && a.Order.Less(was.Order) {
				c.w.fail(InvAnswer, "node %s has answered order %s of %s, and %s stands now", a.Node, was.Order, a.Config, a.Order)
			}
			sub(c.actual, a.Config)[a.Node] = a
			c.together(a)
		}
	case strings.HasPrefix(key, p.Rollouts()) && !strings.Contains(strings.TrimPrefix(key, p.Rollouts()), "/"):
		c.header(k)
	case c.byHand(key, name, k.After):
	case key == p.Epoch() && k.After != nil:
		c.raised(k)
	}
}

func sub[T any](m map[string]map[string]T, key string) map[string]T {
	if m[key] == nil {
		m[key] = map[string]T{}
	}
	return m[key]
}

// guarded: every transaction that gives an order, or says what a hold has done,
// begins with the guards of its lock.
func (c *checker) guarded(s state.Commit, x *exchange) {
	var session, index, writes bool
	var key string
	for _, op := range x.ops {
		if op.KV == nil {
			continue
		}
		switch own := strings.HasPrefix(op.KV.Key, c.w.keys.Locks()); {
		case own && op.KV.Verb == "check-session":
			session = true
		case own && op.KV.Verb == "check-index":
			index = true
		case op.KV.Verb == "set" && (strings.HasPrefix(op.KV.Key, "work/") || strings.HasPrefix(op.KV.Key, c.w.keys.DesiredRoot()) || strings.HasPrefix(op.KV.Key, string(c.w.keys)+"progress/")):
			writes, key = true, op.KV.Key
		case op.KV.Verb == "unlock":
			writes, key = true, op.KV.Key
		}
	}
	if writes && !session {
		c.w.fail(InvGuards, "a write of %s to %s (index %d) does not check the session of its lock", x.inc, key, s.Index)
	}
	if writes && !index {
		c.w.fail(InvGuards, "a write of %s to %s (index %d) does not check the index of its lock", x.inc, key, s.Index)
	}
}

// timedOut: when Consul ends a session for want of a sign of life, its process has
// noticed before, unless it got no steps.
func (c *checker) timedOut(s state.Commit, now time.Time) {
	for _, sess := range s.Ended {
		for _, a := range c.w.actors {
			inc := a.cur
			if inc == nil || a.until.After(now.Add(-3*time.Second)) {
				continue
			}
			inc.mu.Lock()
			h := inc.holds[sess.ID]
			inc.mu.Unlock()
			if h != nil && h.Context().Err() == nil {
				c.w.fail(InvLease, "%s still works under session %s, which Consul has just ended for want of a sign of life", inc, sess.ID)
			}
		}
	}
}

// lock looks at a change of a lock's key.
func (c *checker) lock(k state.KVChange, s state.Commit, broken map[string]records.Break, now time.Time, x *exchange) {
	name, own := c.w.keys.LockName(k.Key())
	if !own {
		return
	}
	m := c.locks[name]
	if m == nil {
		m = &lockModel{}
		c.locks[name] = m
	}
	var session string
	var index uint64
	var value []byte
	if k.After != nil {
		session, index, value = k.After.Session, k.After.ModifyIndex, k.After.Value
	}
	if m.session != "" && session != m.session {
		c.holdEnded(name, m, k, s, broken, now, x)
	}
	if session != "" && session != m.session {
		m.since, m.used = now, false
		if provedDead(m.value, value) {
			m.owed = 0
		}
	}
	m.session, m.index, m.value = session, index, value
}

// holdEnded looks at how a hold came to its end, and what it leaves.
func (c *checker) holdEnded(name string, m *lockModel, k state.KVChange, s state.Commit, broken map[string]records.Break, now time.Time, x *exchange) {
	var old, rec records.Holder
	_ = json.Unmarshal(m.value, &old)
	if k.After != nil {
		_ = json.Unmarshal(k.After.Value, &rec)
	}
	served := m.used || now.Sub(m.ended) >= m.owed
	released := k.After != nil && k.After.Session == "" && rec.Released && rec.Broken == "" && rec.Nonce == old.Nonce
	if served || m.owed == 0 {
		m.owed = 0
	}
	if released && m.owed == 0 {
		return
	}
	quiesce := time.Duration(old.Quiesce * float64(time.Second))
	if !released {
		m.owed, m.ended = max(m.owed, quiesce), now
	}
	ended := false
	for _, sess := range s.Ended {
		ended = ended || sess.ID == m.session
	}
	if released || ended || k.After == nil || x == nil || x.inc.actor.name == "op" && k.After != nil && rec.Broken == "" {
		return
	}
	// It was broken.
	b, ok := broken[breakKey(name, m.index)]
	if !ok {
		c.w.fail(InvIntent, "%s ended the hold of %s by session %s (token %d) without a break record", x.inc, name, m.session, m.index)
		return
	}
	if b.Outcome != records.OutcomeIntent {
		c.w.fail(InvIntent, "%s ended the hold of %s (token %d), and no intent stood before it", x.inc, name, m.index)
	}
	if b.Rule == locksmith.RuleRecover {
		return
	}
	if age := now.Sub(c.progress[name]); b.Rule == ruleStalled && age < stalledAfter {
		c.w.fail(InvEvidence, "%s broke %s (token %d) for a progress that stands still, %s after it was written", x.inc, name, m.index, age)
	}
	if age := now.Sub(c.w.start); c.w.plan.Freeze && age < knownAfter {
		c.w.fail(InvEvidence, "%s broke %s (token %d) after %s, when nobody can know whether breaking is frozen", x.inc, name, m.index, age)
	}
	if until := c.silences[name]; now.Before(until) {
		c.w.fail(InvBrakes, "%s broke %s (token %d), which is silenced until %s", x.inc, name, m.index, until.Sub(c.w.start))
	}
	// Whoever breaks reads the end of an approval off its clock, before it sends the break.
	if a, ok := c.approvals[name]; c.w.plan.Manual && (!ok || a.Session != m.session || a.Token != m.index || !x.sentAt.Before(a.Expires)) {
		c.w.fail(InvApproval, "%s broke %s (token %d), and what lets it is %+v", x.inc, name, m.index, a)
	}
	if c.suspends {
		c.w.fail(InvBrakes, "%s broke %s (token %d) while all breaking is suspended", x.inc, name, m.index)
	}
}

// provedDead: whoever takes a lock on the host of its last holder, after a boot that
// is a later one, knows that nothing of that hold runs any more.
func provedDead(old, value []byte) bool {
	var a, b records.Holder
	return json.Unmarshal(old, &a) == nil && json.Unmarshal(value, &b) == nil && a.Host == b.Host && a.BootID != b.BootID && a.Host != ""
}

func breakKey(name string, token uint64) string { return name + " " + itoa(token) }

// brk looks at a break record. before gets what stood before, by lock and token.
func (c *checker) brk(k state.KVChange, before map[string]records.Break, x *exchange) {
	var old, rec records.Break
	if k.Before != nil {
		_ = json.Unmarshal(k.Before.Value, &old)
	}
	if k.After == nil {
		return // pruned
	}
	if json.Unmarshal(k.After.Value, &rec) != nil {
		return
	}
	id := breakKey(rec.Lock, rec.Token)
	if k.Before != nil && old.Outcome != records.OutcomeIntent && old.Outcome != rec.Outcome {
		c.w.fail(InvOutcome, "the break of %s (token %d, attempt %d) was %s and is %s now", rec.Lock, rec.Token, rec.Attempt, old.Outcome, rec.Outcome)
	}
	if k.Before != nil {
		before[id] = old
	} else if rec.Rule == locksmith.RuleRecover {
		// A recovery is no judgement: its record is its own intent.
		rec.Outcome = records.OutcomeIntent
		before[id] = rec
		return
	}
	// A hold counts once, however many locks it is of.
	hold := itoa(rec.Epoch) + "/" + itoa(rec.Token)
	if _, paid := c.spent[hold]; paid || rec.Policy != policyName || k.Before != nil {
		return
	}
	// A break counts from when it was asked for: the request may be long under way.
	c.spent[hold] = x.sentAt
	for _, from := range c.spent {
		n := 0
		for _, at := range c.spent {
			if d := at.Sub(from); d >= 0 && d < budgetPer {
				n++
			}
		}
		if n > budgetMax {
			c.w.fail(InvBudget, "%d breaks of policy %s within %s, the last by %v of %s: %d are allowed", n, policyName, budgetPer, x.inc, rec.Lock, budgetMax)
			return
		}
	}
}

// underLock: whatever is accepted under a lock bears the token that it has then.
func (c *checker) underLock(name, session string, token uint64, what string) {
	m := c.locks[name]
	switch {
	case m == nil || m.session == "":
		c.w.fail(InvHolder, "%s was written under token %d of lock %s, which nobody holds", what, token, name)
	case m.index != token || session != "" && m.session != session:
		c.w.fail(InvHolder, "%s was written under token %d of session %q of lock %s, whose index is %d, held by %s", what, token, session, name, m.index, m.session)
	}
}

// worked looks at a write of a holder.
func (c *checker) worked(name string, k state.KVChange, now time.Time) {
	var rec workRecord
	if k.After == nil || json.Unmarshal(k.After.Value, &rec) != nil {
		return
	}
	c.underLock(name, "", rec.Token, k.Key())
	if last := c.work[name]; rec.order().Less(last.order()) {
		c.w.fail(InvOrder, "%s was %s and is %s now", k.Key(), last.order(), rec.order())
	}
	c.work[name] = rec
	c.use(name, now)
}

// use notes that something is done under a lock: the pause that is owed has passed.
func (c *checker) use(name string, now time.Time) {
	m := c.locks[name]
	if m == nil {
		return
	}
	if free := now.Sub(m.ended); !m.used && free < m.owed {
		c.w.fail(InvQuiesce, "the first work under lock %s (token %d) came %s after the hold before it ended: %s were owed", name, m.index, free, m.owed)
	}
	m.used = true
}

// stepped looks at a node's disk between two writes.
func (c *checker) stepped(inc *incarnation, what string) {
	if strings.HasPrefix(what, "after ") {
		c.disk(inc.actor)
	}
}

// disk reads the mark of a node, and which order the file that stands there is of.
func (c *checker) disk(a *actor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	configs := c.w.plan.configs()
	var states []nodeState
	for _, config := range configs {
		st, ok := stateOf(a, config)
		mark := st.Mark
		states = append(states, st)
		switch last := c.accepted[a.disk.node+"/"+config]; {
		case !ok && last.IsZero():
		case !ok:
			c.w.fail(InvFence, "node %s had accepted order %s for %s, and its mark is gone", a.name, last, config)
		case mark.Less(last):
			c.w.fail(InvFence, "node %s had accepted order %s for %s, and its mark is %s now", a.name, last, config, mark)
		default:
			c.accepted[a.disk.node+"/"+config] = mark
		}
	}
	// Both configs of a rollout have the same content.
	if len(states) < 2 || states[0] != states[1] || states[0].Phase != "done" {
		return
	}
	one, other := a.file(configs[0]), a.file(configs[1])
	if one != other {
		c.w.fail(InvTogether, "node %s is done with order %s, and has %q for %s and %q for %s", a.name, states[0].Mark, one, configs[0], other, configs[1])
	}
}

// nodeState is what is read of an agent's journal.
type nodeState struct {
	Mark  orchestrator.Order `json:"mark"`
	Phase string             `json:"phase"`
}

// file is what stands for a config; "": nothing.
func (a *actor) file(config string) string {
	b, err := os.ReadFile(filepath.Join(a.disk.root, "root", destinationOf(config)))
	if err != nil {
		return ""
	}
	return string(b)
}

func stateOf(a *actor, config string) (st nodeState, ok bool) {
	b, err := os.ReadFile(filepath.Join(a.disk.root, "state", "configs", config, "state.json"))
	if err != nil {
		return st, false
	}
	body, _, _ := bytes.Cut(b, []byte("\n#crc32c "))
	if json.Unmarshal(body, &st) != nil {
		return nodeState{}, false
	}
	return st, true
}

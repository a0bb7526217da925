package locksmith

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/policies"
)

// How a break can come to nothing.
var (
	// errLetGo: the hold that was to be broken was over before.
	errLetGo = errors.New("the hold is over already")
	// errChanged: what the verdict rested on changed; judge anew.
	errChanged = errors.New("what the verdict rested on changed")
	// errStep: a step failed, and what comes after it was not done.
	errStep = errors.New("a step of the policy failed")
)

// NotPermittedError says that a HOT lock may not be broken now.
type NotPermittedError struct {
	Lock string
	*Permit
}

func (e *NotPermittedError) Error() string {
	return fmt.Sprintf("lock %s is HOT and is not broken: %s", e.Lock, e.Why)
}

// Kind is Why without what changes from one moment to the next.
func (e *NotPermittedError) Kind() string {
	if e.brake != "" {
		return e.brake
	}
	return e.Why
}

// breaking is one break under way. It ends the holds of all its targets in one
// transaction, or none.
type breaking struct {
	c       *Client
	targets []*target
	notify  func(Notice)
	force   bool
	// under is a hold that the break is made under, or nil.
	under *Hold
	// began is whether the intent stands.
	began bool
	// span is that of the break; nil: it is not traced.
	span *tracing.Span
}

// target is one held lock that is to be broken.
type target struct {
	name string
	obs  *Observer
	// v is the last verdict. Its hold is always the one that the break is
	// about.
	v *Verdict
	// seen is when the last look began.
	seen instant
	// rule made it HOT, by its key.
	rule   string
	permit *Permit

	rec   records.Break
	key   string
	index uint64 // of the break record
	// letGo: its hold ended before the break ended it. clean is that its record is
	// marked released, and step the last one done by then that can end a hold.
	letGo, clean bool
	step         string
	// leave says why the old session is left alone; empty: it is destroyed.
	leave string
}

// look observes the lock again, and fails if it is not the same hold, HOT for
// the same reason or for one that is proved.
func (t *target) look(ctx context.Context) error {
	seen := t.obs.c.now()
	v, err := t.obs.observe(ctx)
	if err != nil {
		return err
	}
	if v.Snapshot.Hold() != t.v.Snapshot.Hold() {
		h := v.Snapshot.Holder
		t.letGo, t.clean = true, !v.Snapshot.Held() && h != nil && h.Released && h.Broken == "" && h.Session == t.v.Snapshot.SessionID()
		return errLetGo
	}
	if !stillHot(v, t.rule) {
		return fmt.Errorf("%w: lock %s is %s now", errChanged, t.name, v.State)
	}
	t.v, t.seen = v, seen
	return nil
}

// lookAnew looks at all targets for the last time before something is done to them.
func lookAnew(ctx context.Context, targets []*target) error {
	askAnew(ctx, targets)
	for _, t := range targets {
		if err := t.look(ctx); err != nil {
			return err
		}
	}
	return nil
}

// askAnew asks the plugins of all targets, before any is looked at: they take their time.
func askAnew(ctx context.Context, targets []*target) {
	for _, t := range targets {
		t.obs.askAnew(ctx, t.v.Snapshot)
	}
}

// sightFor is how old the last look at a lock may be when something is sent that it
// allows. No transaction sees that a node came back since, a check, an allocation or a
// process: who was stopped in between, or waited for Consul, looks again.
const sightFor = 15 * time.Second

func (t *target) recent() error {
	if age := t.obs.c.since(t.seen); age > sightFor {
		return fmt.Errorf("%w, or may have: the last look at lock %s is %s old, and is repeated", errChanged, t.name, round(age))
	}
	return nil
}

// ended is the outcome of a break whose target's hold is over, and what did it.
func (t *target) ended() (outcome, detail string) {
	switch {
	case t.clean:
		return records.OutcomeReleased, ""
	case t.step == "":
		return records.OutcomeReleased, "its hold is over, though not by a release: Consul ended the session, or somebody else broke it"
	}
	return records.OutcomeEnded, "its hold ended by the step " + t.step
}

func stillHot(v *Verdict, rule string) bool {
	if v.State != Hot {
		return false
	}
	if v.Judgement.Rule.Key() == rule || v.Proof() {
		return true
	}
	// Another rule that stands before it in the file may hold too by now.
	for _, p := range v.Judgement.Pending {
		if p.Rule.Key() == rule {
			return false
		}
	}
	return slices.ContainsFunc(v.Judgement.Results, func(r policies.RuleResult) bool {
		return r.Rule.Key() == rule && r.Value == policies.True
	})
}

// permitted asks the permit for every target; a *NotPermittedError is about the
// first that has none.
func (c *Client) permitted(ctx context.Context, targets []*target) error {
	for _, t := range targets {
		p, err := c.Permit(ctx, t.v)
		if err != nil {
			return err
		}
		if !p.OK {
			return &NotPermittedError{Lock: t.name, Permit: p}
		}
		t.permit = p
	}
	return nil
}

// confirm watches until the policies' observations are all HOT by the same rule
// on the same hold. A rule that rests on proof needs none.
func (c *Client) confirm(ctx context.Context, targets []*target) error {
	rounds, every := 1, time.Duration(0)
	for _, t := range targets {
		t.rule = t.v.Judgement.Rule.Key()
		if conf := t.v.Policy.Break.Confirm; !t.v.Proof() {
			rounds, every = max(rounds, conf.Observations), max(every, conf.Every)
		}
	}
	for range rounds - 1 {
		if err := sleep(ctx, every); err != nil {
			return err
		}
		askAnew(ctx, targets)
		for _, t := range targets {
			v, err := t.obs.observe(ctx)
			switch {
			case err != nil:
				return err
			case v.Snapshot.Hold() != t.v.Snapshot.Hold():
				return errLetGo
			case v.State != Hot || v.Judgement.Rule.Key() != t.rule:
				return fmt.Errorf("%w: lock %s is %s now", errChanged, t.name, v.State)
			}
			t.v = v
		}
	}
	return nil
}

// startBreak confirms the verdicts, asks for the permits, and commits the
// intent: nothing is destroyed before it stands.
func (c *Client) startBreak(ctx context.Context, targets []*target, notify func(Notice), force bool, under *Hold) (*breaking, error) {
	c.consul.AskAccessor()
	if err := c.confirm(ctx, targets); err != nil {
		return nil, err
	}
	b := &breaking{c: c, targets: targets, notify: notify, force: force, under: under}
	epoch, err := c.epoch(ctx)
	if err != nil {
		return nil, err
	}
	attempts := make([]int, len(targets))
	for i, t := range targets {
		if attempts[i], err = b.attempt(ctx, t, epoch); err != nil {
			return nil, err
		}
	}
	if err := c.permitted(ctx, targets); err != nil {
		return nil, err
	}
	who := c.whoWithin(ctx, accessorGrace)
	for i, t := range targets {
		t.intent(ctx, c, who, epoch, attempts[i])
	}
	if err := b.tracedIntent(ctx, who); err != nil {
		return nil, err
	}
	b.began = true
	for _, t := range targets {
		c.onBreak(t.key, &t.rec)
	}
	notify(Notice{Kind: NoticeBreaking, Lock: b.names(), Text: "by rule " + targets[0].rec.Rule})
	return b, nil
}

func (b *breaking) names() string {
	var out []string
	for _, t := range b.targets {
		out = append(out, t.name)
	}
	return strings.Join(out, ", ")
}

func (b *breaking) target(name string) *target {
	for _, t := range b.targets {
		if t.name == name {
			return t
		}
	}
	return nil
}

func (c *Client) epoch(ctx context.Context) (uint64, error) {
	p, err := c.consul.Get(ctx, c.keys.Epoch())
	if err != nil || p == nil {
		return 0, err
	}
	return parseEpoch(p.Value, c.keys.Epoch())
}

// intent makes the record that is written before the first step.
func (t *target) intent(ctx context.Context, c *Client, who records.Who, epoch uint64, attempt int) {
	s, res := t.v.Snapshot, t.v.Judgement.Result
	t.key = c.keys.Break(s.Name, epoch, s.Index(), attempt)
	t.rec = records.Break{
		Version: records.Version, Nonce: NewNonce(ctx), Lock: s.Name, Key: s.Key, Session: s.SessionID(), Epoch: epoch, Token: s.Index(), Attempt: attempt,
		Policy: t.v.Policy.Name, PolicyHash: c.set.Hash, Rule: t.v.Judgement.Rule.Name, Reason: res.Reason, Proof: t.v.Proof(),
		Evidence: policies.EvidenceOf(t.v.Facts, res.Used), By: c.by, Who: who, StartedAt: time.Now().UTC(),
		Outcome: records.OutcomeIntent, Holder: s.Holder,
	}
	if s.Holder == nil {
		t.rec.RawHolder = printable(string(s.Pair.Value))
	}
}

// intend commits the intents of all targets. It fails if a lock, or a key that
// a verdict or a permit rested on, changed since.
func (b *breaking) intend(ctx context.Context, who records.Who) error {
	var guards, ops []consulkv.Op
	for _, t := range b.targets {
		guards = append(guards, b.guards(t)...)
		guards = append(guards, t.permit.guards...)
	}
	budgets, err := b.c.charge(b.targets, who, time.Now())
	if err != nil {
		return err
	}
	above, err := b.under.above()
	if err != nil {
		return err
	}
	ops = append(append(above, once(guards)...), budgets...)
	for _, t := range b.targets {
		ops = append(ops, consulkv.CAS(t.key, records.Encode(&t.rec), 0))
	}
	out, err := b.c.consul.Txn(ctx, ops...)
	switch {
	case err == nil:
		for _, t := range b.targets {
			t.index = out.Find(t.key).ModifyIndex
		}
		return nil
	case consulkv.Ambiguous(err):
		return b.resolveIntent(ctx, err)
	}
	if _, ok := isRefused(err); ok {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return b.c.unapplied(err)
}

// unapplied says of a refusal that it is for want of applied policies, if it is. To
// check that a key is not there, Consul asks for write on it, and who may write
// policies/active decides what is broken: a lesser token breaks nothing before.
func (c *Client) unapplied(err error) error {
	if consulkv.KindOf(err) != consulkv.Denied || !strings.Contains(err.Error(), "check-not-exists "+c.keys.PolicyActive()+":") {
		return err
	}
	return &unappliedError{err: err, way: c.flags.Judging("policy apply"), key: c.keys.PolicyActive()}
}

// unappliedError names one way out. That of the refusal, the right that the token
// lacks, is none: it is the right to replace the policies.
type unappliedError struct {
	err      error
	way, key string
}

func (e *unappliedError) Error() string {
	return fmt.Sprintf("apply policies first: `%s`, with a token of the role admin: this token breaks no lock while none are applied, as Consul does not let it check that there is no %s",
		e.way, e.key)
}

func (e *unappliedError) Unwrap() error { return e.err }

// powerless tells whether it is known that this client's token breaks nothing, as no
// policies are applied: see unapplied. It waits no longer than patience for an answer.
func (c *Client) powerless(ctx context.Context, p *Permit, patience time.Duration) bool {
	if !p.unapplied || !c.consul.HasToken() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	may, known := c.consul.May(ctx, "key", "write", c.keys.PolicyActive())
	return known && !may
}

func (b *breaking) resolveIntent(ctx context.Context, cause error) error {
	for _, t := range b.targets {
		p, err := b.c.consul.Get(ctx, t.key)
		if err != nil {
			return fmt.Errorf("%w; and then: %w", cause, err)
		}
		var rec records.Break
		if p == nil || records.Decode(t.key, p.Value, &rec) != nil || rec.Nonce != t.rec.Nonce {
			// It may still be on its way, but alone it destroys nothing.
			return fmt.Errorf("%w: %w", errChanged, cause)
		}
		t.index = p.ModifyIndex
	}
	return nil
}

// guards fail if the lock, or a KV key that the verdict rested on, changed.
func (b *breaking) guards(t *target) []consulkv.Op {
	s := t.v.Snapshot
	ops := []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}
	for _, k := range b.c.rested(t.v) {
		ops = append(ops, consulkv.CheckIndex(k, s.Deps[k]))
	}
	return ops
}

// rested are the KV keys beside the lock's that a verdict rested on: always
// the progress, since a holder that came back to life writes it first, and the
// fence, since the transaction that ends the hold rewrites it.
func (c *Client) rested(v *Verdict) []string {
	s := v.Snapshot
	list := []string{c.keys.Progress(s.Name), c.keys.Fence(s.Name)}
	if s.Holder != nil && s.Holder.RolloutID != "" && v.reads("rollout.") {
		list = append(list, c.keys.Rollout(s.Holder.RolloutID))
	}
	if s.SeenKey != "" {
		// Of a holder elsewhere the verdict may rest on it, and what is owed does.
		list = append(list, s.SeenKey)
	}
	return list
}

// intentPatience is how long a breaker leaves another one's unfinished break
// alone beyond the waits of its steps, measured on its own clock.
const intentPatience = 10 * time.Second

// attempt numbers the break of a target. An unfinished one of another breaker is
// left alone for as long as its steps may take: two breakers at once are safe,
// but they would ask, stop and destroy twice.
func (b *breaking) attempt(ctx context.Context, t *target, epoch uint64) (int, error) {
	c, s := b.c, t.v.Snapshot
	patience := intentPatience
	for _, st := range t.v.Policy.Break.Steps {
		patience += max(st.Wait, 0)
	}
	for deadline := time.Now().Add(patience); ; {
		list, err := c.consul.List(ctx, c.keys.Breaks(s.Name))
		if err != nil {
			return 0, err
		}
		next, open := 1, map[string]*api.KVPair(nil)
		for _, p := range list {
			e, token, n, ok := keys.ParseBreak(p.Key)
			if !ok || e != epoch || token != s.Index() || n < next {
				continue
			}
			next, open = n+1, nil
			var rec records.Break
			if records.Decode(p.Key, p.Value, &rec) == nil && rec.Outcome == records.OutcomeIntent {
				open = map[string]*api.KVPair{p.Key: p, s.Key: s.Pair}
			}
		}
		left := time.Until(deadline)
		if open == nil || left <= 0 {
			return next, nil
		}
		if err := c.await(ctx, left, open); err != nil {
			return 0, err
		}
		if err := t.look(ctx); err != nil {
			return 0, err
		}
	}
}

// await waits until one of the keys is not as it was read, at most d.
func (c *Client) await(ctx context.Context, d time.Duration, read map[string]*api.KVPair) error {
	if d <= 0 {
		return nil
	}
	wctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var wg sync.WaitGroup
	for key, was := range read {
		wg.Go(func() {
			defer cancel()
			w := c.keyWatcher(key, 0)
			for {
				p, err := w.Next(wctx)
				if wctx.Err() != nil || err == nil && !same(p, was) {
					return
				}
				if err != nil && sleepAs(wctx, "await "+key, time.Second) != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// same reports whether a key is as it was. A Consul that was restored gives indexes
// out again, so the index alone does not tell.
func same(p, was *api.KVPair) bool {
	if p == nil || was == nil {
		return p == was
	}
	return p.ModifyIndex == was.ModifyIndex && p.Session == was.Session && bytes.Equal(p.Value, was.Value)
}

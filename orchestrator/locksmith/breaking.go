package locksmith

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// How a break can come to nothing.
var (
	// errLetGo: the lock was let go before it was taken.
	errLetGo = errors.New("the lock was let go")
	// errChanged: what the verdict rested on changed; judge anew.
	errChanged = errors.New("what the verdict rested on changed")
)

// NotPermittedError says that a HOT lock may not be broken now.
type NotPermittedError struct {
	Lock string
	*Permit
}

func (e *NotPermittedError) Error() string {
	return fmt.Sprintf("lock %s is HOT and is not broken: %s", e.Lock, e.Why)
}

// ending is how a transaction ends an old hold.
type ending struct {
	// guards fail if the lock, or a key that the verdict rested on, changed.
	guards []consulkv.Op
	// end unlocks; it stands before the new lock.
	end []consulkv.Op
	// outcome completes the break record.
	outcome []consulkv.Op
	// fence is what the old hold leaves; nil: nothing.
	fence *records.Fence
}

// breaking is one break under way.
type breaking struct {
	c      *Client
	obs    *Observer
	v      *Verdict
	notify func(Notice)
	force  bool

	rec    records.Break
	key    string
	index  uint64 // of the break record
	permit *Permit
}

// confirm watches until the policy's observations are all HOT by the same rule
// on the same hold. A rule that rests on proof needs none.
func (c *Client) confirm(ctx context.Context, obs *Observer, v *Verdict) (*Verdict, error) {
	if v.Proof() {
		return v, nil
	}
	want, every := v.Policy.Break.Confirm.Observations, v.Policy.Break.Confirm.Every
	rule, hold := v.Judgement.Rule.Key(), v.Snapshot.Hold()
	for i := 1; i < want; i++ {
		if err := sleep(ctx, every); err != nil {
			return nil, err
		}
		next, err := obs.Observe(ctx)
		if err != nil {
			return nil, err
		}
		if next.State != Hot || next.Judgement.Rule.Key() != rule || next.Snapshot.Hold() != hold {
			return nil, errChanged
		}
		v = next
	}
	return v, nil
}

// startBreak confirms the verdict, asks for the permit, and commits the
// intent: nothing is destroyed before it stands.
func (c *Client) startBreak(ctx context.Context, obs *Observer, v *Verdict, notify func(Notice), force bool) (*breaking, error) {
	first, err := c.Permit(ctx, v)
	if err != nil {
		return nil, err
	}
	if !first.OK {
		return nil, &NotPermittedError{Lock: v.Snapshot.Name, Permit: first}
	}
	if v, err = c.confirm(ctx, obs, v); err != nil {
		return nil, err
	}
	b := &breaking{c: c, obs: obs, v: v, notify: notify, force: force}
	if b.permit, err = c.Permit(ctx, v); err != nil {
		return nil, err
	}
	if !b.permit.OK {
		return nil, &NotPermittedError{Lock: v.Snapshot.Name, Permit: b.permit}
	}
	return b, b.intend(ctx)
}

// intentPatience is how long a breaker leaves another one's unfinished break
// alone beyond the waits of its steps, measured on its own clock.
const intentPatience = 10 * time.Second

func (b *breaking) intend(ctx context.Context) error {
	s, c := b.v.Snapshot, b.c
	epoch, err := c.consul.Get(ctx, c.keys.Epoch())
	if err != nil {
		return err
	}
	var raw []byte
	if epoch != nil {
		raw = epoch.Value
	}
	ep, err := parseEpoch(raw, c.keys.Epoch())
	if err != nil {
		return err
	}
	attempt, err := b.nextAttempt(ctx, ep)
	if err != nil {
		return err
	}
	b.key = c.keys.Break(s.Name, ep, s.Index(), attempt)
	res := b.v.Judgement.Result
	b.rec = records.Break{
		Version: records.Version, Nonce: NewNonce(), Lock: s.Name, Key: s.Key, Session: s.SessionID(), Epoch: ep, Token: s.Index(), Attempt: attempt,
		Policy: b.v.Policy.Name, PolicyHash: c.set.Hash, Rule: b.v.Judgement.Rule.Name, Reason: res.Reason, Proof: b.v.Proof(),
		Evidence: policies.EvidenceOf(b.v.Facts, res.Used), By: c.by, StartedAt: time.Now().UTC(),
		Outcome: records.OutcomeIntent, Holder: s.Holder,
	}
	if s.Holder == nil {
		b.rec.RawHolder = printable(string(s.Pair.Value))
	}
	ops := append([]consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}, b.permit.guards...)
	if b.permit.budget != nil {
		ops = append(ops, b.permit.budget)
	}
	ops = append(ops, consulkv.CAS(b.key, records.Encode(&b.rec), 0))
	out, err := c.consul.Txn(ctx, ops...)
	switch {
	case err == nil:
		b.index = out.Find(b.key).ModifyIndex
		return nil
	case consulkv.Ambiguous(err):
		return b.resolveIntent(ctx, err)
	default:
		if _, ok := isRefused(err); ok {
			return fmt.Errorf("%w: %w", errChanged, err)
		}
		return err
	}
}

// nextAttempt numbers this break. An unfinished one of another breaker is left
// alone for as long as its steps may take: two breakers at once are safe, but
// they would ask, stop and count twice.
func (b *breaking) nextAttempt(ctx context.Context, epoch uint64) (int, error) {
	s, c := b.v.Snapshot, b.c
	patience := intentPatience
	for _, st := range b.v.Policy.Break.Steps {
		patience += st.Wait
	}
	deadline := time.Now().Add(patience)
	for {
		list, err := c.consul.List(ctx, c.keys.Breaks(s.Name))
		if err != nil {
			return 0, err
		}
		next, open := 1, false
		for _, p := range list {
			e, t, n, ok := keys.ParseBreak(p.Key)
			if !ok || e != epoch || t != s.Index() || n < next {
				continue
			}
			next = n + 1
			var rec records.Break
			open = records.Decode(p.Key, p.Value, &rec) == nil && rec.Outcome == records.OutcomeIntent
		}
		if !open || time.Now().After(deadline) {
			return next, nil
		}
		now, err := b.waitChange(ctx, time.Second)
		if err != nil {
			return 0, err
		}
		if now.Snapshot.Hold() != s.Hold() {
			return 0, errLetGo
		}
	}
}

func (b *breaking) resolveIntent(ctx context.Context, cause error) error {
	p, err := b.c.consul.Get(ctx, b.key)
	if err != nil {
		return fmt.Errorf("%w; and then: %w", cause, err)
	}
	var rec records.Break
	if p != nil && records.Decode(b.key, p.Value, &rec) == nil && rec.Nonce == b.rec.Nonce {
		b.index = p.ModifyIndex
		return nil
	}
	// It may still be on its way, but alone it destroys nothing.
	return fmt.Errorf("%w: %w", errChanged, cause)
}

// steps runs the policy's steps up to take. take is true if the policy comes
// to that; errLetGo if the lock was let go before.
func (b *breaking) steps(ctx context.Context) (take bool, err error) {
	for _, st := range b.v.Policy.Break.Steps {
		run, _, why := st.Applies(b.v.Facts)
		if !run {
			b.log(st.Kind, "skipped", why)
			continue
		}
		if st.Kind == policies.StepTake {
			return true, nil
		}
		b.notify(Notice{Kind: NoticeStep, Lock: b.v.Snapshot.Name, Text: stepText(st)})
		if err := b.run(ctx, st); err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			b.log(st.Kind, "failed", err.Error())
			if st.OnError != policies.OnErrorContinue {
				return false, fmt.Errorf("step %s: %w", st.Kind, err)
			}
		} else {
			b.log(st.Kind, "done", "")
		}
		v, err := b.waitChange(ctx, st.Wait)
		if err != nil {
			return false, err
		}
		if v.Snapshot.Hold() != b.v.Snapshot.Hold() {
			return false, errLetGo
		}
	}
	return false, nil
}

func stepText(st *policies.Step) string {
	text := st.Kind
	if st.Signal != "" {
		text += " " + st.Signal
	}
	if st.Wait > 0 {
		text += ", wait " + st.Wait.String()
	}
	return text
}

func (b *breaking) log(step, result, detail string) {
	b.rec.Steps = append(b.rec.Steps, records.BreakStep{Step: step, At: time.Now().UTC(), Result: result, Detail: printable(detail)})
}

// waitChange waits until the lock's key changes, at most d, and observes it.
func (b *breaking) waitChange(ctx context.Context, d time.Duration) (*Verdict, error) {
	key, index := b.v.Snapshot.Key, b.v.Snapshot.Index()
	if d > 0 {
		wctx, cancel := context.WithTimeout(ctx, d)
		w := consulkv.NewWatcher(b.c.consul, consulkv.WatchOptions{Name: key},
			func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
				return b.c.consul.API().KV().Get(key, q)
			})
		for {
			p, err := w.Next(wctx)
			if err != nil || p == nil || p.ModifyIndex != index {
				break
			}
		}
		cancel()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return b.obs.Observe(ctx)
}

// ending makes what ends the old hold in the final transaction. It judges
// once more: the verdict must still be HOT by the same rule on the same hold.
func (b *breaking) ending(ctx context.Context, taken string, newSession string) (*ending, error) {
	v, err := b.obs.Observe(ctx)
	if err != nil {
		return nil, err
	}
	old := b.v
	if v.Snapshot.Hold() != old.Snapshot.Hold() {
		return nil, errLetGo
	}
	if v.State != Hot || v.Judgement.Rule.Key() != old.Judgement.Rule.Key() {
		return nil, fmt.Errorf("%w: the lock is %s now", errChanged, v.State)
	}
	s := v.Snapshot
	e := &ending{guards: []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index())}}
	for _, k := range b.rested(v) {
		e.guards = append(e.guards, consulkv.CheckIndex(k, s.Deps[k]))
	}
	e.guards = append(e.guards, b.permit.guards[:2]...)
	e.fence = b.leaves(v)
	e.end = []consulkv.Op{consulkv.Unlock(s.Key, b.ended(s), s.SessionID())}

	now := time.Now().UTC()
	rec := b.rec
	rec.Steps = append(slices.Clone(b.rec.Steps), records.BreakStep{Step: policies.StepTake, At: now, Result: "done"})
	rec.Evidence = policies.EvidenceOf(v.Facts, v.Judgement.Result.Used)
	rec.Outcome, rec.EndedAt, rec.NewSession = taken, &now, newSession
	if e.fence != nil {
		rec.Quiesce = e.fence.Owed
	}
	e.outcome = []consulkv.Op{consulkv.CAS(b.key, records.Encode(&rec), b.index)}
	return e, nil
}

// rested are the KV keys beside the lock's that the verdict rested on: always
// the progress, since a holder that came back to life writes it first, and the
// fence, since the transaction rewrites it.
func (b *breaking) rested(v *Verdict) []string {
	s, c := v.Snapshot, b.c
	list := []string{c.keys.Progress(s.Name), c.keys.Fence(s.Name)}
	if s.Holder != nil && s.Holder.RolloutID != "" && slices.ContainsFunc(v.Judgement.Result.Used, func(f string) bool { return strings.HasPrefix(f, "rollout.") }) {
		list = append(list, c.keys.Rollout(s.Holder.RolloutID))
	}
	return slices.DeleteFunc(list, func(k string) bool { _, read := s.Deps[k]; return !read })
}

// leaves is the fence record that the old hold leaves: the quiesce that its
// record asks for, raised by the policy, and none where evidence proves every
// process of it dead; never less than what was still owed before.
func (b *breaking) leaves(v *Verdict) *records.Fence {
	s := v.Snapshot
	owed, why := DefaultQuiesce, "a holder that is not aimlock's was broken"
	if s.Holder != nil {
		owed, why = seconds(s.Holder.Quiesce), "the holder was broken"
	}
	if q := v.Policy.Break.Quiesce; q != nil {
		owed = max(owed, *q)
	}
	if owed > 0 && s.Holder != nil {
		if dead, _ := b.c.reader.ProvedDead(s.Holder, s.Progress); dead {
			owed = 0
		}
	}
	if s.Fence != nil && seconds(s.Fence.Owed) > owed {
		owed, why = seconds(s.Fence.Owed), s.Fence.Why
	}
	if owed <= 0 {
		return nil
	}
	return &records.Fence{Version: records.Version, UnsafeSince: time.Now().UTC(), Owed: owed.Seconds(), Why: why, Session: s.SessionID(), Token: s.Index()}
}

// ended is the lock's value after its hold was broken: a record that owes
// nothing by itself, since the fence record does.
func (b *breaking) ended(s *evidence.Snapshot) []byte {
	now := time.Now().UTC()
	if s.Holder == nil {
		return s.Pair.Value
	}
	h := *s.Holder
	h.Released, h.ReleasedAt, h.Broken = true, &now, b.key
	return records.Encode(&h)
}

// finish writes how a break that did not end the hold itself came out.
func (b *breaking) finish(ctx context.Context, outcome, detail string) {
	fctx, cancel := detached(ctx, 3*time.Second)
	defer cancel()
	now := time.Now().UTC()
	b.rec.Outcome, b.rec.Detail, b.rec.EndedAt = outcome, printable(detail), &now
	if _, err := b.c.consul.CAS(fctx, b.key, records.Encode(&b.rec), b.index); err != nil {
		b.c.log.Warn("the outcome of a break could not be written", "key", b.key, "error", err)
	}
}

// unlock ends the old hold without a successor.
func (b *breaking) unlock(ctx context.Context) (*records.Break, error) {
	e, err := b.ending(ctx, records.OutcomeUnlocked, "")
	if err != nil {
		return nil, err
	}
	ops := append(slices.Clone(e.guards), e.end...)
	if e.fence != nil {
		ops = append(ops, consulkv.Set(b.c.keys.Fence(b.v.Snapshot.Name), records.Encode(e.fence)))
	}
	name := b.v.Snapshot.Name
	ops = append(ops, consulkv.Delete(b.c.keys.Request(name)), consulkv.Delete(b.c.keys.Approval(name)))
	ops = append(ops, e.outcome...)
	_, err = b.c.consul.Txn(ctx, ops...)
	switch {
	case err == nil:
	case consulkv.Ambiguous(err):
		if stands, rerr := b.outcomeStands(ctx); rerr != nil || !stands {
			return nil, errors.Join(err, rerr)
		}
	default:
		if _, ok := isRefused(err); ok {
			return nil, fmt.Errorf("%w: %w", errChanged, err)
		}
		return nil, err
	}
	var rec records.Break
	if err := records.Decode(b.key, e.outcome[0].Value, &rec); err != nil {
		return nil, err
	}
	return &rec, nil
}

func (b *breaking) outcomeStands(ctx context.Context) (bool, error) {
	p, err := b.c.consul.Get(ctx, b.key)
	if err != nil || p == nil {
		return false, err
	}
	var rec records.Break
	if err := records.Decode(b.key, p.Value, &rec); err != nil {
		return false, err
	}
	return rec.Nonce == b.rec.Nonce && rec.Outcome == records.OutcomeUnlocked, nil
}

// dismiss destroys the old session, so that a live old holder learns at once
// that it lost, unless that would free or delete other keys too. It returns
// what it did, for the record.
func (b *breaking) dismiss(ctx context.Context) string {
	s := b.v.Snapshot
	switch {
	case s.Session == nil:
		return "the old session was left alone: " + s.SessionWhy
	case s.Session.Behavior == api.SessionBehaviorDelete && !b.force:
		return "the old session was left alone: its behavior is delete"
	case !b.force:
		if others, err := b.others(ctx); err != nil || others != "" {
			if err != nil {
				others = err.Error()
			}
			return "the old session was left alone: " + others
		}
	}
	if err := b.c.destroySession(ctx, s.SessionID()); err != nil {
		return "the old session could not be destroyed: " + err.Error()
	}
	return "the old session was destroyed"
}

// others names a further key that the old session holds; "" if there is none.
func (b *breaking) others(ctx context.Context) (string, error) {
	s := b.v.Snapshot
	if s.Holder != nil {
		for _, n := range s.Holder.Locks {
			if n == s.Name {
				continue
			}
			p, err := b.c.consul.Get(ctx, b.c.keys.Lock(n))
			if err != nil {
				return "", err
			}
			if p != nil && p.Session == s.SessionID() {
				return "it holds " + p.Key + " too", nil
			}
		}
		return "", nil
	}
	// Only a listing of everything tells what another tool's session holds.
	list, err := b.c.consul.List(ctx, "")
	if err != nil {
		return "", err
	}
	for _, p := range list {
		if p.Session == s.SessionID() && p.Key != s.Key {
			return "it holds " + p.Key + " too", nil
		}
	}
	return "", nil
}

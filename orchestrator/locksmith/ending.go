package locksmith

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// ending is how a transaction ends an old hold.
type ending struct {
	// guards fail if the lock, or a key that the verdict or the permit rested
	// on, changed.
	guards []consulkv.Op
	// end unlocks; it stands before the new lock.
	end consulkv.Op
	// outcome completes the break record.
	outcome consulkv.Op
	// fence is what the old hold leaves; nil: nothing.
	fence *records.Fence
	// recent fails once the look that all this rests on is too old to be acted upon.
	recent func() error
}

// endings judges every target once more, asks the brakes once more (the steps
// may have taken their time), and makes what ends the old holds.
func (b *breaking) endings(ctx context.Context, outcome, newSession string) (map[string]*ending, error) {
	for _, t := range b.targets {
		// It may read all of Consul's keys: no verdict is to grow old meanwhile.
		t.leave = b.leaveAlone(ctx, t)
	}
	if err := lookAnew(ctx, b.targets); err != nil {
		return nil, err
	}
	out := map[string]*ending{}
	for _, t := range b.targets {
		// The intent has paid for this hold: the budget lets it pass.
		p, err := b.c.Permit(ctx, t.v)
		if err != nil {
			return nil, err
		}
		if !p.OK {
			return nil, &NotPermittedError{Lock: t.name, Permit: p}
		}
		t.permit = p
		out[t.name] = b.ending(t, outcome, newSession)
	}
	return out, nil
}

func (b *breaking) ending(t *target, outcome, newSession string) *ending {
	s := t.v.Snapshot
	e := &ending{guards: append(b.guards(t), t.permit.guards...), fence: b.c.leaves(t.v), recent: t.recent}
	e.end = flags(consulkv.Unlock(s.Key, t.endedRecord(), s.SessionID()), s)
	now := time.Now().UTC()
	rec := t.rec
	rec.Steps = append(slices.Clone(t.rec.Steps), records.BreakStep{Step: policies.StepTake, At: now, Result: "done"})
	rec.Evidence = policies.EvidenceOf(t.v.Facts, t.v.Judgement.Result.Used)
	rec.Outcome, rec.EndedAt, rec.NewSession = outcome, &now, newSession
	if rec.Detail = "the old session is destroyed"; t.leave != "" {
		rec.Detail = "the old session is left alone: " + t.leave
	}
	if e.fence != nil {
		rec.Quiesce = e.fence.Owed
	}
	e.outcome = consulkv.CAS(t.key, records.Encode(&rec), t.index)
	return e
}

// leaves is the fence record that a broken hold leaves: the quiesce that its
// record asks for, raised by the policy, and none where evidence proves every
// process of it dead; never less than what was still owed before.
func (c *Client) leaves(v *Verdict) *records.Fence {
	s := v.Snapshot
	owed, why := DefaultQuiesce, "a holder that is not aimlock's was broken"
	if s.Holder != nil {
		owed, why = seconds(s.Holder.Quiesce), "the holder was broken"
	}
	if q := v.Policy.Break.Quiesce; q != nil {
		owed = max(owed, *q)
	}
	dead := false
	if owed > 0 && s.Holder != nil {
		if dead, _ = c.reader.Dead(s); dead {
			owed = 0
		}
	}
	if s.Fence != nil && seconds(s.Fence.Owed) > owed && (!dead || s.Fence.Session != s.SessionID()) {
		owed, why = seconds(s.Fence.Owed), s.Fence.Why
	}
	if owed = min(owed, MaxQuiesce); owed <= 0 {
		return nil
	}
	f := &records.Fence{Version: records.Version, UnsafeSince: time.Now().UTC(), Owed: owed.Seconds(), Why: why, Session: s.SessionID(), Token: s.Index()}
	if s.Fence != nil && s.Fence.Session != f.Session {
		// The pause of an earlier hold is not served yet. Under the name of this one it
		// would go with the proof that this one is dead.
		f.Session, f.Token = s.Fence.Session, s.Fence.Token
	}
	return f
}

// endedRecord is the lock's value after its hold was broken: a record that owes
// nothing by itself, since the fence record does.
func (t *target) endedRecord() []byte {
	s, now := t.v.Snapshot, time.Now().UTC()
	if s.Holder == nil {
		return s.Pair.Value
	}
	h := *s.Holder
	h.Released, h.ReleasedAt, h.Broken, h.Token = true, &now, t.key, s.Index()
	return records.Encode(&h)
}

// markFence puts what is owed into the fence record before a step that may end
// the hold by itself, where the holder's own record would not ask for as much.
func (b *breaking) markFence(ctx context.Context, t *target) error {
	s, f := t.v.Snapshot, b.c.leaves(t.v)
	if f == nil || s.Holder != nil && s.Holder.Quiesce >= f.Owed || s.Fence != nil && s.Fence.Owed >= f.Owed {
		return nil
	}
	above, err := b.under.above()
	if err != nil {
		return err
	}
	key := b.c.keys.Fence(s.Name)
	_, err = consulkv.Retry(ctx, b.c.consul, "write "+key, func(ctx context.Context) (consulkv.Results, error) {
		return b.c.consul.Txn(ctx, append(slices.Clone(above), consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index()), consulkv.Set(key, records.Encode(f)))...)
	})
	if _, ok := isRefused(err); ok {
		return fmt.Errorf("%w: %w", errChanged, err)
	}
	return err
}

// finish writes how a break came out that did not end the holds itself.
func (b *breaking) finish(ctx context.Context, detail string) {
	fctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	defer b.span.End()
	for _, t := range b.targets {
		outcome, why := records.OutcomeAborted, detail
		if t.letGo {
			if outcome, why = t.ended(); outcome == records.OutcomeEnded {
				if f := b.c.leaves(t.v); f != nil {
					t.rec.Quiesce = f.Owed
				}
			}
		} else if why == "" {
			why = "another lock of the break was let go"
		}
		rec, err := b.conclude(fctx, t, outcome, why)
		if err != nil {
			b.c.log.Warn("the outcome of a break could not be written", "lock", t.rec.Lock, "token", t.rec.Token, "key", t.key, "error", err)
			lost := t.rec
			lost.Outcome, lost.Detail = outcome, printable(why)
			rec = &lost
		}
		b.span.Outcome(rec.Outcome, rec.Outcome == records.OutcomeAborted)
		b.c.onBreak(t.key, rec)
	}
}

// conclude completes a break record that still is an intent, and returns what
// stands. As the final transaction compares the record's index, none that is
// still on its way can commit after this.
func (b *breaking) conclude(ctx context.Context, t *target, outcome, detail string) (*records.Break, error) {
	now := time.Now().UTC()
	rec := t.rec
	rec.Outcome, rec.Detail, rec.EndedAt = outcome, printable(detail), &now
	for {
		ok, werr := b.c.consul.CAS(ctx, t.key, records.Encode(&rec), t.index)
		if ok {
			return &rec, nil
		}
		p, err := b.c.consul.Get(ctx, t.key)
		if err != nil {
			return nil, errors.Join(werr, err)
		}
		var found records.Break
		switch {
		case p == nil:
			return nil, fmt.Errorf("%s was deleted", t.key)
		case records.Decode(t.key, p.Value, &found) != nil || found.Nonce != t.rec.Nonce:
			return nil, fmt.Errorf("%s was written by somebody else", t.key)
		case found.Outcome != records.OutcomeIntent:
			return &found, nil
		}
		t.index = p.ModifyIndex
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return nil, errors.Join(werr, err)
		}
	}
}

// unlock ends the old hold without a successor.
func (b *breaking) unlock(ctx context.Context) (*records.Break, error) {
	ended, err := b.endings(ctx, records.OutcomeUnlocked, "")
	if err != nil {
		return nil, err
	}
	t := b.targets[0]
	e, name := ended[t.name], t.v.Snapshot.Name
	above, err := b.under.above()
	if err != nil {
		return nil, err
	}
	ops := append(append(above, once(e.guards)...), e.end)
	ops = append(ops, b.c.setFence(t.v.Snapshot, e.fence)...)
	ops = append(ops, consulkv.Delete(b.c.keys.Request(name)), consulkv.Delete(b.c.keys.Approval(name)), e.outcome)
	if err := e.recent(); err != nil {
		return nil, err
	}
	tctx, span := tracing.Start(b.span.In(ctx), tracing.Take)
	_, err = b.c.consul.Txn(tctx, ops...)
	span.Outcome(b.came(err), err != nil)
	span.End()
	if err != nil {
		if _, ok := isRefused(err); ok {
			return nil, fmt.Errorf("%w: %w", errChanged, err)
		}
		if !consulkv.Ambiguous(err) {
			return nil, err
		}
		// Either it stands, or it never will.
		dctx, cancel := detached(ctx, b.c.consul.RetryFor())
		defer cancel()
		rec, cerr := b.conclude(dctx, t, records.OutcomeAborted, err.Error())
		if cerr != nil {
			return nil, errors.Join(err, cerr)
		}
		if rec.Outcome != records.OutcomeUnlocked {
			return nil, err
		}
		return rec, nil
	}
	var rec records.Break
	if err := records.Decode(t.key, e.outcome.Value, &rec); err != nil {
		return nil, err
	}
	return &rec, nil
}

// ended tells that the holds are ended.
func (b *breaking) ended(outcome, detail string) {
	b.span.Outcome(outcome, false)
	defer b.span.End()
	for _, t := range b.targets {
		rec := t.rec
		rec.Outcome, rec.Detail = outcome, printable(detail)
		b.c.onBreak(t.key, &rec)
	}
}

// dismiss destroys the old sessions, so that a live old holder learns at once
// that it lost, unless that would free or delete other keys too. It returns
// what it did.
func (b *breaking) dismiss(ctx context.Context) string {
	text, seen := "", map[string]bool{}
	for _, t := range b.targets {
		id := t.v.Snapshot.SessionID()
		if seen[id] {
			continue
		}
		seen[id] = true
		done := "the old session was destroyed"
		if t.leave != "" {
			done = "the old session was left alone: " + t.leave
		} else if err := b.c.destroySession(ctx, id); err != nil {
			done = "the old session could not be destroyed: " + err.Error()
		}
		if text != "" {
			text += "; "
		}
		text += done
	}
	return text
}

// leaveAlone says why the old session of a target is not to be destroyed; ""
// if it is.
func (b *breaking) leaveAlone(ctx context.Context, t *target) string {
	s := t.v.Snapshot
	switch {
	case b.force:
		return ""
	case s.Session == nil:
		return s.SessionWhy
	case s.Session.Behavior == api.SessionBehaviorDelete:
		return "its behavior is delete"
	}
	other, err := b.otherKey(ctx, s)
	if err != nil {
		return err.Error()
	}
	if other != "" {
		return "it holds " + printable(other) + " too"
	}
	return ""
}

// otherKey is a further key that the session of s holds and that is no target;
// "" if there is none.
func (b *breaking) otherKey(ctx context.Context, s *evidence.Snapshot) (string, error) {
	mine := map[string]bool{}
	for _, t := range b.targets {
		mine[t.v.Snapshot.Key] = true
	}
	// A holder's own record names all that its session holds. One that does not even
	// name its own lock is none of aimlock's making.
	if s.Holder != nil && len(s.Holder.Locks) <= MaxLocks && slices.Contains(s.Holder.Locks, s.Name) {
		for _, n := range s.Holder.Locks {
			key := b.c.keys.Lock(n)
			if mine[key] {
				continue
			}
			p, err := b.c.consul.Get(ctx, key)
			if err != nil {
				return "", err
			}
			if p != nil && p.Session == s.SessionID() {
				return key, nil
			}
		}
		return "", nil
	}
	// Only a reading of everything tells what another tool's session holds.
	return b.c.consul.KeyHeldBy(ctx, s.SessionID(), func(key string) bool { return mine[key] })
}

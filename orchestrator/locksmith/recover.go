package locksmith

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// A restore of Consul from a snapshot brings ended sessions back to life with the
// locks that they held, forgets locks that were taken since, and hands out Raft
// indexes that were handed out before. Recover makes every order of that past
// older than every order to come, and ends what came back:
//
//  1. every free lock owes the pause to its next holder: whoever took it after
//     the snapshot is forgotten, and may still have work running.
//  2. the pause is waited out. A lock that was first taken after the snapshot has
//     no key to owe it: who takes it under the new epoch comes late enough, and
//     who takes it before that is ended by step 4.
//  3. the epoch is raised above every order that can be found. From here on
//     nobody who acquires gives an order that a node would take for an old one.
//  4. every hold that was acquired under an older epoch is ended by a
//     transaction that proves that it is that hold and leaves the pause, and its
//     session after it.
//
// Each step can be repeated: after a crash in between, or for no reason, the
// same is done again, with a higher epoch.

// RecoverRequest asks for a recovery.
type RecoverRequest struct {
	// DryRun looks, and changes nothing.
	DryRun bool
	// Epoch is the least that the new one shall be; 0: no such wish. It is for
	// orders that are known to have been given and cannot be found in Consul.
	Epoch uint64
}

// Recovery is what a recovery found and did.
type Recovery struct {
	DryRun bool   `json:"dry_run"`
	Before uint64 `json:"epoch_before"`
	// Epoch is the new one: that which would be, for a dry run.
	Epoch uint64 `json:"epoch"`
	// Orders are the highest that were found, by where they stand.
	Orders []FoundOrders `json:"orders"`
	// Unreadable are keys whose orders could not be read, or whose epoch is too far
	// above the one before to be followed; some of them.
	Unreadable []string `json:"unreadable,omitempty"`
	// Holds are those that were in force, and what became of each.
	Holds []VoidedHold `json:"holds"`
	// Free is how many free locks owe the pause by now.
	Free int `json:"free_locks"`
	// Sessions of aimlock that were ended though they hold none of these locks.
	Sessions int `json:"other_sessions"`
	// Rollouts that are not finished, as the snapshot has them.
	Rollouts []OpenRollout `json:"rollouts"`
	// What operators had set comes from the snapshot, too.
	Policies  *records.PolicyActive    `json:"policies"`
	Suspended *records.PolicySuspended `json:"suspended"`
	Silences  int                      `json:"silences"`
}

// FoundOrders are the orders under one folder.
type FoundOrders struct {
	Folder  string             `json:"folder"`
	Count   int                `json:"count"`
	Highest orchestrator.Order `json:"highest"`
}

// VoidedHold is one hold that came out of the snapshot.
type VoidedHold struct {
	Lock    string  `json:"lock"`
	Session string  `json:"session"`
	Token   uint64  `json:"token"`
	Holder  string  `json:"holder"`
	Quiesce float64 `json:"quiesce"`
	// Voided is false for a dry run, and for one that was let go or taken anew
	// meanwhile.
	Voided bool   `json:"voided"`
	Detail string `json:"detail,omitempty"`
}

// OpenRollout is a rollout that is not finished.
type OpenRollout struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
}

// ErrEpochMeanwhile: somebody else raised the epoch at the same moment.
var ErrEpochMeanwhile = errors.New("somebody else raised the epoch at the same moment: one recovery is enough")

// RuleRecover stands as the rule in the record of a hold that a recovery ended.
const RuleRecover = "recover"

// recoverTries bounds how often one lock is looked at anew because it changed.
const recoverTries = 10

// Recover raises the epoch and voids all holders, after DefaultQuiesce. What it has
// done is in the Recovery also where it returns an error.
func (c *Client) Recover(ctx context.Context, req RecoverRequest) (*Recovery, error) {
	r := &recovering{c: c, out: &Recovery{DryRun: req.DryRun, Orders: []FoundOrders{}, Holds: []VoidedHold{}, Rollouts: []OpenRollout{}}}
	cur, err := c.consul.Get(ctx, c.keys.Epoch())
	if err != nil {
		return r.out, err
	}
	if cur != nil {
		if r.out.Before, err = parseEpoch(cur.Value, cur.Key); err != nil {
			r.unreadable(cur.Key)
		}
	}
	if !req.DryRun {
		if err := r.locks(ctx, func(s *evidence.Snapshot) error { return r.pause(ctx, s) }); err != nil {
			return r.out, err
		}
		if err := sleep(ctx, DefaultQuiesce); err != nil {
			return r.out, err
		}
	}
	// Nodes tell anew what they have accepted when Consul went back: the later the
	// look, the more of them have.
	if err := r.look(ctx); err != nil {
		return r.out, err
	}
	r.out.Epoch = max(r.highest, r.out.Before)
	if r.out.Epoch == 1<<64-1 {
		return r.out, errors.New("the key epoch is the highest number that there is: nothing can be above it; find out who wrote it")
	}
	r.out.Epoch = max(r.out.Epoch+1, req.Epoch)
	if req.DryRun {
		return r.out, r.locks(ctx, func(s *evidence.Snapshot) error { return r.show(s) })
	}
	if r.epochIndex, err = r.raise(ctx, cur); err != nil {
		return r.out, err
	}
	err = r.locks(ctx, func(s *evidence.Snapshot) error { return r.end(ctx, s) })
	return r.out, errors.Join(err, r.sessions(ctx))
}

type recovering struct {
	c   *Client
	out *Recovery
	// highest epoch of an order that was found.
	highest uint64
	// epochIndex is where the epoch was raised: holds with a lower token are
	// those of the past.
	epochIndex uint64
	who        records.Who

	mu sync.Mutex
	// over are the sessions of the holds that were ended.
	over []string
}

// maxUnreadable bounds how many unreadable keys are named.
const maxUnreadable = 20

func (r *recovering) unreadable(key string) {
	if len(r.out.Unreadable) < maxUnreadable && !slices.Contains(r.out.Unreadable, key) {
		r.out.Unreadable = append(r.out.Unreadable, key)
	}
}

// look finds the orders, and what else is worth a word.
func (r *recovering) look(ctx context.Context) error {
	c := r.c
	r.who = c.Who(ctx)
	if err := r.entries(ctx, "actual", c.keys.ActualRoot(), func(f string) []string {
		var out []string
		for b := range keys.Buckets {
			out = append(out, f+fmt.Sprintf("%02d/", b))
		}
		return out
	}); err != nil {
		return err
	}
	if err := r.entries(ctx, "desired", c.keys.DesiredRoot(), func(f string) []string { return []string{f} }); err != nil {
		return err
	}
	if err := r.rollouts(ctx); err != nil {
		return err
	}
	if err := r.breaks(ctx); err != nil {
		return err
	}
	return r.settings(ctx)
}

// entries reads desired/ or actual/, a part at a time: a fleet's are many.
func (r *recovering) entries(ctx context.Context, name, root string, parts func(folder string) []string) error {
	folders, err := r.c.consul.Keys(ctx, root, "/")
	if err != nil {
		return err
	}
	found := FoundOrders{Folder: name + "/"}
	for _, f := range folders {
		if !strings.HasSuffix(f, "/") {
			continue
		}
		for _, part := range parts(f) {
			list, err := r.c.consul.List(ctx, part)
			if err != nil {
				return err
			}
			for _, p := range list {
				r.entry(&found, p)
			}
		}
	}
	r.found(found)
	return nil
}

// entry takes the orders out of one value: of a node's answer also that which it
// refused.
func (r *recovering) entry(f *FoundOrders, p *api.KVPair) {
	var e struct {
		orchestrator.Order
		Refused *orchestrator.Order `json:"refused"`
	}
	if json.Unmarshal(p.Value, &e) != nil {
		r.unreadable(p.Key)
		return
	}
	r.add(f, p.Key, e.Order)
	if e.Refused != nil {
		r.add(f, p.Key, *e.Refused)
	}
	f.Count++
}

// maxEpochStep bounds how far one recovery follows what it finds: what a single node
// answers must not use up the epochs. A wish may be higher.
const maxEpochStep = 1 << 32

func (r *recovering) add(f *FoundOrders, key string, o orchestrator.Order) {
	if o.Epoch > r.out.Before && o.Epoch-r.out.Before > maxEpochStep {
		r.unreadable(key)
	} else if f.Highest.Less(o) {
		f.Highest = o
	}
}

func (r *recovering) found(f FoundOrders) {
	r.out.Orders = append(r.out.Orders, f)
	r.highest = max(r.highest, f.Highest.Epoch)
}

func (r *recovering) rollouts(ctx context.Context) error {
	names, err := r.c.consul.Keys(ctx, r.c.keys.Rollouts(), "/")
	if err != nil {
		return err
	}
	found := FoundOrders{Folder: "rollouts/"}
	for _, key := range names {
		if strings.HasSuffix(key, "/") {
			continue
		}
		p, err := r.c.consul.Get(ctx, key)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		var h struct {
			ID         string     `json:"id"`
			Name       string     `json:"name"`
			State      string     `json:"state"`
			Epoch      uint64     `json:"epoch"`
			Token      uint64     `json:"token"`
			FinishedAt *time.Time `json:"finished_at"`
		}
		if json.Unmarshal(p.Value, &h) != nil {
			r.unreadable(key)
			continue
		}
		found.Count++
		r.add(&found, key, orchestrator.Order{Epoch: h.Epoch, Token: h.Token})
		if h.FinishedAt == nil {
			r.out.Rollouts = append(r.out.Rollouts, OpenRollout{ID: h.ID, Name: h.Name, State: h.State})
		}
	}
	r.found(found)
	return nil
}

func (r *recovering) breaks(ctx context.Context) error {
	names, err := r.c.consul.Keys(ctx, r.c.keys.BreaksRoot(), "")
	if err != nil {
		return err
	}
	found := FoundOrders{Folder: "breaks/"}
	for _, key := range names {
		if epoch, token, _, ok := keys.ParseBreak(key); ok {
			found.Count++
			r.add(&found, key, orchestrator.Order{Epoch: epoch, Token: token})
		}
	}
	r.found(found)
	return nil
}

func (r *recovering) settings(ctx context.Context) error {
	v, _, err := r.c.ActivePolicies(ctx)
	if err != nil {
		return err
	}
	if v != nil {
		r.out.Policies = &v.PolicyActive
	}
	if r.out.Suspended, err = r.c.Suspended(ctx); err != nil {
		return err
	}
	silences, err := r.c.Silences(ctx)
	r.out.Silences = len(silences)
	return err
}

// raise writes the new epoch, and returns the index at which it stands.
func (r *recovering) raise(ctx context.Context, cur *api.KVPair) (uint64, error) {
	index := uint64(0)
	if cur != nil {
		index = cur.ModifyIndex
	}
	key, value := r.c.keys.Epoch(), strconv.FormatUint(r.out.Epoch, 10)
	res, err := r.c.consul.Txn(ctx, consulkv.CAS(key, []byte(value), index))
	if err == nil {
		return res.Find(key).ModifyIndex, nil
	}
	if _, refused := isRefused(err); refused {
		return 0, ErrEpochMeanwhile
	}
	if !consulkv.Ambiguous(err) {
		return 0, err
	}
	p, rerr := r.c.consul.Get(ctx, key)
	if rerr != nil || p == nil || string(p.Value) != value {
		return 0, errors.Join(fmt.Errorf("the epoch was not raised, so far as can be read; run it again: %w", err), rerr)
	}
	return p.ModifyIndex, nil
}

// recoverParallel bounds how many locks are read at a time.
const recoverParallel = 8

// locks does something with every lock of aimlock's own, a few at a time.
func (r *recovering) locks(ctx context.Context, do func(*evidence.Snapshot) error) error {
	list, err := r.c.consul.List(ctx, r.c.keys.Locks())
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	gate := make(chan struct{}, recoverParallel)
	errs := make([]error, len(list))
	for i, p := range list {
		name, own := r.c.keys.LockName(p.Key)
		if !own {
			continue
		}
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			s, err := r.c.reader.Read(ctx, name)
			if err == nil {
				err = do(s)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	slices.SortFunc(r.out.Holds, func(a, b VoidedHold) int { return strings.Compare(a.Lock, b.Lock) })
	return errors.Join(errs...)
}

func (r *recovering) show(s *evidence.Snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Held() {
		r.out.Holds = append(r.out.Holds, r.hold(s))
	} else {
		r.out.Free++
	}
	return nil
}

// pause makes a free lock owe the pause before the epoch is raised, so that
// nobody takes it under the new one and does not wait. One that owes it already is
// written all the same: who saw it be free before the restore counts that time for
// as long as the index stands still.
func (r *recovering) pause(ctx context.Context, s *evidence.Snapshot) error {
	for range recoverTries {
		if s.Held() {
			return nil
		}
		_, err := r.c.consul.Txn(ctx, consulkv.CheckIndex(s.Key, s.Index()), r.fenceOp(s))
		if err == nil {
			return nil
		}
		if s, err = r.again(ctx, s, err); err != nil {
			return err
		}
	}
	return r.restless(s)
}

func (r *recovering) restless(s *evidence.Snapshot) error {
	return fmt.Errorf("lock %s changes all the time: stop who uses it, and run it again", s.Name)
}

// again reads a lock that changed, or of which it is not known whether it did.
func (r *recovering) again(ctx context.Context, s *evidence.Snapshot, err error) (*evidence.Snapshot, error) {
	if _, refused := isRefused(err); !refused && !consulkv.Ambiguous(err) || ctx.Err() != nil {
		return nil, fmt.Errorf("lock %s: %w", s.Name, err)
	}
	return r.c.reader.Read(ctx, s.Name)
}

// pauses tells whether the lock owes the pause already.
func (r *recovering) pauses(s *evidence.Snapshot) bool {
	return s.Fence != nil && s.Fence.Owed >= r.fence(s).Owed
}

func (r *recovering) fenceOp(s *evidence.Snapshot) consulkv.Op {
	key := r.c.keys.Fence(s.Name)
	return consulkv.CAS(key, records.Encode(r.fence(s)), s.Deps[key])
}

func (r *recovering) hold(s *evidence.Snapshot) VoidedHold {
	h := VoidedHold{Lock: s.Name, Session: s.SessionID(), Token: s.Index(), Holder: s.Tool, Quiesce: r.fence(s).Owed}
	if s.Holder != nil {
		h.Holder = printable(fmt.Sprintf("%s, pid %d on %s, user %s", s.Holder.Operation, s.Holder.PID, s.Holder.Host, s.Holder.User))
	}
	return h
}

// fence is the pause that a lock owes after a restore: at least the default one,
// whatever its last record asks for, since that may not be the last.
func (r *recovering) fence(s *evidence.Snapshot) *records.Fence {
	owed := DefaultQuiesce.Seconds()
	if s.Holder != nil {
		owed = max(owed, s.Holder.Quiesce)
	}
	if s.Fence != nil {
		owed = max(owed, s.Fence.Owed)
	}
	owed = min(owed, MaxQuiesce.Seconds())
	return &records.Fence{Version: records.Version, UnsafeSince: time.Now().UTC(), Owed: owed, Why: "Consul was restored", Session: s.SessionID(), Token: s.Index()}
}

// end makes one lock that of the new epoch.
func (r *recovering) end(ctx context.Context, s *evidence.Snapshot) error {
	for range recoverTries {
		ops, h, err := r.ending(ctx, s)
		if err != nil {
			return err
		}
		if ops != nil {
			_, err = r.c.consul.Txn(ctx, ops...)
		}
		if err == nil {
			r.note(s, h, ops != nil)
			return nil
		}
		if s, err = r.again(ctx, s, err); err != nil {
			return err
		}
	}
	return r.restless(s)
}

func (r *recovering) note(s *evidence.Snapshot, h VoidedHold, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !s.Held():
		r.out.Free++
		return
	case !done:
		h.Detail = "taken under the new epoch: left alone"
	default:
		h.Voided, h.Detail = true, "Consul does not show its session"
		r.over = append(r.over, s.SessionID())
	}
	r.out.Holds = append(r.out.Holds, h)
}

// ending is the transaction for a lock; nil where nothing is to be done.
func (r *recovering) ending(ctx context.Context, s *evidence.Snapshot) ([]consulkv.Op, VoidedHold, error) {
	c := r.c
	switch {
	case !s.Held() && r.pauses(s):
		return nil, VoidedHold{}, nil
	case !s.Held():
		return []consulkv.Op{consulkv.CheckIndex(s.Key, s.Index()), r.fenceOp(s)}, VoidedHold{}, nil
	}
	h := r.hold(s)
	if s.Index() > r.epochIndex {
		return nil, h, nil
	}
	rec, err := r.record(ctx, s)
	if err != nil {
		return nil, h, err
	}
	key := c.keys.Break(s.Name, rec.Epoch, rec.Token, rec.Attempt)
	t := &target{v: &Verdict{Snapshot: s}, key: key}
	return []consulkv.Op{
		consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index()),
		flags(consulkv.Unlock(s.Key, t.endedRecord(), s.SessionID()), s), r.fenceOp(s),
		consulkv.Delete(c.keys.Request(s.Name)), consulkv.Delete(c.keys.Approval(s.Name)),
		consulkv.CAS(key, records.Encode(rec), 0),
	}, h, nil
}

// record is the audit of a hold that a recovery ends: a break by the operator's
// word, and by no policy.
func (r *recovering) record(ctx context.Context, s *evidence.Snapshot) (*records.Break, error) {
	names, err := r.c.consul.Keys(ctx, r.c.keys.Breaks(s.Name), "")
	if err != nil {
		return nil, err
	}
	attempt := 1
	for _, k := range names {
		if e, token, n, ok := keys.ParseBreak(k); ok && e == r.out.Before && token == s.Index() {
			attempt = max(attempt, n+1)
		}
	}
	now := time.Now().UTC()
	rec := &records.Break{
		Version: records.Version, Nonce: NewNonce(ctx), Lock: s.Name, Key: s.Key, Session: s.SessionID(), Epoch: r.out.Before, Token: s.Index(), Attempt: attempt,
		Rule: RuleRecover, Reason: fmt.Sprintf("Consul was restored from a snapshot: the epoch is raised to %d", r.out.Epoch),
		Evidence: []records.Evidence{}, By: r.c.by, Who: r.who, StartedAt: now, EndedAt: &now,
		Outcome: records.OutcomeUnlocked, Detail: "voided by recover", Quiesce: r.fence(s).Owed, Holder: s.Holder,
	}
	if s.Holder == nil {
		rec.RawHolder = printable(string(s.Pair.Value))
	}
	return rec, nil
}

// sessions ends those of the holds that were ended, and whatever else of aimlock
// came out of the snapshot: one may hold a lock under another tool's key.
func (r *recovering) sessions(ctx context.Context) error {
	list, err := consulkv.Retry(ctx, r.c.consul, "list sessions", func(ctx context.Context) ([]*api.SessionEntry, error) {
		l, _, err := r.c.consul.API().Session().List((&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
		return l, err
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		voided := slices.Contains(r.over, s.ID)
		if !strings.HasPrefix(s.Name, sessionName) || s.CreateIndex > r.epochIndex {
			if voided {
				r.detail(s.ID, "its session is not aimlock's: left alone")
			}
			continue
		}
		if err := r.c.destroySession(ctx, s.ID); err != nil {
			errs = append(errs, err)
			r.detail(s.ID, "its session could not be destroyed: "+err.Error())
			continue
		}
		r.detail(s.ID, "its session was destroyed")
		if !voided {
			r.out.Sessions++
		}
	}
	return errors.Join(errs...)
}

func (r *recovering) detail(session, text string) {
	for i := range r.out.Holds {
		if h := &r.out.Holds[i]; h.Session == session && h.Voided {
			h.Detail = printable(text)
		}
	}
}

package locksmith

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/nomadapi"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// failure is how often a hold could not be broken, and until when it is not
// tried again.
type failure struct {
	times int
	until time.Time
}

// Pauses after a break that came to nothing: from the first to the last,
// doubling.
const (
	firstBackoff = 10 * time.Second
	lastBackoff  = 5 * time.Minute
)

// rereadEvery is how often who waits reads the evidence again though nothing is known
// to have changed: a part of it that could not be read once is not unknown for ever.
const rereadEvery = 30 * time.Second

// blocked deals with locks of which somebody holds at least one, until that may
// have changed: it breaks them, or waits. A nil hold and a nil error mean: look
// again.
func (w *waiter) blocked(ctx context.Context, all []*Verdict) (*Hold, time.Duration, error) {
	wctx, cancel := context.WithCancel(ctx)
	wake, done := w.watch(wctx, all)
	defer func() { cancel(); <-done }()
	tick, reread := time.NewTicker(rejudgeEvery), time.NewTicker(rereadEvery)
	defer tick.Stop()
	defer reread.Stop()
	// A permit that was refused is asked for again after a while: budgets and
	// freezes pass, approvals come.
	var askAgain time.Time
	for {
		front := frontOf(all)
		if w.breakable(all) && time.Now().After(askAgain) {
			h, owe, err := w.breakAndTake(ctx, all)
			switch {
			case err == nil:
				return h, owe, nil
			case errors.As(err, &w.refusal):
				askAgain = time.Now().Add(time.Second)
			case errors.Is(err, errChanged), errors.Is(err, errStep), errors.Is(err, errLetGo), errors.Is(err, errRaced), errors.Is(err, errCooling):
				w.req.Notify(Notice{Kind: NoticeStopped, Lock: front.Snapshot.Name, Text: err.Error()})
				return nil, 0, nil
			default:
				return nil, 0, err
			}
		}
		if err := w.expired(front); err != nil {
			return nil, 0, err
		}
		w.tell(front)
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-tick.C:
			now := time.Now()
			for i, v := range all {
				all[i] = w.obs[w.req.Names[i]].Judge(v.Snapshot, now)
			}
			continue
		case <-wake:
		case <-reread.C:
		}
		next, err := w.observe(ctx)
		if err != nil {
			return nil, 0, err
		}
		for i, v := range all {
			if next[i].Snapshot.Hold() != v.Snapshot.Hold() {
				if !next[i].Snapshot.Held() {
					w.noteEnd(v.Snapshot)
				}
				w.refusal = nil
				return nil, 0, nil
			}
		}
		all = next
	}
}

// frontOf is the lock that is in the way most: one that is held and not HOT,
// else the first that is held.
func frontOf(all []*Verdict) *Verdict {
	var front *Verdict
	for _, v := range all {
		switch {
		case !v.Snapshot.Held():
		case v.State != Hot:
			return v
		case front == nil:
			front = v
		}
	}
	return front
}

// breakable tells whether every lock in the way is HOT. To break some of them
// while another stays held would harm their holders and help nobody.
func (w *waiter) breakable(all []*Verdict) bool {
	if w.req.NoBreak {
		return false
	}
	for _, v := range all {
		if v.Snapshot.Held() && (v.State != Hot || time.Now().Before(w.failed[v.Snapshot.Hold()].until)) {
			return false
		}
	}
	return true
}

// backOff notes that a break came to nothing though the lock stayed what it
// was.
func (w *waiter) backOff(targets []*target) {
	for _, t := range targets {
		hold := t.v.Snapshot.Hold()
		f := w.failed[hold]
		d := min(firstBackoff<<min(f.times, 10), lastBackoff)
		w.failed[hold] = failure{times: f.times + 1, until: time.Now().Add(d)}
	}
}

// breakAndTake breaks every held lock of the request, and takes all of them in
// the same transaction.
func (w *waiter) breakAndTake(ctx context.Context, all []*Verdict) (*Hold, time.Duration, error) {
	var held []*target
	for i, v := range all {
		switch s := v.Snapshot; {
		case s.Held():
			held = append(held, &target{name: w.req.Names[i], obs: w.obs[w.req.Names[i]], v: v})
		case usable(s) != nil:
			return nil, 0, usable(s)
		case w.c.cooling(ctx, s):
			// Nothing is gained by breaking the others now.
			return nil, 0, w.cool(ctx, v)
		}
	}
	// First of all, whether it may be done: then the caller is told that it is.
	if err := w.c.permitted(ctx, held); err != nil {
		return nil, 0, err
	}
	permit := held[0].permit
	permit.Powerless = w.c.powerless(ctx, permit, accessorGrace)
	w.refusal, w.permit = nil, permit
	w.tell(held[0].v)
	if !permit.Powerless {
		w.permit = nil // it was that of this moment
	}
	att, err := w.attempt(ctx)
	if err != nil {
		return nil, 0, err
	}
	patience, done := w.patience(ctx)
	defer done()
	b, err := w.c.startBreak(patience, held, w.req.Notify, false, nil)
	if err != nil {
		return nil, 0, err
	}
	h, owe, err := w.finishTake(ctx, patience, b, att)
	if err != nil {
		if errors.Is(err, errLetGo) {
			b.finish(ctx, "")
			return nil, 0, err
		}
		b.finish(ctx, err.Error())
		if !errors.Is(err, errRaced) && !errors.Is(err, errElsewhere) {
			w.backOff(b.targets)
		}
		return nil, 0, err
	}
	dctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	dismissed := b.dismiss(dctx)
	b.ended(records.OutcomeTaken, fmt.Sprintf("taken with token %d; %s", h.Token(), dismissed))
	w.req.Notify(Notice{Kind: NoticeBroken, Lock: b.names(),
		Text: fmt.Sprintf("token %d succeeds %d; %s", h.Token(), b.targets[0].rec.Token, dismissed)})
	return h, owe, nil
}

// errElsewhere ends a break that is not needed any more: something else that
// was wanted came free.
var errElsewhere = errors.New("another slot came free")

// patience is for the parts of a break that take their time.
func (w *waiter) patience(ctx context.Context) (context.Context, func()) {
	if w.elsewhere == nil {
		return ctx, func() {}
	}
	pctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(w.elsewhere, func() { cancel(errElsewhere) })
	return pctx, func() { stop(); cancel(nil) }
}

// finishTake runs the steps of a break whose intent stands, and takes.
func (w *waiter) finishTake(ctx, patience context.Context, b *breaking, att *attempt) (*Hold, time.Duration, error) {
	take, err := b.steps(patience)
	if err != nil {
		return nil, 0, err
	}
	if !take {
		return nil, 0, &NotPermittedError{Lock: b.targets[0].name, Permit: &Permit{Why: "the policy's steps do not take the lock"}}
	}
	ended, err := b.endings(ctx, records.OutcomeTaken, att.sess.id)
	if err != nil {
		return nil, 0, err
	}
	snaps := map[string]*evidence.Snapshot{}
	for _, n := range w.req.Names {
		if t := b.target(n); t != nil {
			snaps[n] = t.v.Snapshot
			continue
		}
		s, err := w.c.reader.Read(ctx, n)
		if err != nil {
			return nil, 0, err
		}
		if s.Held() {
			return nil, 0, fmt.Errorf("%w: lock %s was taken by another session", errRaced, n)
		}
		snaps[n] = s
	}
	tctx, span := tracing.Start(b.span.In(ctx), tracing.Take)
	h, owe, err := att.take(tctx, snaps, ended, 0)
	span.Outcome(b.came(err), err != nil)
	span.End()
	return h, owe, w.outcome(ctx, err)
}

// watch wakes whenever something that Consul or Nomad knows of a held lock
// changed. done is closed when its goroutines have ended, after ctx.
func (w *waiter) watch(ctx context.Context, all []*Verdict) (wake <-chan struct{}, done <-chan struct{}) {
	if w.req.Try {
		return nil, closedChan() // nobody waits for it
	}
	ch, end := make(chan struct{}, 1), make(chan struct{})
	poke := func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	var wg sync.WaitGroup
	var sessions, allocs []string
	for _, v := range all {
		s := v.Snapshot
		key := func(key string, least time.Duration) {
			wg.Go(func() { followKey(ctx, w.c.keyWatcher(key, least), s.Deps[key], poke) })
		}
		key(s.Key, 0)
		if !s.Held() {
			continue
		}
		key(w.c.keys.Progress(s.Name), time.Second)
		key(w.c.keys.Approval(s.Name), time.Second)
		if s.SeenKey != "" {
			key(s.SeenKey, 100*time.Millisecond)
		}
		if s.Holder != nil && s.Holder.RolloutID != "" && v.reads("rollout.") {
			key(w.c.keys.Rollout(s.Holder.RolloutID), time.Second)
		}
		if s.Session != nil && s.Session.Node != "" && !slices.Contains(sessions, s.Session.ID) {
			sessions = append(sessions, s.Session.ID)
			wg.Go(func() { followHealth(ctx, w.c.nodeWatcher(s.Session.Node), s, poke) })
		}
		if s.Alloc != nil && !slices.Contains(allocs, s.Alloc.ID) {
			allocs = append(allocs, s.Alloc.ID)
			wg.Go(func() {
				followAlloc(ctx, w.c.reader.Nomad, evidence.AllocRef{ID: s.Alloc.ID, Region: s.Holder.AllocRegion}, poke)
			})
		}
	}
	go func() { wg.Wait(); close(end) }()
	return ch, end
}

// reads tells whether a rule of the lock's policy reads a fact of the object.
func (v *Verdict) reads(object string) bool {
	return slices.ContainsFunc(v.Judgement.Used(), func(f string) bool { return strings.HasPrefix(f, object) })
}

func (c *Client) nodeWatcher(node string) *consulkv.Watcher[api.HealthChecks] {
	return consulkv.NewWatcher(c.consul, consulkv.WatchOptions{Name: "health of " + node, MinInterval: time.Second},
		func(q *api.QueryOptions) (api.HealthChecks, *api.QueryMeta, error) {
			return c.consul.API().Health().Node(node, q)
		})
}

// followHealth pokes when what facts are made of changed in the health of a holder's
// node since it was read, and at an error, so that the caller's next read reports it.
// What could not be read is read again at the next answer.
func followHealth(ctx context.Context, w *consulkv.Watcher[api.HealthChecks], s *evidence.Snapshot, poke func()) {
	last, seen := s.Health(s.Checks), len(s.Checks) > 0
	again := !seen
	for ctx.Err() == nil {
		list, err := w.Next(ctx)
		if err != nil {
			again = true
			poke()
			if sleepAs(ctx, "follow "+w.Name(), time.Second) != nil {
				return
			}
			continue
		}
		now := s.Health(list)
		if again || seen != (len(list) > 0) || !evidence.SameChecks(last, now) {
			poke()
		}
		last, seen, again = now, len(list) > 0, false
	}
}

// followKey pokes when a key has another index than the one that was read, and at an
// error as followHealth does. A key that is not there wakes its watcher at every write
// elsewhere: to read all evidence again then would cost a busy Consul many requests.
func followKey(ctx context.Context, w *consulkv.Watcher[*api.KVPair], index uint64, poke func()) {
	again := false
	for ctx.Err() == nil {
		p, err := w.Next(ctx)
		now := uint64(0)
		if p != nil {
			now = p.ModifyIndex
		}
		switch {
		case err != nil:
			again = true
			poke()
			if sleepAs(ctx, "follow "+w.Name(), time.Second) != nil {
				return
			}
		case again || now != index:
			index, again = now, false
			poke()
		}
	}
}

// followAlloc pokes when Nomad has news of an allocation, and when it answers
// again after it did not: its facts are unknown meanwhile.
func followAlloc(ctx context.Context, n evidence.Nomad, id evidence.AllocRef, poke func()) {
	index, failing := uint64(0), false
	for ctx.Err() == nil {
		a, next, err := n.Alloc(ctx, id, evidence.Since{Index: index, Wait: nomadapi.MaxWait})
		switch {
		case err != nil:
			index, failing = 0, true
		case a.Gone:
			poke()
			return
		default:
			if failing || index > 0 && next != index {
				poke()
			}
			index, failing = next, false
		}
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
}

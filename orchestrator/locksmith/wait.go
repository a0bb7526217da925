package locksmith

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// Request says which locks are wanted, and how.
type Request struct {
	// Names of the locks; all are taken in one transaction or none.
	Names []string
	// Operation says what the holder does, without arguments: they may be
	// secret.
	Operation string
	RolloutID string
	AllocID   string
	// TTL of the session; 0 is DefaultTTL. Consul takes 10 s to 24 h.
	TTL time.Duration
	// Quiesce is the pause that the next holder owes if this one does not
	// release: 0 where every participant checks the order.
	Quiesce time.Duration
	// Nonce of the holder record; empty makes one.
	Nonce string
	// Processes must be gone too before the hold is proved dead.
	Processes []records.Process
	// Try does not wait at all.
	Try bool
	// Wait bounds the wait for the lock; 0: no bound.
	Wait time.Duration
	// NoBreak judges and explains, but never breaks.
	NoBreak bool
	// Notify is told what happens while it waits; it may be nil. It is called
	// from the caller's goroutine.
	Notify func(Notice)
}

// Kinds of notices.
const (
	NoticeWaiting  = "waiting"  // refused for now; Status says by whom and why
	NoticeBreaking = "breaking" // a break begins
	NoticeStep     = "step"     // a step of a break
	NoticeBroken   = "broken"   // the old hold is ended and the lock taken
	NoticeStopped  = "stopped"  // a break came to nothing; it is judged anew
	NoticeQuiesce  = "quiesce"  // a pause that is owed is being served
)

// Notice is one thing that happens while a lock is waited for.
type Notice struct {
	Kind   string
	Lock   string
	Status *Status
	Text   string
}

// rejudgeEvery is how often a wait looks again at what needs no request: ages,
// and whether the holder's process on this host still lives.
const rejudgeEvery = 250 * time.Millisecond

// Acquire takes all locks of the request, or fails. While somebody else has
// one it waits by blocking queries, judges by policy, and breaks where the
// policy lets it: then the old hold ends and the new one begins in the same
// transaction. What quiesce is owed has been served when it returns.
//
// A *RefusedError says that the locks were not given in time.
func (c *Client) Acquire(ctx context.Context, req Request) (*Hold, error) {
	if req.TTL == 0 {
		req.TTL = DefaultTTL
	}
	if req.Notify == nil {
		req.Notify = func(Notice) {}
	}
	w := &waiter{c: c, req: &req, obs: map[string]*Observer{}, start: time.Now()}
	return w.run(ctx)
}

// waiter is one Acquire under way.
type waiter struct {
	c     *Client
	req   *Request
	start time.Time
	att   *attempt
	// obs remember each lock for as long as the wait lasts.
	obs     map[string]*Observer
	cluster *evidence.Cluster
	// told is the state that was last told to the caller.
	told string
	// cooled is when a hold was seen to end with a lock-delay, and how long
	// that is.
	endedAt time.Time
	delay   time.Duration
	// refusal is why a HOT lock was last not broken.
	refusal *NotPermittedError
}

func (w *waiter) run(ctx context.Context) (_ *Hold, err error) {
	bctx, cancel := context.WithCancel(ctx)
	var watched <-chan struct{}
	defer func() {
		cancel()
		if watched != nil {
			<-watched
		}
		if err != nil {
			w.drop(ctx)
		}
	}()
	races := 0
	for {
		verdicts, err := w.observe(ctx)
		if err != nil {
			return nil, err
		}
		blocked := firstHeld(w.req.Names, verdicts)
		if blocked == nil {
			h, owe, err := w.take(ctx, verdicts)
			switch {
			case err == nil:
				return w.settle(ctx, h, owe)
			case errors.Is(err, errCooling):
				if err := w.cool(ctx, verdicts[w.req.Names[0]]); err != nil {
					return nil, err
				}
			case errors.Is(err, errRaced):
				races++
				if err := sleep(ctx, rand.N(time.Duration(min(races, 10))*20*time.Millisecond)); err != nil {
					return nil, err
				}
			default:
				return nil, err
			}
			continue
		}
		if w.cluster == nil && !w.req.Try {
			w.cluster, watched = evidence.WatchCluster(bctx, w.c.consul)
			for _, o := range w.obs {
				o.cluster = w.cluster
			}
		}
		h, owe, err := w.blocked(ctx, blocked, verdicts)
		if err != nil {
			return nil, err
		}
		if h != nil {
			return w.settle(ctx, h, owe)
		}
	}
}

// drop ends the session of an acquisition that came to nothing.
func (w *waiter) drop(ctx context.Context) {
	if w.att != nil {
		w.att.sess.close(ctx)
		w.att = nil
	}
}

func (w *waiter) observe(ctx context.Context) (map[string]*Verdict, error) {
	out := make(map[string]*Verdict, len(w.req.Names))
	for _, n := range w.req.Names {
		o := w.obs[n]
		if o == nil {
			o = w.c.NewObserver(n, w.cluster)
			w.obs[n] = o
		}
		v, err := o.Observe(ctx)
		if err != nil {
			return nil, err
		}
		out[n] = v
	}
	return out, nil
}

func firstHeld(names []string, verdicts map[string]*Verdict) *Verdict {
	for _, n := range names {
		if verdicts[n].Snapshot.Held() {
			return verdicts[n]
		}
	}
	return nil
}

var (
	// errCooling: Consul's lock-delay refuses a free lock.
	errCooling = errors.New("lock-delay")
	// errRaced: somebody was faster, or changed what was read.
	errRaced = errors.New("raced")
)

func (w *waiter) attempt(ctx context.Context) (*attempt, error) {
	if w.att != nil && w.att.sess.dead() == nil {
		return w.att, nil
	}
	w.drop(ctx)
	att, err := w.c.begin(ctx, w.req)
	if err != nil {
		return nil, err
	}
	w.att = att
	return att, nil
}

// take tries to acquire locks that nobody holds.
func (w *waiter) take(ctx context.Context, verdicts map[string]*Verdict) (*Hold, time.Duration, error) {
	for _, n := range w.req.Names {
		if err := usable(verdicts[n].Snapshot); err != nil {
			return nil, 0, err
		}
	}
	att, err := w.attempt(ctx)
	if err != nil {
		return nil, 0, err
	}
	h, owe, err := att.take(ctx, snapshots(verdicts), nil)
	return h, owe, w.outcome(ctx, err)
}

// outcome sorts the error of an acquiring transaction. After an ambiguous one
// that does not stand, the session is destroyed, so that a request that is
// still on its way cannot take the lock later.
func (w *waiter) outcome(ctx context.Context, err error) error {
	ref, refused := isRefused(err)
	switch {
	case err == nil:
		w.att = nil
		return nil
	case errors.Is(err, errNotOurs):
		w.drop(ctx)
		return errRaced
	case refused && delayed(ref):
		return errCooling
	case refused:
		return fmt.Errorf("%w: %w", errRaced, err)
	}
	return err
}

func delayed(ref *consulkv.Refused) bool {
	for _, o := range ref.Ops {
		if strings.Contains(o.What, "lock delay") {
			return true
		}
	}
	return false
}

func snapshots(verdicts map[string]*Verdict) map[string]*evidence.Snapshot {
	out := make(map[string]*evidence.Snapshot, len(verdicts))
	for n, v := range verdicts {
		out[n] = v.Snapshot
	}
	return out
}

// settle serves what is owed and hands the hold over.
func (w *waiter) settle(ctx context.Context, h *Hold, owe time.Duration) (*Hold, error) {
	w.att = nil
	if owe > 0 {
		w.req.Notify(Notice{Kind: NoticeQuiesce, Lock: strings.Join(h.names, ", "),
			Text: fmt.Sprintf("waiting %s for what the last holder may still have running", round(owe))})
		if err := h.serve(ctx, owe); err != nil {
			// What is owed stays in fence/<name> for the next holder.
			return nil, errors.Join(err, h.giveUp(ctx))
		}
	}
	return h, nil
}

// giveUp ends a hold under which nothing was done.
func (h *Hold) giveUp(ctx context.Context) error {
	rctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	return h.Release(rctx)
}

// left is what is left of the wait; ok is false without a bound.
func (w *waiter) left() (time.Duration, bool) {
	if w.req.Wait <= 0 {
		return 0, false
	}
	return w.req.Wait - time.Since(w.start), true
}

// expired is the error that ends a wait, or nil.
func (w *waiter) expired(v *Verdict) error {
	why := ""
	if w.req.Try {
		why = "not waiting"
	} else if left, bounded := w.left(); bounded && left <= 0 {
		why = "waited " + w.req.Wait.String()
	}
	if why == "" {
		return nil
	}
	return w.refuse(v, why)
}

func (w *waiter) refuse(v *Verdict, why string) error {
	return &RefusedError{Status: w.status(v), Why: why, Hot: v.State == Hot}
}

func (w *waiter) status(v *Verdict) *Status {
	st := w.c.Status(v)
	var p *Permit
	if w.refusal != nil {
		p = w.refusal.Permit
	}
	if w.req.NoBreak && v.State == Hot {
		p = &Permit{Why: "this command was told not to break"}
	}
	st.Next = w.c.Next(v, p)
	return st
}

// tell notifies the caller of a state that it was not told before.
func (w *waiter) tell(v *Verdict) {
	key := v.Snapshot.Hold() + v.State
	if v.Judgement.Rule != nil {
		key += v.Judgement.Rule.Key()
	}
	if w.refusal != nil {
		key += w.refusal.Why
	}
	if key == w.told {
		return
	}
	w.told = key
	w.req.Notify(Notice{Kind: NoticeWaiting, Lock: v.Snapshot.Name, Status: w.status(v)})
}

// cool waits a little for a lock-delay to pass. Nothing in Consul tells when
// it does; who comes first then gets the lock.
func (w *waiter) cool(ctx context.Context, v *Verdict) error {
	cooling := *v
	cooling.State = Cooling
	if !w.endedAt.IsZero() {
		cooling.DelayLeft = max(0, w.delay-time.Since(w.endedAt))
	}
	if err := w.expired(&cooling); err != nil {
		return err
	}
	w.tell(&cooling)
	d := 500*time.Millisecond + rand.N(500*time.Millisecond)
	if cooling.DelayLeft > 0 {
		d = min(max(cooling.DelayLeft, 100*time.Millisecond), 2*time.Second)
	}
	if left, bounded := w.left(); bounded {
		d = min(d, max(left, time.Millisecond))
	}
	return sleep(ctx, d)
}

// blocked deals with a lock that somebody holds until it may have changed: it
// breaks it, or waits. A nil hold and a nil error mean: look again.
func (w *waiter) blocked(ctx context.Context, v *Verdict, all map[string]*Verdict) (*Hold, time.Duration, error) {
	o := w.obs[v.Snapshot.Name]
	if o == nil {
		o = w.obs[w.nameOf(v)]
	}
	wctx, cancel := context.WithCancel(ctx)
	wake, done := w.c.watchLock(wctx, v.Snapshot)
	defer func() { cancel(); <-done }()
	tick := time.NewTicker(rejudgeEvery)
	defer tick.Stop()
	// A permit that was refused is asked for again after a while: budgets and
	// freezes pass, approvals come.
	var askAgain time.Time
	for {
		if v.State == Hot && !w.req.NoBreak && time.Now().After(askAgain) {
			h, owe, err := w.breakAndTake(ctx, o, v, all)
			var no *NotPermittedError
			switch {
			case err == nil:
				return h, owe, nil
			case errors.As(err, &no):
				w.refusal = no
				askAgain = time.Now().Add(time.Second)
			case errors.Is(err, errChanged), errors.Is(err, errLetGo), errors.Is(err, errRaced):
				w.req.Notify(Notice{Kind: NoticeStopped, Lock: v.Snapshot.Name, Text: err.Error()})
				return nil, 0, nil
			default:
				return nil, 0, err
			}
		}
		if err := w.expired(v); err != nil {
			return nil, 0, err
		}
		w.tell(v)
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-wake:
			next, err := o.Observe(ctx)
			if err != nil {
				return nil, 0, err
			}
			if !next.Snapshot.Held() {
				w.noteEnd(v.Snapshot)
			}
			if next.Snapshot.Hold() != v.Snapshot.Hold() {
				w.refusal = nil
				return nil, 0, nil
			}
			v = next
		case <-tick.C:
			v = o.Judge(v.Snapshot, time.Now())
		}
	}
}

// nameOf is the name under which the request knows a lock.
func (w *waiter) nameOf(v *Verdict) string {
	for _, n := range w.req.Names {
		if w.c.keys.Lock(n) == v.Snapshot.Key {
			return n
		}
	}
	return v.Snapshot.Name
}

// noteEnd remembers when a hold was seen to end, and with what lock-delay.
func (w *waiter) noteEnd(s *evidence.Snapshot) {
	w.endedAt, w.delay = time.Now(), DefaultQuiesce
	if s.Session != nil {
		w.delay = s.Session.LockDelay
	}
}

// breakAndTake breaks the lock of v and takes all locks of the request in the
// same transaction.
func (w *waiter) breakAndTake(ctx context.Context, o *Observer, v *Verdict, all map[string]*Verdict) (*Hold, time.Duration, error) {
	first, err := w.c.Permit(ctx, v)
	if err != nil {
		return nil, 0, err
	}
	if !first.OK {
		return nil, 0, &NotPermittedError{Lock: v.Snapshot.Name, Permit: first}
	}
	w.refusal = nil
	w.tell(v)
	att, err := w.attempt(ctx)
	if err != nil {
		return nil, 0, err
	}
	b, err := w.c.startBreak(ctx, o, v, w.req.Notify, false)
	if err != nil {
		return nil, 0, err
	}
	w.req.Notify(Notice{Kind: NoticeBreaking, Lock: v.Snapshot.Name, Text: "breaking by rule " + b.rec.Rule})
	take, err := b.steps(ctx)
	switch {
	case errors.Is(err, errLetGo):
		b.finish(ctx, records.OutcomeReleased, "")
		return nil, 0, err
	case err != nil:
		b.finish(ctx, records.OutcomeAborted, err.Error())
		return nil, 0, fmt.Errorf("%w: %w", errChanged, err)
	case !take:
		b.finish(ctx, records.OutcomeAborted, "the policy's steps do not take the lock")
		return nil, 0, &NotPermittedError{Lock: v.Snapshot.Name, Permit: &Permit{Why: "the policy's steps do not take the lock"}}
	}
	snaps, ended, err := w.endings(ctx, b, v, all, att)
	if err != nil {
		b.finish(ctx, records.OutcomeAborted, err.Error())
		return nil, 0, err
	}
	h, owe, err := att.take(ctx, snaps, ended)
	if err = w.outcome(ctx, err); err != nil {
		b.finish(ctx, records.OutcomeAborted, err.Error())
		return nil, 0, err
	}
	dctx, cancel := detached(ctx, 5*time.Second)
	defer cancel()
	text := b.dismiss(dctx)
	w.req.Notify(Notice{Kind: NoticeBroken, Lock: v.Snapshot.Name,
		Text: fmt.Sprintf("broken and taken: token %d succeeds %d; %s", h.Token(), b.rec.Token, text)})
	return h, owe, nil
}

// endings reads the request's other locks once more and makes what ends the
// old hold. Further locks of the request that the same session holds end with
// it: they were taken in one transaction.
func (w *waiter) endings(ctx context.Context, b *breaking, v *Verdict, all map[string]*Verdict, att *attempt) (map[string]*evidence.Snapshot, map[string]*ending, error) {
	name := w.nameOf(v)
	e, err := b.ending(ctx, records.OutcomeTaken, att.sess.id)
	if err != nil {
		return nil, nil, err
	}
	ended := map[string]*ending{name: e}
	snaps := snapshots(all)
	for _, n := range w.req.Names {
		if n == name {
			continue
		}
		s, err := w.c.reader.Read(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		snaps[n] = s
		if !s.Held() {
			continue
		}
		if s.SessionID() != v.Snapshot.SessionID() {
			return nil, nil, fmt.Errorf("%w: lock %s is held by another session", errChanged, n)
		}
		vv := *v
		vv.Snapshot = s
		ended[n] = &ending{
			guards: []consulkv.Op{consulkv.CheckSession(s.Key, s.SessionID()), consulkv.CheckIndex(s.Key, s.Index()),
				consulkv.CheckIndex(w.c.keys.Fence(n), s.Deps[w.c.keys.Fence(n)])},
			end:   []consulkv.Op{consulkv.Unlock(s.Key, b.ended(s), s.SessionID())},
			fence: b.leaves(&vv),
		}
	}
	return snaps, ended, nil
}

// watchLock wakes whenever something that Consul knows of a held lock changed.
// done is closed when its goroutines have ended, after ctx.
func (c *Client) watchLock(ctx context.Context, s *evidence.Snapshot) (wake <-chan struct{}, done <-chan struct{}) {
	ch, end := make(chan struct{}, 1), make(chan struct{})
	poke := func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	watches := []func(){
		func() { follow(ctx, c.keyWatcher(s.Key, 0), poke) },
		func() { follow(ctx, c.keyWatcher(c.keys.Progress(s.Name), time.Second), poke) },
		func() { follow(ctx, c.keyWatcher(c.keys.Approval(s.Name), time.Second), poke) },
	}
	if s.Session != nil && s.Session.Node != "" {
		node := s.Session.Node
		watches = append(watches, func() {
			follow(ctx, consulkv.NewWatcher(c.consul, consulkv.WatchOptions{Name: "health of " + node, MinInterval: time.Second},
				func(q *api.QueryOptions) (api.HealthChecks, *api.QueryMeta, error) {
					return c.consul.API().Health().Node(node, q)
				}), poke)
		})
	}
	left := make(chan struct{}, len(watches))
	for _, f := range watches {
		go func() { defer func() { left <- struct{}{} }(); f() }()
	}
	go func() {
		for range watches {
			<-left
		}
		close(end)
	}()
	return ch, end
}

// follow pokes at each answer, the first included (what changed since the
// caller's own read is not lost), and at an error, so that the caller's next
// read reports it.
func follow[T any](ctx context.Context, w *consulkv.Watcher[T], poke func()) {
	for ctx.Err() == nil {
		_, err := w.Next(ctx)
		poke()
		if err != nil && sleep(ctx, time.Second) != nil {
			return
		}
	}
}

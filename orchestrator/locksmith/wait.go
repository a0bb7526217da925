package locksmith

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// Request says which locks are wanted, and how.
type Request struct {
	// Names of the locks; all are taken in one transaction or none.
	Names []string
	// SlotsOf is the name of the semaphore of which Names are all slots, each
	// called SlotsOf.<number>; empty: they are any locks. It is for AcquireAny.
	SlotsOf string
	// Operation says what the holder does, without arguments: they may be
	// secret.
	Operation string
	RolloutID string
	// TTL of the session; 0 is DefaultTTL. Consul takes 10 s to 24 h.
	TTL time.Duration
	// Quiesce is the pause that the next holder owes if this one does not
	// release: 0 where every participant checks the order.
	Quiesce time.Duration
	// Nonce of the holder record; empty makes one.
	Nonce string
	// Processes must be gone too before the hold is proved dead.
	Processes []records.Process
	// Try does not wait for the lock at all.
	Try bool
	// Wait bounds the wait for the lock; 0: no bound. It also bounds how long a
	// Consul that does not answer is tried again. A break that has begun and a
	// pause that is owed go on past it.
	Wait time.Duration
	// Reach is for how long a Try asks again where Consul does not answer; 0: it
	// asks once.
	Reach time.Duration
	// NoBreak judges and explains, but never breaks.
	NoBreak bool
	// Cluster is what the caller knows of the cluster's past; nil: the wait
	// makes a memory of its own.
	Cluster *evidence.Cluster
	// Notify is told what happens while it waits; it may be nil. It is called
	// from the caller's goroutine.
	Notify func(Notice)

	// among are the locks of which one will be taken by the same attempt; nil:
	// Names.
	among []string
	// span is that of the hold; nil: it is not traced.
	span *tracing.Span
}

// Kinds of notices.
const (
	NoticeWaiting  = "waiting"  // refused for now; Status says by whom and why
	NoticeBreaking = "breaking" // a break begins
	NoticeStep     = "step"     // a step of a break
	NoticeBroken   = "broken"   // the old hold is ended and the lock taken
	NoticeStopped  = "stopped"  // a break came to nothing; it is judged anew
	NoticeQuiesce  = "quiesce"  // a pause that is owed is being served
	NoticeOutage   = "outage"   // Consul does not answer; it is tried again
)

// Notice is one thing that happens while a lock is waited for.
type Notice struct {
	Kind   string
	Lock   string
	Status *Status
	Text   string
}

// MaxLocks is how many locks one acquisition takes: a break of all of them must
// fit into one transaction.
const MaxLocks = 8

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
	if err := c.normalise(&req, MaxLocks); err != nil {
		return nil, err
	}
	ctx = req.hurry(ctx)
	w := &waiter{c: c, req: &req, obs: map[string]*Observer{}, start: time.Now(), failed: map[string]failure{}, free: map[string]freeSince{}}
	return traced(ctx, &req, func(ctx context.Context) (*Hold, error) {
		return outlast(ctx, &req, w.start, func() (*Hold, bool, error) {
			w.cluster, w.reached = req.Cluster, false
			h, err := w.run(ctx)
			return h, w.reached, err
		})
	})
}

// hurry bounds the tries of whatever the request needs of Consul.
func (r *Request) hurry(ctx context.Context) context.Context {
	switch {
	case r.Try:
		return consulkv.Until(ctx, time.Now().Add(r.Reach))
	case r.Wait > 0:
		return consulkv.Until(ctx, time.Now().Add(r.Wait))
	}
	return ctx
}

// normalise gives every lock its one name, and fills in the defaults.
func (c *Client) normalise(req *Request, most int) error {
	if req.TTL == 0 {
		req.TTL = DefaultTTL
	}
	if req.Notify == nil {
		req.Notify = func(Notice) {}
	}
	switch n := len(req.Names); {
	case n == 0:
		return errors.New("no lock is named")
	case n > most:
		return fmt.Errorf("%d locks are named: %d at most", n, most)
	}
	names := make([]string, 0, len(req.Names))
	for _, n := range req.Names {
		name := c.lockName(n)
		if !strings.Contains(n, "/") {
			if err := keys.CheckName("lock", n); err != nil {
				return err
			}
		}
		if strings.HasSuffix(name, "/") {
			return fmt.Errorf("lock name %q is not allowed: it is a folder", name)
		}
		if slices.Contains(names, name) {
			return fmt.Errorf("lock %s is named twice: %w", name, ErrAlreadyHeld)
		}
		names = append(names, name)
	}
	req.Names = names
	return nil
}

// lockName is the short name of an own lock that is named by its whole key.
func (c *Client) lockName(n string) string {
	name, _ := c.keys.LockName(c.keys.Lock(n))
	return name
}

// waiter is one Acquire under way.
type waiter struct {
	c     *Client
	req   *Request
	start time.Time
	att   *attempt
	// ready is the session of the first attempt; nil: it is made when it is needed.
	ready *ahead
	// obs remember each lock for as long as the wait lasts.
	obs     map[string]*Observer
	cluster *evidence.Cluster
	// elsewhere ends when a break is not needed any more; nil: never.
	elsewhere context.Context //nolint:containedctx // it is a signal, and has an owner
	// told is the state that was last told to the caller.
	told string
	// endedAt is when a hold was seen to end with a lock-delay, and delay how
	// long that is.
	endedAt time.Time
	delay   time.Duration
	// free is since when each lock is seen to be free, without a break.
	free map[string]freeSince
	// refusal is why a HOT lock was last not broken.
	refusal *NotPermittedError
	// permit is that of a HOT lock that is about to be broken, and stays where it is known
	// that this token breaks nothing before policies are applied.
	permit *Permit
	// failed are the holds that could not be broken, so that they are not
	// tried without end.
	failed map[string]failure
	// reached: Consul has answered.
	reached bool
}

// triesAtOnce bounds how often -try begins anew because somebody was faster.
const triesAtOnce = 10

func (w *waiter) run(ctx context.Context) (_ *Hold, err error) {
	bctx, cancel := context.WithCancel(ctx)
	var watched, dropped <-chan struct{}
	w.ready = w.c.goAhead(ctx, w.req)
	// Nobody waits for hours with a session that it does not need.
	dropReady := func() {
		if w.ready != nil {
			dropped, w.ready = w.ready.drop(ctx), nil
		}
	}
	defer func() {
		cancel()
		dropReady()
		if watched != nil {
			<-watched
		}
		if dropped != nil {
			<-dropped
		}
		if err != nil {
			w.drop(ctx)
		}
	}()
	for races := 0; ; {
		verdicts, err := w.observe(ctx)
		if err != nil {
			return nil, err
		}
		w.reached = true
		w.noteFree(verdicts)
		if !slices.ContainsFunc(verdicts, func(v *Verdict) bool { return v.Snapshot.Held() }) {
			h, owe, err := w.take(ctx, verdicts)
			switch {
			case err == nil:
				return w.settle(ctx, h, owe, w.seenFree())
			case errors.Is(err, errCooling):
				err = w.cool(ctx, w.coolingOf(err, verdicts))
			case errors.Is(err, errRaced):
				races++
				err = w.raced(ctx, verdicts[0], races, err)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		dropReady()
		if w.cluster == nil && !w.req.Try {
			w.cluster, watched = evidence.WatchCluster(bctx, w.c.consul)
			for _, o := range w.obs {
				o.cluster = w.cluster
			}
		}
		h, owe, err := w.blocked(ctx, verdicts)
		if err != nil {
			return nil, err
		}
		if h != nil {
			return w.settle(ctx, h, owe, 0)
		}
	}
}

// freeSince is since when a lock is known to be free, on this process's monotonic
// clock: by the indexes of its key and of what is owed, nobody had it since.
type freeSince struct {
	index, fence uint64
	at           time.Time
}

// noteFree remembers which locks are free, and since when. A key that is not there
// tells nothing: somebody may have had it, and it be deleted, unseen.
func (w *waiter) noteFree(verdicts []*Verdict) {
	for _, v := range verdicts {
		s := v.Snapshot
		now := freeSince{s.Index(), s.Deps[w.c.keys.Fence(s.Name)], s.ReadAt}
		switch was, ok := w.free[s.Name]; {
		case s.Held() || now.index == 0:
			delete(w.free, s.Name)
		case !ok || was.index != now.index || was.fence != now.fence:
			w.free[s.Name] = now
		}
	}
}

// seenFree is for how long all locks of the request were seen to be free when they
// were taken: the taking transaction proved the indexes that were seen.
func (w *waiter) seenFree() time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, n := range w.req.Names {
		f, ok := w.free[n]
		if !ok {
			return 0
		}
		least = min(least, time.Since(f.at))
	}
	return least
}

// drop ends the session of an acquisition that came to nothing.
func (w *waiter) drop(ctx context.Context) {
	if w.att != nil {
		w.att.sess.close(ctx)
		w.att = nil
	}
}

// observe judges every lock of the request, in the order of its names.
func (w *waiter) observe(ctx context.Context) ([]*Verdict, error) {
	out := make([]*Verdict, len(w.req.Names))
	for i, n := range w.req.Names {
		o := w.obs[n]
		if o == nil {
			o = w.c.NewObserver(n, w.cluster)
			w.obs[n] = o
		}
		v, err := o.observe(ctx)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

var (
	// errCooling: Consul's lock-delay refuses a free lock.
	errCooling = errors.New("lock-delay")
	// errRaced: somebody was faster, or changed what was read.
	errRaced = errors.New("changed hands while it was taken")
)

// coolingError is an errCooling that names the lock's key.
type coolingError struct{ key string }

func (e *coolingError) Error() string        { return "lock-delay of " + e.key }
func (e *coolingError) Is(target error) bool { return target == errCooling }

func (w *waiter) coolingOf(err error, verdicts []*Verdict) *Verdict {
	if e, ok := errors.AsType[*coolingError](err); ok {
		for _, v := range verdicts {
			if v.Snapshot.Key == e.key {
				return v
			}
		}
	}
	return verdicts[0]
}

// raced waits a little after somebody was faster. It returns an error if the
// wait is over: a lock that changes all the time must not keep a bounded wait
// going.
func (w *waiter) raced(ctx context.Context, v *Verdict, races int, cause error) error {
	if left, bounded := w.left(); w.req.Try && races >= triesAtOnce || bounded && left <= 0 {
		return fmt.Errorf("lock %s: gave up after %d tries: %w", v.Snapshot.Name, races, cause)
	}
	return sleep(ctx, fate.N(ctx, "raced", time.Duration(min(races, 10))*20*time.Millisecond))
}

func (w *waiter) attempt(ctx context.Context) (*attempt, error) {
	if w.att != nil && w.att.sess.dead() == nil {
		return w.att, nil
	}
	w.drop(ctx)
	ready := w.ready
	w.ready = nil
	att, err := w.c.begin(ctx, w.req, ready)
	if err != nil {
		return nil, err
	}
	w.att = att
	return att, nil
}

// take tries to acquire locks that nobody holds.
func (w *waiter) take(ctx context.Context, verdicts []*Verdict) (*Hold, time.Duration, error) {
	for _, v := range verdicts {
		if err := usable(v.Snapshot); err != nil {
			return nil, 0, err
		}
	}
	att, err := w.attempt(ctx)
	if err != nil {
		return nil, 0, err
	}
	h, owe, err := att.take(ctx, w.snapshots(verdicts), nil, w.seenFree())
	return h, owe, w.outcome(ctx, err)
}

// outcome sorts the error of an acquiring transaction. After an ambiguous one
// that does not stand, the session is destroyed, so that a request that is
// still on its way cannot take the lock later. Where Consul does not answer that
// either, it can: then the lock is held, and nobody works under it, until the
// session ends by its check or TTL, since nobody keeps it alive any more.
func (w *waiter) outcome(ctx context.Context, err error) error {
	ref, refused := isRefused(err)
	switch {
	case err == nil:
		w.att = nil
		return nil
	case errors.Is(err, errNotOurs):
		w.drop(ctx)
		return fmt.Errorf("%w: %w", errRaced, err)
	case refused:
		for _, o := range ref.Ops {
			switch {
			case strings.Contains(o.What, "lock delay"):
				return &coolingError{o.Key}
			case strings.Contains(o.What, "invalid session"):
				// It ended, and its keepers have not noticed yet.
				w.drop(ctx)
			}
		}
		return fmt.Errorf("%w: %w", errRaced, err)
	}
	return err
}

func (w *waiter) snapshots(verdicts []*Verdict) map[string]*evidence.Snapshot {
	out := make(map[string]*evidence.Snapshot, len(verdicts))
	for i, v := range verdicts {
		out[w.req.Names[i]] = v.Snapshot
	}
	return out
}

// settle serves what is owed and hands the hold over. The pause is one between the
// old hold and what this one does, so that the time counts for which the locks were
// seen to be free: what waits for a lock-delay serves it meanwhile.
func (w *waiter) settle(ctx context.Context, h *Hold, owe, free time.Duration) (*Hold, error) {
	w.att = nil
	if owe <= 0 {
		return h, nil
	}
	rest := max(0, owe-free)
	if rest > 0 {
		w.req.Notify(Notice{Kind: NoticeQuiesce, Lock: strings.Join(h.names, ", "),
			Text: fmt.Sprintf("waiting %s for what the last holder may still have running", round(rest))})
		_, span := tracing.Start(ctx, tracing.Quiesce)
		defer span.End()
	}
	if err := h.serve(consulkv.Unhurried(ctx), rest); err != nil {
		// What is owed stays in fence/<name> for the next holder.
		return nil, errors.Join(err, h.giveUp(ctx))
	}
	return h, nil
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
	return &RefusedError{Status: w.status(v), Why: why, Hot: v.State == Hot}
}

func (w *waiter) status(v *Verdict) *Status {
	st := w.c.Status(v)
	p := w.permit
	if w.refusal != nil && w.refusal.Lock == v.Snapshot.Name {
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
		key += w.refusal.Kind()
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
	d := 500*time.Millisecond + fate.N(ctx, "cooling", 500*time.Millisecond)
	if cooling.DelayLeft > 0 {
		d = min(max(cooling.DelayLeft, 100*time.Millisecond), 2*time.Second)
	}
	if left, bounded := w.left(); bounded {
		d = min(d, max(left, time.Millisecond))
	}
	return sleep(ctx, d)
}

// noteEnd remembers when a hold was seen to end, and with what lock-delay.
func (w *waiter) noteEnd(s *evidence.Snapshot) {
	w.endedAt, w.delay = time.Now(), DefaultQuiesce
	if s.Session != nil {
		w.delay = s.Session.LockDelay
	}
}

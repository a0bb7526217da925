package locksmith

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// MaxSlots is how many locks AcquireAny chooses from at most.
const MaxSlots = 256

// AcquireAny takes exactly one of the locks of the request: the first that is free
// or may be broken. Else it is as Acquire.
//
// However many slots there are, waiting for them takes the same few blocking
// queries: one tells when a slot's key changes, the others are those of an
// [evidence.Sweep] and bring the evidence that the holders are judged by.
//
// No slot stays free while somebody waits, and a slot that comes free does not
// send all waiters to take it: whoever was beaten to one before looks again after
// a moment of chance, and goes for it only if it is free still.
//
// Invariant: all attempts of one call have one session, and one transaction is
// under way at a time; after one that may stand although it was not seen to, that
// session ends before another slot is tried. So no call ever works under two slots.
// Where Consul does not answer the request that ends the session, it ends by its check
// or TTL, since nobody keeps it alive any more: a transaction that lands late can have a
// slot for as long, under which nobody works.
func (c *Client) AcquireAny(ctx context.Context, req Request) (*Hold, error) {
	if err := c.normalise(&req, MaxSlots); err != nil {
		return nil, err
	}
	ctx = req.hurry(ctx)
	start := time.Now()
	return traced(ctx, &req, func(ctx context.Context) (*Hold, error) {
		return outlast(ctx, &req, start, func() (*Hold, bool, error) {
			s := c.newSlots(&req, start)
			h, err := s.run(ctx)
			return h, s.reached, err
		})
	})
}

func (c *Client) newSlots(req *Request, start time.Time) *slots {
	s := &slots{c: c, req: req, start: start, wake: make(chan struct{}, 1), pairs: map[string]*api.KVPair{}, news: map[string]*evidence.Snapshot{}}
	for _, n := range req.Names {
		one := *req
		one.Names, one.among = []string{n}, req.Names
		key := c.keys.Lock(n)
		s.all = append(s.all, &slot{key: key, w: &waiter{
			c: c, req: &one, obs: map[string]*Observer{n: c.NewObserver(n, req.Cluster)}, start: s.start, failed: map[string]failure{},
		}})
		s.prefix = common(s.prefix, key)
	}
	if req.SlotsOf != "" {
		s.prefix = c.keys.Lock(req.SlotsOf) + "." // those that others count too
	}
	return s
}

// common is what a and b begin with; nothing was common before the first.
func common(a, b string) string {
	if a == "" {
		return b
	}
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// slots is one AcquireAny under way.
type slots struct {
	c      *Client
	req    *Request
	start  time.Time
	all    []*slot
	prefix string
	att    *attempt
	// races are how often somebody was faster lately.
	races int
	// reached: Consul has answered.
	reached bool
	// waited: it looked, and found none that it could have.
	waited bool
	said   bool

	// wake is poked when there is something new below.
	wake chan struct{}
	mu   sync.Mutex
	// pairs are the slots' keys as they were read last.
	pairs map[string]*api.KVPair
	// news are snapshots that were not judged yet, by key.
	news map[string]*evidence.Snapshot
	// failed is why the keys cannot be read.
	failed error
	// freed ends the patience of a break when a slot comes free.
	freed context.CancelFunc
}

// slot is one of the locks.
type slot struct {
	key string
	// w judges, takes and breaks it.
	w *waiter
	// v is the last verdict on its holder; nil: there is none yet.
	v *Verdict
	// cooling is until when it is not tried, because a lock-delay refused it at
	// coolingAt, the key's index.
	cooling   time.Time
	coolingAt uint64
	// ask is when a permit that was refused is asked for again.
	ask time.Time
}

func (l *slot) name() string { return l.w.req.Names[0] }

func (s *slots) run(ctx context.Context) (_ *Hold, err error) {
	wctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		if err != nil && s.att != nil {
			s.att.sess.close(ctx)
		}
	}()
	if err := s.readKeys(ctx); err != nil {
		return nil, err
	}
	s.reached = true
	if err := s.agree(ctx, math.MaxUint64); err != nil {
		return nil, err
	}
	h, err := s.takeFree(ctx)
	if h != nil || err != nil {
		return h, err
	}
	if s.req.Try {
		return s.try(ctx)
	}
	s.watch(wctx, &wg)
	tick := time.NewTicker(rejudgeEvery)
	defer tick.Stop()
	for {
		if err := s.agree(ctx, math.MaxUint64); err != nil {
			return nil, err
		}
		if h, err := s.takeFree(ctx); h != nil || err != nil {
			return h, err
		}
		s.judge()
		if h, err := s.breakOne(ctx); h != nil || err != nil {
			return h, err
		}
		if left, bounded := s.all[0].w.left(); bounded && left <= 0 {
			return nil, s.refusal(ctx, "waited "+s.req.Wait.String())
		}
		s.tell()
		if err := s.wait(ctx, tick.C); err != nil {
			return nil, err
		}
	}
}

// wait waits for news, for the time to judge anew, or for the end of the wait.
func (s *slots) wait(ctx context.Context, tick <-chan time.Time) error {
	s.waited = true
	var end <-chan time.Time
	if left, bounded := s.all[0].w.left(); bounded {
		t := time.NewTimer(left)
		defer t.Stop()
		end = t.C
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.wake:
	case <-tick:
	case <-end:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// try is for who does not wait: every holder is looked at once.
func (s *slots) try(ctx context.Context) (*Hold, error) {
	for range triesAtOnce {
		for _, l := range s.all {
			v, err := l.w.obs[l.name()].observe(ctx)
			if err != nil {
				return nil, err
			}
			l.v = v
		}
		if h, err := s.breakOne(ctx); h != nil || err != nil {
			return h, err
		}
		// Whoever lost a race meanwhile may find another slot free.
		if err := s.readKeys(ctx); err != nil {
			return nil, err
		}
		if len(s.free()) == 0 {
			break
		}
		if h, err := s.takeFree(ctx); h != nil || err != nil {
			return h, err
		}
	}
	return nil, s.refusal(ctx, "not waiting")
}

// watch follows the slots until ctx ends.
func (s *slots) watch(ctx context.Context, wg *sync.WaitGroup) {
	if s.req.Cluster == nil {
		cluster, done := evidence.WatchCluster(ctx, s.c.consul)
		for _, l := range s.all {
			l.w.cluster, l.w.obs[l.name()].cluster = cluster, cluster
		}
		wg.Go(func() { <-done })
	}
	wg.Go(func() { s.watchKeys(ctx) })
	wg.Go(func() {
		sweep := s.c.reader.NewSweep([]string{s.prefix})
		sweep.Every = rejudgeEvery
		_ = sweep.Run(ctx, func(batch []*evidence.Snapshot) { // it ends with ctx
			s.mu.Lock()
			for _, snap := range batch {
				s.news[snap.Key] = snap
			}
			s.mu.Unlock()
			s.poke()
		})
	})
}

func (s *slots) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// keysEvery is the least time between two reads of the slots' keys: each read
// returns all of them.
const keysEvery = 20 * time.Millisecond

func (s *slots) watchKeys(ctx context.Context) {
	w := consulkv.NewWatcher(s.c.consul, consulkv.WatchOptions{Name: s.prefix, MinInterval: keysEvery},
		func(q *api.QueryOptions) (api.KVPairs, *api.QueryMeta, error) {
			q.RequireConsistent = true
			return s.c.consul.API().KV().List(s.prefix, q)
		})
	for {
		list, err := w.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		s.took(list, err)
		s.poke()
		if err != nil {
			w.Restart()
			if sleep(ctx, time.Second) != nil {
				return
			}
		}
	}
}

func (s *slots) readKeys(ctx context.Context) error {
	list, err := s.c.consul.List(ctx, s.prefix)
	if err == nil {
		s.took(list, nil)
	}
	return err
}

func (s *slots) took(list api.KVPairs, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed = err; err != nil {
		return
	}
	clear(s.pairs)
	for _, p := range list {
		s.pairs[p.Key] = p
	}
	if s.freed != nil && len(s.freeNow()) > 0 {
		s.freed()
	}
}

// free are the slots that nobody holds and no lock-delay is known to guard.
func (s *slots) free() []*slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freeNow()
}

func (s *slots) freeNow() []*slot {
	var out []*slot
	for _, l := range s.all {
		p := s.pairs[l.key]
		if p != nil && (p.Session != "" || p.ModifyIndex == l.coolingAt && time.Now().Before(l.cooling)) {
			continue
		}
		out = append(out, l)
	}
	return out
}

// hold names the hold of a slot as its key was read last; "" if it is free.
func (s *slots) hold(l *slot) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pairs[l.key]
	if p == nil || p.Session == "" {
		return ""
	}
	return fmt.Sprintf("%s@%d", p.Session, p.ModifyIndex)
}

// takeFree takes one of the free slots, one after which nothing is owed first. A
// nil hold and a nil error mean that there is none.
func (s *slots) takeFree(ctx context.Context) (*Hold, error) {
	free := s.free()
	if len(free) == 0 {
		return nil, nil
	}
	if s.waited || s.races > 0 {
		// All who wait learn of it in the same moment.
		if err := sleep(ctx, fate.N(ctx, "raced", time.Duration(min(s.races+1, 10))*20*time.Millisecond)); err != nil {
			return nil, err
		}
		free = s.free()
	}
	fate.Shuffle(ctx, "slots", len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	var owing []*slot
	for _, l := range free {
		v, err := l.w.obs[l.name()].observe(ctx)
		if err != nil {
			return nil, err
		}
		if v.Snapshot.Held() {
			s.beaten(l, v)
			continue
		}
		l.v = v
		if owed, _ := s.c.owed(v.Snapshot); owed != nil {
			owing = append(owing, l)
			continue
		}
		if h, err := s.take(ctx, l, v); h != nil || err != nil {
			return h, err
		}
	}
	for _, l := range owing {
		if h, err := s.take(ctx, l, l.v); h != nil || err != nil {
			return h, err
		}
	}
	return nil, nil
}

// beaten notes that a slot that looked free has a holder.
func (s *slots) beaten(l *slot, v *Verdict) {
	s.races++
	l.v = v
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pairs[l.key]; p == nil || p.ModifyIndex < v.Snapshot.Index() {
		s.pairs[l.key] = v.Snapshot.Pair
	}
}

// with lends the session of the call to a slot while f takes or breaks it.
func (s *slots) with(l *slot, f func() (*Hold, time.Duration, error)) (*Hold, time.Duration, error) {
	if s.att != nil {
		s.att.aim(l.w.req)
	}
	l.w.att, s.att = s.att, nil
	defer func() { s.att, l.w.att = l.w.att, nil }()
	return f()
}

// take takes a free slot. A nil hold and a nil error mean: try another.
func (s *slots) take(ctx context.Context, l *slot, v *Verdict) (*Hold, error) {
	h, owe, err := s.with(l, func() (*Hold, time.Duration, error) { return l.w.take(ctx, []*Verdict{v}) })
	switch {
	case err == nil:
		return s.settle(ctx, l, h, owe)
	case errors.Is(err, errCooling):
		s.mu.Lock()
		l.cooling, l.coolingAt = time.Now().Add(500*time.Millisecond+fate.N(ctx, "cooling", 500*time.Millisecond)), v.Snapshot.Index()
		s.mu.Unlock()
		return nil, nil
	case errors.Is(err, errRaced):
		s.races++
		// What was read of it is out of date: it is free again when it is read so.
		return nil, s.reread(ctx, l)
	}
	return nil, err
}

func (s *slots) reread(ctx context.Context, l *slot) error {
	p, err := s.c.consul.Get(ctx, l.key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p == nil {
		delete(s.pairs, l.key)
	} else {
		s.pairs[l.key] = p
	}
	return nil
}

// judge judges all holders anew: ages grow, and processes of this host die,
// without any news.
func (s *slots) judge() {
	s.mu.Lock()
	news := maps.Clone(s.news)
	clear(s.news)
	s.mu.Unlock()
	now := time.Now()
	due := time.Duration(len(s.all)) * rejudgeEvery / rejudgeAtOnce
	if due <= rejudgeEvery {
		due = 0 // each time
	}
	for _, l := range s.all {
		snap := news[l.key]
		if snap == nil && l.v != nil && now.Sub(l.v.At) >= due {
			snap = l.v.Snapshot
		}
		if snap != nil && snap.Held() {
			l.v = l.w.obs[l.name()].Judge(snap, now)
		}
	}
}

// rejudgeAtOnce bounds, for each rejudgeEvery, how many holders are judged
// without news of them: with more slots, each is judged less often.
const rejudgeAtOnce = 10

// judged are the verdicts on those who hold a slot now.
func (s *slots) judged() map[*slot]*Verdict {
	out := map[*slot]*Verdict{}
	for _, l := range s.all {
		if l.v != nil && l.v.Snapshot.Held() && l.v.Snapshot.Hold() == s.hold(l) {
			out[l] = l.v
		}
	}
	return out
}

// breakOne breaks the first slot that may be broken. A nil hold and a nil error
// mean that there is none, or that it came to nothing.
func (s *slots) breakOne(ctx context.Context) (*Hold, error) {
	verdicts := s.judged()
	for _, l := range s.all {
		v := verdicts[l]
		if v == nil || !l.w.breakable([]*Verdict{v}) || time.Now().Before(l.ask) {
			continue
		}
		// What a sweep tells finds candidates; this is the verdict.
		v, err := l.w.obs[l.name()].observe(ctx)
		if err != nil {
			return nil, err
		}
		if l.v = v; v.State != Hot {
			continue
		}
		h, owe, err := s.breakAndTake(ctx, l, v)
		switch {
		case err == nil:
			return s.settle(ctx, l, h, owe)
		case errors.As(err, &l.w.refusal):
			l.ask = time.Now().Add(time.Second)
			l.w.tell(v)
		case errors.Is(err, errChanged), errors.Is(err, errStep), errors.Is(err, errLetGo), errors.Is(err, errRaced), errors.Is(err, errCooling), errors.Is(err, errElsewhere):
			s.req.Notify(Notice{Kind: NoticeStopped, Lock: l.name(), Text: err.Error()})
			return nil, s.reread(ctx, l)
		default:
			return nil, err
		}
	}
	return nil, nil
}

func (s *slots) breakAndTake(ctx context.Context, l *slot, v *Verdict) (*Hold, time.Duration, error) {
	elsewhere, freed := context.WithCancel(ctx)
	s.mu.Lock()
	s.freed, l.w.elsewhere = freed, elsewhere
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.freed, l.w.elsewhere = nil, nil
		s.mu.Unlock()
		freed()
	}()
	if len(s.free()) > 0 {
		return nil, 0, errElsewhere
	}
	return s.with(l, func() (*Hold, time.Duration, error) { return l.w.breakAndTake(ctx, []*Verdict{v}) })
}

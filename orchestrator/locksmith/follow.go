package locksmith

import (
	"context"
	"slices"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/policies"
)

// Following says what Follow follows and whom it tells.
type Following struct {
	// Names are the locks; none: all locks of this Consul.
	Names []string
	// Tell is given the verdicts that were made anew: on what changed, and on
	// locks of which time alone may have changed the verdict. It is called about
	// once a second also with none, so that ages can be shown. The first call
	// has all locks; a lock that is gone for good comes without a Pair.
	Tell func(changed []*Verdict)
	// Failed is told of what cannot be read, and of nil when it can again; see
	// evidence.Sweep. May be nil.
	Failed func(part string, err error)
	// Source tells of the locks in place of a sweep of this client's own, until its
	// ctx ends, as evidence.Sweep does; nil: there is none. Names are not looked at.
	Source func(ctx context.Context, tell func([]*evidence.Snapshot)) error
}

// followTick is how often Follow looks whether a verdict's time has come.
const followTick = time.Second

// Follow watches locks by blocking queries until ctx ends, whose cause it
// returns. It changes nothing. Tell and Failed are called from one goroutine.
func (c *Client) Follow(ctx context.Context, f Following) error {
	ctx, cancel := context.WithCancel(ctx)
	roots, only := []string{""}, map[string]bool{}
	if len(f.Names) > 0 {
		roots = nil
	}
	for _, n := range f.Names {
		key := c.keys.Lock(n)
		only[key] = true
		roots = append(roots, key)
	}
	events := make(chan func())
	run := &followed{c: c, f: f, locks: map[string]*followedLock{}}
	send := func(do func()) {
		select {
		case events <- do:
		case <-ctx.Done():
		}
	}
	source := f.Source
	sweep := c.reader.NewSweep(roots)
	if source == nil {
		source = sweep.Run
	}
	ended := make(chan struct{})
	sweep.Failed = func(part string, err error) {
		send(func() {
			if f.Failed != nil {
				f.Failed(part, err)
			}
		})
	}
	go func() {
		defer close(ended)
		// It ends with ctx, and for no other reason.
		_ = source(ctx, func(batch []*evidence.Snapshot) {
			if len(only) > 0 {
				batch = slices.DeleteFunc(batch, func(s *evidence.Snapshot) bool { return !only[s.Key] })
			}
			send(func() { run.take(ctx, batch) })
		})
	}()
	defer func() { cancel(); <-ended }()
	tick := time.NewTicker(followTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case do := <-events:
			do()
		case now := <-tick.C:
			f.Tell(run.due(ctx, now))
		}
	}
}

// followed are the locks of one Follow.
type followed struct {
	c     *Client
	f     Following
	locks map[string]*followedLock // by key
}

type followedLock struct {
	obs  *Observer
	s    *evidence.Snapshot
	cool bool
	// due is when the lock is judged again though nothing changed; zero: never.
	due     time.Time
	settled Settled
}

// coolingAgain is how often it is asked whether a lock-delay is over: Consul has
// no blocking query for it.
const coolingAgain = 5 * time.Second

// take judges what a sweep brought.
func (r *followed) take(ctx context.Context, batch []*evidence.Snapshot) {
	var changed []*Verdict
	semaphores := map[string]bool{}
	for _, s := range batch {
		semaphores[s.Key] = s.Semaphore != nil
	}
	var free []*evidence.Snapshot
	for _, s := range batch {
		if s.Slot != nil && (semaphores[s.Slot.Of] || r.locks[s.Slot.Of] != nil) {
			// It is shown with its semaphore.
			continue
		}
		free = append(free, s)
	}
	cooling := r.c.coolingOf(ctx, free)
	for _, s := range free {
		l := r.locks[s.Key]
		if l == nil {
			l = &followedLock{obs: r.c.NewObserver(s.Name, nil)}
			r.locks[s.Key] = l
		}
		l.s, l.cool = s, cooling[s.Key]
		changed = append(changed, r.judge(ctx, l, time.Now()))
		if s.Pair == nil {
			delete(r.locks, s.Key)
		}
	}
	r.f.Tell(changed)
}

// judge judges a lock. One that has become HOT is read again first. Nothing else is told
// meanwhile: while Consul does not answer, no clock runs on in what is shown.
func (r *followed) judge(ctx context.Context, l *followedLock, now time.Time) *Verdict {
	v := l.obs.Judge(l.s, now)
	if l.settled.Owes(r.c, v) {
		// Where Consul does not answer, what was known counts. The error is the source's
		// to tell: it reads the same.
		if again, err := l.obs.Settle(ctx, v); err == nil {
			v, l.s = again, again.Snapshot
		}
	}
	l.due = time.Time{}
	switch {
	case l.cool:
		v.State = Cooling
		l.due = now.Add(coolingAgain)
	case l.s.Semaphore != nil && len(v.Slots) > 0:
		l.due = now.Add(policies.RestlessEvery)
	case v.Policy != nil && l.s.Held():
		if d, ok := v.Policy.Steady(v.Facts, &v.Judgement, now); ok {
			l.due = now.Add(d)
		}
		if h := l.s.Holder; h != nil && r.c.reader.Local(h) {
			// That a process of this host ends, no query tells.
			l.due = now.Add(min(followTick, policies.RestlessEvery))
		}
	}
	return v
}

// due judges the locks whose time has come.
func (r *followed) due(ctx context.Context, now time.Time) []*Verdict {
	var list []*followedLock
	var cool []*evidence.Snapshot
	for _, l := range r.locks {
		if l.due.IsZero() || l.due.After(now) {
			continue
		}
		list = append(list, l)
		if l.cool {
			cool = append(cool, l.s)
		}
	}
	cooling := r.c.coolingOf(ctx, cool)
	out := make([]*Verdict, len(list))
	for i, l := range list {
		l.cool = l.cool && cooling[l.s.Key]
		out[i] = r.judge(ctx, l, now)
	}
	return out
}

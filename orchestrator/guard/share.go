package guard

import (
	"context"
	"sync"

	"github.com/aim-control/aimlock/orchestrator/evidence"
)

// onlookers are told of what this guard reads, so that who looks on asks Consul
// nothing. They never hold the loop up: what they have not taken is merged.
type onlookers struct {
	mu  sync.Mutex
	all map[*onlooker]struct{}
}

// onlooker is one of them. wake has room for one.
type onlooker struct {
	wake chan struct{}
	// locks are those not taken yet, by key, and policies whether those changed;
	// guarded by onlookers.mu.
	locks    map[string]*evidence.Snapshot
	policies bool
}

func (o *onlookers) join() *onlooker {
	l := &onlooker{wake: make(chan struct{}, 1), locks: map[string]*evidence.Snapshot{}}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = map[*onlooker]struct{}{}
	}
	o.all[l] = struct{}{}
	return l
}

func (o *onlookers) leave(l *onlooker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, l)
}

// tell gives news to all.
func (o *onlookers) tell(news func(*onlooker)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for l := range o.all {
		l.take(news)
	}
}

// take gives news to one; onlookers.mu is held.
func (l *onlooker) take(news func(*onlooker)) {
	news(l)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// taken are the news since the last call.
func (o *onlookers) taken(l *onlooker) (locks []*evidence.Snapshot, policies bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range l.locks {
		locks = append(locks, s)
	}
	clear(l.locks)
	policies, l.policies = l.policies, false
	return locks, policies
}

// shown has onlookers see a lock.
func (g *Guard) shown(s *evidence.Snapshot) {
	g.onlookers.tell(func(l *onlooker) { l.locks[s.Key] = s })
}

// hidden has onlookers see that a lock is not watched any more.
func (g *Guard) hidden(s *evidence.Snapshot) {
	gone := *s
	gone.Pair = nil
	g.shown(&gone)
}

// Share tells of the locks that this guard watches, all of them first and then those
// that changed, until ctx ends, whose cause it returns. It asks Consul nothing, and
// tells nothing while Run does not run. A lock that is gone comes without a Pair.
func (g *Guard) Share(ctx context.Context, tell func([]*evidence.Snapshot)) error {
	l := g.onlookers.join()
	defer g.onlookers.leave(l)
	select {
	case g.joined <- l:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.wake:
			if locks, _ := g.onlookers.taken(l); len(locks) > 0 {
				tell(locks)
			}
		}
	}
}

// SharePolicies tells when what is applied or suspended may have changed, first of all
// once, until ctx ends. It asks Consul nothing.
func (g *Guard) SharePolicies(ctx context.Context, changed func()) {
	l := g.onlookers.join()
	defer g.onlookers.leave(l)
	changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
			if _, policies := g.onlookers.taken(l); policies {
				changed()
			}
		}
	}
}

// welcome gives a new onlooker what is known. It belongs to the loop.
func (g *Guard) welcome(l *onlooker) {
	g.onlookers.mu.Lock()
	defer g.onlookers.mu.Unlock()
	l.take(func(l *onlooker) {
		for key, k := range g.table.locks {
			l.locks[key] = k.snap
		}
	})
}

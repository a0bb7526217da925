package evidence

import (
	"context"
	"sync"
	"time"
)

// Bounds of following allocations. Nomad takes 100 connections of one address
// unless it is told otherwise, and a query that waits keeps one.
const (
	allocFollowers = 64
	// allocTurn is how long one query waits for news while every allocation
	// has one under way; with more of them than followers they take turns, and
	// each waits less.
	allocTurn = 20 * time.Second
	// allocAgain is the pause after an error.
	allocAgain = 2 * time.Second
)

// allocFollower follows the allocations of holders by blocking queries, one for
// each: what changes in others costs nothing. Up to 64 of them are followed
// without a gap; of more, each is asked within some 20 s, and at 64 requests a
// second at most. Nothing is read of the node of an allocation that stands
// still: when Nomad calls a client down, the status of its allocations changes.
type allocFollower struct {
	nomad Nomad
	// tell is given each answer that differs from the one before, from the
	// goroutines of the followers.
	tell func(ctx context.Context, ref AllocRef, seen allocSeen)

	mu sync.Mutex
	// refs are those that are followed; waiting those of them whose turn has to
	// come, the oldest first.
	refs    map[AllocRef]*allocFollowed
	waiting []*allocFollowed
	workers int
	wg      sync.WaitGroup
}

// allocFollowed is one allocation. What it has seen is used by the one follower
// that has its turn.
type allocFollowed struct {
	ref    AllocRef
	seen   allocSeen
	index  uint64
	ctx    context.Context //nolint:containedctx // ends when it is not followed any more
	cancel context.CancelFunc
}

// follow begins to follow an allocation of which seen is known; one that is
// followed already is left. One that is gone does not come back.
func (f *allocFollower) follow(ctx context.Context, ref AllocRef, seen allocSeen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs[ref] != nil || seen.alloc != nil && seen.alloc.Gone {
		return
	}
	if f.refs == nil {
		f.refs = map[AllocRef]*allocFollowed{}
	}
	a := &allocFollowed{ref: ref, seen: seen, index: seen.index}
	a.ctx, a.cancel = context.WithCancel(ctx)
	f.refs[ref] = a
	f.waiting = append(f.waiting, a)
	if f.workers < allocFollowers {
		f.workers++
		f.wg.Go(func() { f.work(ctx) })
	}
}

// forget ends the following of an allocation that no lock names any more.
func (f *allocFollower) forget(ref AllocRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.refs[ref]; a != nil {
		a.cancel()
		delete(f.refs, ref)
	}
}

// known reports whether an allocation is followed and its last query answered,
// so that nobody need ask for it.
func (f *allocFollower) known(ref AllocRef) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refs[ref] != nil
}

// next takes whose turn it is, and how long its query may wait. Without any the
// follower ends.
func (f *allocFollower) next() (*allocFollowed, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.waiting) > 0 {
		a := f.waiting[0]
		f.waiting = f.waiting[1:]
		if a.ctx.Err() != nil {
			continue
		}
		turn := allocTurn
		if n := len(f.refs); n > allocFollowers {
			turn = max(time.Second, allocTurn*allocFollowers/time.Duration(n))
		}
		return a, turn
	}
	f.workers--
	return nil, 0
}

// again puts an allocation at the end of the line.
func (f *allocFollower) again(a *allocFollowed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs[a.ref] == a {
		f.waiting = append(f.waiting, a)
	}
}

func (f *allocFollower) work(ctx context.Context) {
	for {
		a, turn := f.next()
		if a == nil {
			return
		}
		got, index, err := f.nomad.Alloc(a.ctx, a.ref, Since{Index: a.index, Wait: turn})
		if a.ctx.Err() != nil {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		seen := allocSeen{alloc: got, index: index}
		if err != nil {
			seen = allocSeen{why: err.Error()}
		}
		if !seen.same(a.seen) {
			f.tell(ctx, a.ref, seen)
		}
		// An index that goes back is another server's, or a restored one's.
		if a.index = index; index < a.seen.index {
			a.index = 0
		}
		a.seen = seen
		if got != nil && got.Gone {
			f.forget(a.ref)
			continue
		}
		if err != nil && !pause(ctx, allocAgain) {
			return
		}
		f.again(a)
	}
}

// same reports whether two answers make the same facts.
func (s allocSeen) same(o allocSeen) bool {
	if s.alloc == nil || o.alloc == nil {
		return s.alloc == nil && o.alloc == nil && s.why == o.why
	}
	return *s.alloc == *o.alloc
}

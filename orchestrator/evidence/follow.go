package evidence

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// Parts of a sweep that Failed names, beside the prefixes of KV.
const (
	PartSessions = "sessions"
	PartChecks   = "health checks"
)

// readShare is the part of the time that reading one part may take.
const readShare = 10

// Run follows all locks until ctx ends, whose cause it returns; errors of
// Consul are told to Failed, and tried again. changed is given, in batches, new
// snapshots of the locks of which something changed since they were given
// last: the lock's own key, the records beside it, its rollout, its session, or
// the checks of its node. The first batch has all locks, also where there are
// none: until then nothing is known. A lock whose key went
// away has no Pair; of another tool's lock the release is told as well.
//
// changed is called from one goroutine, and is waited for: while it runs,
// nothing is read beyond what is under way. The snapshots are its own.
//
// The allocations of holders are followed as well: news of one tells its locks.
func (s *Sweep) Run(ctx context.Context, changed func(batch []*Snapshot)) error {
	ctx, cancel := context.WithCancel(ctx)
	f := &follower{s: s, p: newPicture(s), out: make(chan func()), waiting: map[string]bool{PartSessions: true}, failing: map[string]bool{}}
	if n := s.r.Nomad; n != nil {
		f.p.follower = &allocFollower{nomad: n, tell: func(ctx context.Context, ref AllocRef, seen allocSeen) {
			f.send(ctx, func() { f.p.tookAlloc(ref, seen) })
		}}
		defer f.p.follower.wg.Wait()
	}
	defer f.wg.Wait()
	defer cancel()
	for _, prefix := range s.parts {
		f.waiting[folderName(prefix)] = true
		f.wg.Go(func() { f.followKV(ctx, newScan(s, prefix)) })
	}
	f.wg.Go(func() { f.followSessions(ctx) })
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	filter := ""
	told := false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case apply := <-f.out:
			apply()
		}
		if len(f.waiting) > 0 {
			continue
		}
		// Which checks are asked for depends on the sessions of the locks, and
		// on whether agents wrote of them.
		if now := f.p.filter(); stop == nil || filter != now {
			if stop != nil {
				stop()
			} else {
				f.waiting[PartChecks] = true
			}
			filter = now
			stop = f.startChecks(ctx, filter)
			continue
		}
		if f.kvFails() || told && len(f.p.dirty) == 0 {
			continue
		}
		told = true
		f.p.readAllocs(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		changed(f.p.compose())
	}
}

// follower is one Run. The goroutines that read send what they read as a
// function, to be run by the one that has the picture.
type follower struct {
	s   *Sweep
	p   *picture
	out chan func()
	wg  sync.WaitGroup
	// waiting are the parts that were not read yet, failing those that cannot
	// be read.
	waiting map[string]bool
	failing map[string]bool
}

func (f *follower) send(ctx context.Context, apply func()) {
	select {
	case f.out <- apply:
	case <-ctx.Done():
	}
}

func (f *follower) kvFails() bool {
	for part := range f.failing {
		if part != PartSessions && part != PartChecks {
			return true
		}
	}
	return false
}

// result notes how reading a part went.
func (f *follower) result(part string, err error) {
	switch {
	case err != nil:
		f.failing[part] = true
	case f.failing[part]:
		delete(f.failing, part)
	default:
		return
	}
	if f.s.Failed != nil {
		f.s.Failed(part, err)
	}
}

// follow reads a part again and again until ctx ends, and has what it read
// applied. fetch says how long the reading took, the waiting left out.
func follow[T any](ctx context.Context, f *follower, part string, timeout time.Duration,
	fetch func(*api.QueryOptions) (T, time.Duration, *api.QueryMeta, error), apply func(v T, err error),
) {
	every := f.s.Every
	if every <= 0 {
		every = sweepEvery
	}
	least := every
	w := consulkv.NewWatcher(f.s.r.Consul, consulkv.WatchOptions{Name: part, MinInterval: every, Timeout: timeout},
		func(q *api.QueryOptions) (T, *api.QueryMeta, error) {
			q.RequireConsistent = true
			v, took, meta, err := fetch(q)
			least = max(every, took*readShare)
			return v, meta, err
		})
	for ctx.Err() == nil {
		v, err := w.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		f.send(ctx, func() {
			f.result(part, err)
			apply(v, err)
		})
		w.SetMinInterval(least)
		if err != nil {
			w.Restart()
			if !pause(ctx, every) {
				return
			}
		}
	}
}

func (f *follower) followKV(ctx context.Context, c *scan) {
	follow(ctx, f, folderName(c.prefix), consulkv.ScanTimeout,
		func(q *api.QueryOptions) (delta, time.Duration, *api.QueryMeta, error) {
			d, meta, err := c.query(q.Context(), q)
			return d, d.took, meta, err
		},
		func(d delta, err error) {
			if err != nil {
				return
			}
			delete(f.waiting, folderName(c.prefix))
			f.p.tookKV(d)
			f.p.extra = f.p.checksWanted()
		})
}

func (f *follower) followSessions(ctx context.Context) {
	follow(ctx, f, PartSessions, 0,
		func(q *api.QueryOptions) (sessionList, time.Duration, *api.QueryMeta, error) {
			return f.s.querySessions(q.Context(), q)
		},
		func(list sessionList, err error) {
			delete(f.waiting, PartSessions)
			f.p.tookSessions(list, err)
		})
}

// startChecks follows the checks that pass a filter, and returns what stops it
// and waits for its end.
func (f *follower) startChecks(ctx context.Context, filter string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	f.wg.Go(func() {
		defer close(done)
		follow(ctx, f, PartChecks, 0,
			func(q *api.QueryOptions) (checkList, time.Duration, *api.QueryMeta, error) {
				return f.s.queryChecks(q.Context(), filter, q)
			},
			func(list checkList, err error) {
				delete(f.waiting, PartChecks)
				list.err = err
				f.p.tookChecks(list)
			})
	})
	return func() { cancel(); <-done }
}

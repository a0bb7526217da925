package nomaddevice

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// localEvery is how often the process of a holder on this machine is looked at:
// no query tells of its end.
const localEvery = time.Second

// lockView is what is known of a config's lock.
type lockView struct {
	// State is one of locksmith's. COOLING shows as FREE: to tell it takes a
	// write to Consul, which many nodes would make at once.
	State string
	// Rule and Reason are of a HOT lock; of an UNKNOWN one Reason says what is
	// missing. Reason may hold numbers that grow, and is that of the first time.
	Rule, Reason string
	// Token of the holder; 0: nobody holds it.
	Token uint64
	// HeldSince is when the hold began, as far as it was seen; zero: not held.
	HeldSince time.Time
	// Err says why nothing can be known.
	Err string
}

// lockWatch judges one lock for as long as it runs.
//
// A free lock costs one blocking query on its key. While somebody holds it, its
// few records are read when its key changes and every interval beside: what is
// told by none of them (ages, the end of a process of this machine) is judged
// anew without a read when its time has come.
type lockWatch struct {
	name     string
	prefix   keys.Prefix
	consul   *consulkv.Client
	locks    *locksmith.Client
	interval time.Duration
	tell     func(lockView)

	obs     *locksmith.Observer
	cluster *evidence.Cluster
	snap    *evidence.Snapshot
	readAt  time.Time
	last    lockView
	// hold names what last is about.
	hold string
}

// run tells what the lock is, and again when that changes, until ctx ends.
func (w *lockWatch) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	changes, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		w.changes(ctx, changes)
	}()
	defer func() { cancel(); <-ended }()

	w.cluster = evidence.NewCluster()
	w.obs = w.locks.NewObserver(w.name, w.cluster)
	next := time.NewTimer(time.Hour)
	defer next.Stop()
	for {
		var wait time.Duration
		select {
		case <-ctx.Done():
			return
		case err := <-changes:
			if err != nil {
				w.say(lockView{State: locksmith.Unknown, Err: err.Error()})
				continue
			}
			wait = w.read(ctx)
		case now := <-next.C:
			if w.snap != nil && now.Sub(w.readAt) < w.interval {
				wait = w.judge(now)
				break
			}
			wait = w.read(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		next.Reset(wait)
	}
}

// changes sends nil when the lock's key has changed, and what keeps it from
// being read.
func (w *lockWatch) changes(ctx context.Context, to chan<- error) {
	key := w.prefix.Lock(w.name)
	q := consulkv.NewWatcher(w.consul, consulkv.WatchOptions{Name: "lock " + key, MinInterval: minLockInterval},
		func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
			q.RequireConsistent = true
			return w.consul.API().KV().Get(key, q)
		})
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 500*time.Millisecond, 15*time.Second
	for ctx.Err() == nil {
		_, err := q.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		select {
		case to <- err:
		case <-ctx.Done():
			return
		}
		if err == nil {
			b.Reset()
			continue
		}
		q.Restart()
		t := time.NewTimer(b.NextBackOff())
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// read reads and judges the lock, and returns for how long that stands.
func (w *lockWatch) read(ctx context.Context) time.Duration {
	r := w.locks.Reader()
	s, err := r.Read(ctx, w.name)
	if err != nil {
		if ctx.Err() == nil {
			w.say(lockView{State: locksmith.Unknown, Err: err.Error()})
		}
		return w.interval
	}
	if s.Held() || s.Semaphore != nil {
		r.Borrow(ctx, w.cluster)
	}
	w.snap, w.readAt = s, time.Now()
	return w.judge(w.readAt)
}

// forever is long enough for what only a change of the key ends.
const forever = 24 * time.Hour

func (w *lockWatch) judge(now time.Time) time.Duration {
	v := w.obs.Judge(w.snap, now)
	view, wait := lockView{State: v.State}, forever
	if hold := w.snap.Hold(); w.snap.Held() {
		st := w.locks.Status(v)
		view.Token, view.Rule, view.Reason = w.snap.Index(), st.Rule, st.Reason
		if view.Reason == "" && len(st.Pending) > 0 && v.State == locksmith.Unknown {
			view.Reason = st.Pending[0]
		}
		view.HeldSince = now
		if st.HeldFor != nil {
			view.HeldSince = now.Add(-time.Duration(*st.HeldFor * float64(time.Second)))
		}
		if w.hold == hold && !w.last.HeldSince.IsZero() {
			view.HeldSince = w.last.HeldSince
		}
		if w.hold == hold && w.last.State == view.State && w.last.Rule == view.Rule {
			view.Reason = w.last.Reason
		}
		w.hold = hold
		wait = w.interval - now.Sub(w.readAt)
		if d, ok := v.Policy.Steady(v.Facts, &v.Judgement, now); ok {
			wait = min(wait, max(d, localEvery/10))
		}
		if h := w.snap.Holder; h != nil && w.locks.Reader().Local(h) {
			wait = min(wait, localEvery)
		}
	} else if w.snap.Semaphore != nil {
		wait = w.interval
	}
	w.say(view)
	return max(wait, 10*time.Millisecond)
}

// say tells what is new. Of a Consul that cannot be had it tells once: how often
// it was tried is in the error, and is no news.
func (w *lockWatch) say(v lockView) {
	if v == w.last || v.Err != "" && w.last.Err != "" {
		return
	}
	w.last = v
	w.tell(v)
}

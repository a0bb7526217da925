package evidence

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// Cluster remembers what Consul does not: when its leader changed last and how
// many sessions ended in the last minute. A cluster that loses many sessions
// at once has an event of its own, and its holders are not therefore dead.
//
// Make one with WatchCluster; until it has watched for a minute, what it
// cannot know is unknown.
type Cluster struct {
	mu       sync.Mutex
	started  time.Time // when the first answers were in; zero before
	leader   string
	changed  time.Time // last change of the leader seen; zero: none yet
	sessions map[string]struct{}
	lost     []time.Time // when sessions were seen to be gone, oldest first
	err      error
}

// lostWindow is the span of cluster.sessions_lost.
const lostWindow = time.Minute

// leaderEvery is how often the leader is asked for: Consul has no blocking
// query for it.
const leaderEvery = 5 * time.Second

// WatchCluster follows leader and sessions until ctx ends; then done is
// closed.
func WatchCluster(ctx context.Context, c *consulkv.Client) (cl *Cluster, done <-chan struct{}) {
	cl = &Cluster{}
	ch := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { cl.followLeader(ctx, c) })
	wg.Go(func() { cl.followSessions(ctx, c) })
	go func() { wg.Wait(); close(ch) }()
	return cl, ch
}

func (cl *Cluster) followLeader(ctx context.Context, c *consulkv.Client) {
	t := time.NewTicker(leaderEvery)
	defer t.Stop()
	for {
		leader, err := consulkv.Retry(ctx, c, "read the cluster's leader", func(ctx context.Context) (string, error) {
			return c.API().Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx))
		})
		cl.sawLeader(leader, err, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (cl *Cluster) sawLeader(leader string, err error, now time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.err = err
	if err != nil {
		// Without an answer the leader may have changed unseen.
		leader = ""
	}
	switch {
	case cl.started.IsZero():
		if leader == "" {
			return
		}
		cl.started = now
	case leader != cl.leader:
		cl.changed = now
	}
	cl.leader = leader
}

func (cl *Cluster) followSessions(ctx context.Context, c *consulkv.Client) {
	w := consulkv.NewWatcher(c, consulkv.WatchOptions{Name: "sessions", MinInterval: 2 * time.Second},
		func(q *api.QueryOptions) ([]*api.SessionEntry, *api.QueryMeta, error) {
			return c.API().Session().List(q)
		})
	for ctx.Err() == nil {
		list, err := w.Next(ctx)
		if err != nil {
			cl.forgetSessions()
			if !pause(ctx, time.Second) {
				return
			}
			continue
		}
		cl.sawSessions(list, time.Now())
	}
}

func (cl *Cluster) forgetSessions() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.sessions = nil
}

func (cl *Cluster) sawSessions(list []*api.SessionEntry, now time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	next := make(map[string]struct{}, len(list))
	for _, s := range list {
		next[s.ID] = struct{}{}
	}
	for id := range cl.sessions {
		if _, ok := next[id]; !ok {
			cl.lost = append(cl.lost, now)
		}
	}
	cl.sessions = next
}

// view is what a Cluster knows now.
type view struct {
	leader     string
	sinceStart time.Duration
	watching   bool
	changedAgo time.Duration
	changed    bool
	lost       int
	err        error
}

func (cl *Cluster) view(now time.Time) view {
	if cl == nil {
		return view{}
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for len(cl.lost) > 0 && now.Sub(cl.lost[0]) > lostWindow {
		cl.lost = cl.lost[1:]
	}
	v := view{leader: cl.leader, err: cl.err, watching: !cl.started.IsZero() && cl.sessions != nil, lost: len(cl.lost)}
	if !cl.started.IsZero() {
		v.sinceStart = now.Sub(cl.started)
	}
	if !cl.changed.IsZero() {
		v.changed, v.changedAgo = true, now.Sub(cl.changed)
	}
	return v
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

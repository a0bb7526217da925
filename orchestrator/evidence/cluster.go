package evidence

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
)

// Cluster remembers what Consul does not: when its leader changed last and how
// many sessions ended in the last minute. A cluster that loses many sessions
// at once has an event of its own, and its holders are not therefore dead.
//
// Make one with WatchCluster; until it has watched for a minute without a gap,
// what it cannot know is unknown.
type Cluster struct {
	mu      sync.Mutex
	started time.Time // when a leader was known first; zero before
	leader  string    // "" while it is not known
	changed time.Time // last change of the leader seen; zero: none yet
	err     error     // why the leader is not known

	// sessions are those seen last; nil while they are not known, and
	// sessionsErr says why. following is since when they are, without a gap.
	sessions    map[string]living
	sessionsErr error
	following   time.Time
	lost        []*lostSession // oldest first

	// lent is what a locksmith has seen; nil: nobody asked.
	lent *lent
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
			fate.Turn(ctx, "look at the leader")
		}
	}
}

func (cl *Cluster) sawLeader(leader string, err error, now time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.err = err
	if err != nil {
		leader = ""
	}
	switch {
	case cl.started.IsZero():
		if leader == "" {
			return
		}
		cl.started = now
	case leader == "", leader != cl.leader:
		// Without an answer it may change unseen.
		cl.changed = now
	}
	cl.leader = leader
}

// sessionsLeast is the least time between two reads of all sessions.
const sessionsLeast = 2 * time.Second

// sessionsWait is how long one such read may wait for a change. How old a
// session can be at most is known no better than that.
const sessionsWait = 3 * time.Second

type sessionList struct {
	entries  []*api.SessionEntry
	filtered bool
	// start is when it was asked for.
	start time.Time
}

func (cl *Cluster) followSessions(ctx context.Context, c *consulkv.Client) {
	// When the last two queries that were answered were asked.
	var before, last time.Time
	w := consulkv.NewWatcher(c, consulkv.WatchOptions{Name: "sessions", MinInterval: sessionsLeast, Wait: sessionsWait},
		func(q *api.QueryOptions) (sessionList, *api.QueryMeta, error) {
			start := time.Now()
			list, meta, err := c.API().Session().List(q)
			if err != nil {
				return sessionList{}, meta, err
			}
			before, last = last, start
			return sessionList{entries: list, filtered: meta.ResultsFilteredByACLs}, meta, nil
		})
	for ctx.Err() == nil {
		list, err := w.Next(ctx)
		switch {
		case err != nil:
			cl.forgetSessions(err)
			w.Restart()
			if !pause(ctx, time.Second) {
				return
			}
		case list.filtered:
			cl.forgetSessions(errSessionsHidden)
		case len(list.entries) == 0:
			// To a token without session:read Consul shows none, and says
			// so only in newer versions. A server that is shut down answers
			// those who wait with none, too (seen of 1.14.11).
			cl.forgetSessions(errNoSessions)
		case w.Index() == 0:
			// Restored from a snapshot: what is missing now says nothing of
			// who lost it.
			cl.forgetSessions(errIndexBack)
		default:
			cl.excuse(ctx, c, cl.sawSessions(list.entries, before, time.Now()))
		}
	}
}

var (
	errIndexBack      = errors.New("the index of Consul's sessions went back: it was restored from a snapshot")
	errSessionsHidden = errors.New("the token may not read all sessions: it needs session:read")
	errNoSessions     = errors.New("Consul shows no sessions: all ended, or the token lacks session:read")
)

func (cl *Cluster) forgetSessions(why error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.sessions, cl.sessionsErr, cl.following = nil, why, time.Time{}
}

// sawSessions notes a list of all sessions, and returns those that are gone.
// before is when the list before it was asked for: what is new was made later.
func (cl *Cluster) sawSessions(list []*api.SessionEntry, before, now time.Time) []*lostSession {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	next := make(map[string]living, len(list))
	for _, s := range list {
		l, ok := cl.sessions[s.ID]
		if !ok {
			l = living{entry: s, after: before}
		}
		next[s.ID] = l
	}
	var gone []*lostSession
	for id, l := range cl.sessions {
		if _, ok := next[id]; !ok {
			gone = append(gone, &lostSession{living: l, at: now})
		}
	}
	cl.lost = append(cl.lost, gone...)
	if cl.sessions == nil {
		// Sessions that ended before this moment were not seen to end.
		cl.following = now
		for id, l := range next {
			l.after = time.Time{}
			next[id] = l
		}
	}
	cl.sessions, cl.sessionsErr = next, nil
	return gone
}

// view is what a Cluster knows now.
type view struct {
	leader string
	// why says why nothing is known of the leader; empty if it is.
	why        string
	watched    time.Duration
	changedAgo time.Duration
	changed    bool

	lost int
	// lostWhole: lost is the number of the whole window, and not only of a
	// part of it. lostWhy says why there is none.
	lostWhole bool
	lostWhy   string

	// What is borrowed: from and lostFrom say from whom. leaderWhy and ageWhy
	// stand for why where they are not empty; lentAge: watched is another's.
	from, lostFrom    string
	leaderWhy, ageWhy string
	lentAge           bool
}

const (
	notWatched = "nobody here has watched the cluster"
	noLeader   = "Consul names no leader"
)

// known is view with what is borrowed.
func (cl *Cluster) known(now time.Time) view {
	v := cl.view(now)
	if cl != nil {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		v.borrowed(cl.lent, now)
	}
	return v
}

func (cl *Cluster) view(now time.Time) view {
	if cl == nil {
		return view{why: notWatched, lostWhy: notWatched}
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for len(cl.lost) > 0 && now.Sub(cl.lost[0].at) > lostWindow {
		cl.lost = cl.lost[1:]
	}
	v := view{leader: cl.leader}
	for _, l := range cl.lost {
		if !l.excused {
			v.lost++
		}
	}
	switch {
	case !cl.started.IsZero():
		v.watched = now.Sub(cl.started)
	case cl.err != nil:
		v.why = cl.err.Error()
	default:
		v.why = notWatched
	}
	if !cl.changed.IsZero() {
		v.changed, v.changedAgo = true, now.Sub(cl.changed)
	}
	switch {
	case cl.sessions == nil && cl.sessionsErr != nil:
		v.lostWhy = cl.sessionsErr.Error()
	case cl.sessions == nil:
		v.lostWhy = notWatched
	default:
		v.lostWhole = now.Sub(cl.following) >= lostWindow
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

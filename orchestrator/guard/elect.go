package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// LeaderLock is the lock that the one locksmith which acts holds.
const LeaderLock = evidence.LeaderLock

const (
	// beatEvery is how often the leader writes its progress record.
	beatEvery = 10 * time.Second
	// electPause is the first pause after an election that failed, doubling to
	// electPauseMax.
	electPause    = time.Second
	electPauseMax = 15 * time.Second
	// yieldFor is for how long a leader that was asked to let go does not stand.
	yieldFor = 30 * time.Second
)

// term is the time for which this locksmith may act. Without a hold (a dry run)
// it changes nothing.
type term struct {
	hold *locksmith.Hold
	ctx  context.Context //nolint:containedctx // a term is a span of time, by design

	mu sync.Mutex
	// acts is the context of the breaks; interrupt begins another one.
	acts   context.Context //nolint:containedctx // see above
	cancel context.CancelCauseFunc
	over   bool
	wg     sync.WaitGroup
}

func newTerm(ctx context.Context, hold *locksmith.Hold) *term {
	t := &term{hold: hold, ctx: ctx}
	t.acts, t.cancel = context.WithCancelCause(ctx)
	return t
}

var (
	errReloaded = errors.New("other policies are in force")
	errTermOver = errors.New("this locksmith does not lead any more")
)

// interrupt ends the breaks under way, and not the term.
func (t *term) interrupt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel(errReloaded)
	t.acts, t.cancel = context.WithCancelCause(t.ctx)
}

// begin counts a break that begins now, whose context it returns; ok is false
// once the term is over. The break calls t.wg.Done.
func (t *term) begin() (ctx context.Context, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over || t.ctx.Err() != nil {
		return nil, false
	}
	t.wg.Add(1)
	return t.acts, true
}

// end ends the breaks under way and waits for them.
func (t *term) end(why error) {
	t.mu.Lock()
	t.over = true
	t.cancel(why)
	t.mu.Unlock()
	done := make(chan struct{})
	go func() { t.wg.Wait(); close(done) }()
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// candidacy is whether, and with what, this locksmith stands for election.
type candidacy struct {
	client  *locksmith.Client
	cluster *evidence.Cluster
	stands  bool
	// unsure: it is not known. Who leads goes on.
	unsure bool
}

// elect stands for election, leads while the hold lasts, and stands again, until
// ctx ends.
func (g *Guard) elect(ctx context.Context) {
	c := candidacy{unsure: true}
	wait := electPause
	for ctx.Err() == nil {
		if !c.stands {
			g.board.leader(nil, "")
			select {
			case c = <-g.eligible:
			case <-ctx.Done():
			}
			continue
		}
		hold, next, err := g.campaign(ctx, c)
		switch {
		case ctx.Err() != nil && hold == nil:
			return
		case err != nil:
			g.trouble("election", fmt.Errorf("taking the lock %s: %w", LeaderLock, err))
			if !pause(ctx, wait) {
				return
			}
			wait = min(2*wait, electPauseMax)
			continue
		case hold == nil:
			c = next
			continue
		}
		wait = electPause
		c = g.lead(ctx, hold, c)
	}
}

// campaign takes the leader's lock. A nil hold without an error: the candidacy
// has changed, to next.
func (g *Guard) campaign(ctx context.Context, c candidacy) (hold *locksmith.Hold, next candidacy, err error) {
	actx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		hold *locksmith.Hold
		err  error
	}
	ch := make(chan outcome, 1)
	go func() {
		h, err := c.client.Acquire(actx, locksmith.Request{
			Names: []string{LeaderLock}, Operation: "locksmith", Cluster: c.cluster, Notify: g.campaigning,
		})
		ch <- outcome{h, err}
	}()
	for {
		select {
		case o := <-ch:
			return o.hold, c, o.err
		case next = <-g.eligible:
			if next.unsure || next.stands && next.client == c.client {
				continue
			}
			cancel()
			o := <-ch
			if o.hold != nil {
				// Taken in the same moment: lead will see the change.
				g.offer(next)
				return o.hold, c, nil
			}
			return nil, next, nil
		}
	}
}

// offer puts a candidacy back, unless there is a newer one.
func (g *Guard) offer(c candidacy) {
	select {
	case g.eligible <- c:
	default:
	}
}

// campaigning is told what happens while the leader's lock is waited for.
func (g *Guard) campaigning(n locksmith.Notice) {
	switch n.Kind {
	case locksmith.NoticeWaiting:
		st := n.Status
		// Whoever leads tells of what all see.
		g.cfg.Hooks.Mute(st.Session != nil && st.State != locksmith.Hot)
		if st.Session == nil {
			g.board.leader(nil, "")
			return
		}
		first := g.board.leader(st, st.State)
		if st.State == locksmith.Hot {
			g.log.Warn("the leading locksmith's lock is HOT", "lock", LeaderLock, "token", tokenOf(st), "policy", st.Policy, "rule", st.Rule, "reason", st.Reason, "next", st.Next)
		} else if first {
			g.log.Info("another locksmith leads", "lock", LeaderLock, "token", tokenOf(st), "leader", leaderName(st), "state", st.State)
		}
	case locksmith.NoticeOutage:
		g.board.leader(nil, "")
		g.trouble("election", fmt.Errorf("waiting for the lock %s: %s", LeaderLock, n.Text))
	case locksmith.NoticeBreaking, locksmith.NoticeStep, locksmith.NoticeBroken, locksmith.NoticeStopped:
		g.log.Warn("the leading locksmith's lock: "+n.Kind, "lock", LeaderLock, "detail", n.Text)
	}
}

// lead lets the loop act for as long as the hold lasts and this locksmith may.
func (g *Guard) lead(ctx context.Context, hold *locksmith.Hold, c candidacy) candidacy {
	t := newTerm(hold.Context(), hold)
	g.log.Info("this locksmith leads", "lock", LeaderLock, "epoch", hold.Epoch(), "token", hold.Token(), "session", hold.Session())
	g.metrics.terms.Inc()
	g.cfg.Hooks.Mute(false)
	g.ledBy(hold, true, nil)
	hctx, cancel := context.WithCancel(hold.Context())
	var beats sync.WaitGroup
	beats.Go(func() { g.beats(hctx, hold) })
	beats.Go(func() { g.prunes(hctx) })
	reader, cluster := c.client.Reader(), c.cluster // c changes while it reigns
	beats.Go(func() { g.lends(hctx, hold, reader, cluster) })
	why := g.reign(ctx, t, &c)
	cancel()
	t.end(why)
	beats.Wait()
	// A loop that stands still must not keep the lock from others: it begins
	// nothing any more under a term that is over.
	if err := hold.Release(ctx); err != nil && !errors.Is(why, locksmith.ErrLost) {
		g.log.Warn("letting go of the leadership", "lock", LeaderLock, "token", hold.Token(), "error", err)
	}
	g.log.Info("this locksmith leads no more", "lock", LeaderLock, "token", hold.Token(), "why", why)
	g.ledBy(hold, false, why)
	g.announce(ctx, nil)
	if errors.Is(why, locksmith.ErrRequested) {
		pause(ctx, yieldFor)
	}
	return c
}

// reign announces the term and returns why it is over.
func (g *Guard) reign(ctx context.Context, t *term, c *candidacy) error {
	if !g.announce(ctx, t) {
		return context.Cause(ctx)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.hold.Context().Done():
			return context.Cause(t.hold.Context())
		case next := <-g.eligible:
			if next.unsure {
				continue
			}
			if *c = next; !next.stands {
				return errTermOver
			}
		}
	}
}

// announce tells the loop of a term, or of its end.
func (g *Guard) announce(ctx context.Context, t *term) bool {
	select {
	case g.terms <- t:
		return true
	case <-ctx.Done():
		return false
	}
}

// beats writes the leader's progress whenever the loop has turned.
func (g *Guard) beats(ctx context.Context, hold *locksmith.Hold) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-g.beat:
			if err := hold.Progress(ctx, p.judged, 0, "verdicts", p.note); err != nil && ctx.Err() == nil {
				g.trouble("heartbeat", err)
			}
		}
	}
}

// tokenOf is the fencing token of a held lock; 0: there is none.
func tokenOf(st *locksmith.Status) uint64 {
	if st.Token == nil {
		return 0
	}
	return *st.Token
}

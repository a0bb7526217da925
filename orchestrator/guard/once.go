package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Swept is one lock of a single sweep.
type Swept struct {
	// Status is what was found; after a break, what was found before it.
	Status *locksmith.Status
	// Action is one of the Act… words; "" for a lock that needed none, or where
	// this locksmith may not act.
	Action string
	Detail string
}

// Report is what a single sweep found and did.
type Report struct {
	At time.Time
	// PolicyHash are the policies judged by.
	PolicyHash string
	DryRun     bool
	// Acting: this locksmith held the leadership, or needed none.
	Acting bool
	// NotActing says why it did not act.
	NotActing string
	Locks     []Swept
}

// Failed are the locks whose break failed.
func (r *Report) Failed() (n int) {
	for _, l := range r.Locks {
		if l.Action == ActFailed || l.Action == ActTimedOut || l.Action == ActStopped {
			n++
		}
	}
	return n
}

// Once sweeps the locks once: it judges every one, and breaks what the policies
// let it break, watching for as long as a rule's `for`, a confirm and a freeze
// ask. It acts only while no other locksmith leads. say is told what takes time.
func (g *Guard) Once(ctx context.Context, say func(string)) (*Report, error) {
	rctx, cancel := context.WithCancel(ctx)
	var watched <-chan struct{}
	g.cluster, watched = evidence.WatchCluster(rctx, g.consul)
	defer func() { cancel(); <-watched }()
	rep := &Report{At: time.Now().UTC(), PolicyHash: g.client.Policies().Hash, DryRun: g.cfg.DryRun}
	roots := Roots(g.client.Policies(), g.keys)
	if len(roots) == 0 {
		return nil, errors.New("the policies have no patterns in `locks`: there is nothing to guard")
	}
	if err := g.rights(ctx); err != nil {
		return nil, err
	}
	snaps, err := g.cfg.Source(roots).Read(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var found []*once
	for _, s := range snaps {
		if s.Pair == nil || g.client.Policies().For(idOf(s)) == nil {
			continue
		}
		obs := g.client.NewObserver(s.Name, g.cluster)
		v, err := obs.Settle(ctx, obs.Judge(s, now))
		if err != nil {
			return nil, err
		}
		o := &once{obs: obs, v: v}
		g.record(o.v)
		found = append(found, o)
	}
	slices.SortFunc(found, func(a, b *once) int { return cmp.Compare(a.v.Snapshot.Key, b.v.Snapshot.Key) })
	if slices.ContainsFunc(found, g.todo) {
		if err := g.actOnce(ctx, rep, found, say); err != nil {
			return nil, err
		}
	} else {
		rep.Acting = true
	}
	for _, o := range found {
		st := g.client.Status(o.v)
		if st.Next = g.client.Next(o.v, nil); o.r.refusal != nil {
			st.Next = g.client.Next(o.v, o.r.refusal.Permit)
		}
		rep.Locks = append(rep.Locks, Swept{Status: st, Action: o.r.outcome, Detail: o.detail()})
	}
	return rep, nil
}

// once is one lock of a single sweep.
type once struct {
	obs *locksmith.Observer
	v   *locksmith.Verdict
	r   result
}

// todo tells whether a lock is HOT, or may be once it was watched.
func (g *Guard) todo(o *once) bool {
	if o.v.Snapshot.Key == g.keys.Lock(LeaderLock) {
		return false
	}
	return o.v.State == locksmith.Hot || o.v.PendingHot() > 0
}

// actOnce takes the leadership, unless another locksmith has it, and breaks.
func (g *Guard) actOnce(ctx context.Context, rep *Report, found []*once, say func(string)) error {
	list, err := g.consul.List(ctx, g.keys.Policies())
	if err != nil {
		return err
	}
	hash := g.client.Policies().Hash
	t := newTerm(ctx, nil)
	switch b := g.readBrakes(list); {
	case !b.inForce(hash):
		rep.NotActing = fmt.Sprintf("these policies (%s) are not the ones applied (%s)", short(hash), short(b.applied))
		return nil
	case g.cfg.DryRun:
		rep.Acting = true
	default:
		hold, err := g.client.Acquire(ctx, locksmith.Request{Names: []string{LeaderLock}, Operation: "locksmith -once", Cluster: g.cluster, Try: true, Reach: consulkv.DefaultRetryFor})
		if ref, ok := errors.AsType[*locksmith.RefusedError](err); ok {
			rep.NotActing = "another locksmith leads"
			if name := leaderName(ref.Status); name != "" {
				rep.NotActing += ": " + name
			}
			if ref.Hot {
				rep.NotActing += "; its lock is HOT: " + ref.Status.Next
			}
			return nil
		}
		if err != nil {
			return err
		}
		defer func() {
			if err := hold.Release(ctx); err != nil {
				g.log.Warn("letting go of the leadership", "lock", LeaderLock, "token", hold.Token(), "error", err)
			}
		}()
		t, rep.Acting = newTerm(hold.Context(), hold), true
		hctx, cancel := context.WithCancel(hold.Context())
		defer cancel()
		go beatOnce(hctx, hold)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	tell := func(n locksmith.Notice) {
		mu.Lock()
		defer mu.Unlock()
		text := n.Kind
		if n.Text != "" {
			text = n.Text
		}
		say(printable(n.Lock) + ": " + text)
	}
	for _, o := range found {
		if !g.todo(o) {
			continue
		}
		g.tokens <- struct{}{}
		wg.Go(func() {
			defer func() { <-g.tokens }()
			o.act(t, g, tell)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// beatOnce writes progress while a long watch lasts.
func beatOnce(ctx context.Context, hold *locksmith.Hold) {
	for pause(ctx, beatEvery) {
		if err := hold.Progress(ctx, 0, 0, "verdicts", "one sweep"); err != nil {
			return
		}
	}
}

// act watches the lock for as long as its rules ask, and breaks it.
func (o *once) act(t *term, g *Guard, tell func(locksmith.Notice)) {
	limit := actLimit(o.v.Policy) + watchLimit + o.v.PendingHot()
	ctx, cancel := context.WithTimeoutCause(t.ctx, limit, errTooLong)
	defer cancel()
	start := time.Now()
	o.r = result{hold: o.v.Snapshot.Hold(), policy: o.v.Policy.Name}
	out, err := g.client.Break(ctx, locksmith.BreakRequest{Name: o.v.Snapshot.Name, DryRun: t.hold == nil, Observer: o.obs, Under: t.hold, Notify: tell})
	if out != nil && out.Verdict != nil && out.Verdict.Snapshot.Held() {
		o.v = out.Verdict
	}
	o.r.broken = out
	o.r.sort(ctx, err, t.hold == nil)
	o.r.took = time.Since(start)
	g.metrics.acted(o.r)
}

// watchLimit is how long the past of the cluster is watched at most.
const watchLimit = 2 * time.Minute

func (o *once) detail() string {
	switch o.r.outcome {
	case "":
		return ""
	case ActBroken:
		return o.r.broken.Dismissed
	case ActRefused:
		return o.r.refusal.Why
	case ActLetGo:
		if !o.r.letGo() {
			return "its hold ended before it was broken"
		}
		return "its holder let go"
	case ActCooled:
		return "it is not HOT any more"
	case ActWould:
		return "it would be broken"
	}
	return o.r.err.Error()
}

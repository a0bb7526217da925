package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/text"
	"github.com/aim-control/aimlock/internal/tracing"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
	"github.com/aim-control/aimlock/policies"
)

// Outcomes of an attempt at a HOT lock, as metrics and -once name them.
const (
	ActBroken   = "broken"
	ActLetGo    = "let_go"  // its hold ended without a break: its holder let go, or Consul ended its session
	ActWould    = "would"   // a dry run
	ActRefused  = "refused" // a brake, or an approval that is missing
	ActCooled   = "cooled"  // it is not HOT any more
	ActStopped  = "stopped" // the term ended, or other policies came
	ActTimedOut = "timed_out"
	ActFailed   = "failed"
)

// Pauses before a HOT lock is tried again, from the first to the last, doubling.
// What refuses is asked again soon, as most of it passes; what failed is not.
const (
	refusedPause    = 2 * time.Second
	refusedPauseMax = 15 * time.Second
	failedPause     = 10 * time.Second
	failedPauseMax  = 5 * time.Minute
)

// result is how an attempt came out.
type result struct {
	l       *lock
	hold    string
	token   uint64
	outcome string
	policy  string
	refusal *locksmith.NotPermittedError
	broken  *locksmith.Broken
	err     error
	took    time.Duration
}

// consider begins a break of a HOT lock, if this locksmith may act and nothing
// is known to be in the way.
func (g *Guard) consider(l *lock, v *locksmith.Verdict, now time.Time) {
	switch {
	case g.term == nil, l.snap.Key == g.keys.Lock(LeaderLock):
		return
	case !g.brakes.open(g.client.Policies().Hash):
		return
	case now.Before(l.askAt):
		g.sooner(l, l.askAt)
		return
	}
	select {
	case g.tokens <- struct{}{}:
	default:
		g.sooner(l, now.Add(busyPause))
		return
	}
	t, c := g.term, g.client
	work, ok := t.begin()
	if !ok {
		<-g.tokens
		return
	}
	l.acting = true
	ctx, cancel := context.WithTimeoutCause(work, actLimit(v.Policy), errTooLong)
	go func() {
		// A leader leads for months: what it does is no part of that.
		r := attempt(tracing.Alone(ctx), c, t.hold, l.obs, v, g.notices(v.Snapshot.Name))
		r.l = l
		cancel()
		t.wg.Done()
		g.results <- r
	}()
}

// sooner has a lock judged at the time given, or before.
func (g *Guard) sooner(l *lock, at time.Time) {
	if l.due.IsZero() || at.Before(l.due) {
		g.table.schedule(l, at)
	}
}

var errTooLong = errors.New("the break took too long")

// actLimit bounds one break: its policy's waits, twice because that of another
// locksmith may have to be waited for, and a minute for Consul.
func actLimit(p *policies.Policy) time.Duration {
	d := time.Minute
	if p == nil || p.Break == nil {
		return d
	}
	d += time.Duration(max(p.Break.Confirm.Observations, 0)) * p.Break.Confirm.Every
	for _, st := range p.Break.Steps {
		d += 2 * max(st.Wait, 10*time.Second)
	}
	return d
}

// attempt breaks a HOT lock, if it may be broken. With a nil hold it says what it
// would do.
func attempt(ctx context.Context, c *locksmith.Client, hold *locksmith.Hold, obs *locksmith.Observer, v *locksmith.Verdict, notify func(locksmith.Notice)) result {
	r := result{hold: v.Snapshot.Hold(), token: v.Snapshot.Index(), policy: v.Policy.Name}
	start := time.Now()
	p, err := c.Permit(ctx, v)
	if err == nil && !p.OK {
		err = &locksmith.NotPermittedError{Lock: v.Snapshot.Name, Permit: p}
	}
	if err == nil {
		r.broken, err = c.Break(ctx, locksmith.BreakRequest{
			Name: v.Snapshot.Name, DryRun: hold == nil, Observer: obs, Now: true, Under: hold, Notify: notify,
		})
	}
	r.sort(ctx, err, hold == nil)
	r.took = time.Since(start)
	return r
}

// sort gives an attempt its outcome.
func (r *result) sort(ctx context.Context, err error, dry bool) {
	r.err = err
	var cooled *locksmith.RefusedError
	switch {
	case err == nil && dry:
		r.outcome = ActWould
	case err == nil && r.broken.Record != nil && r.broken.Record.Outcome == records.OutcomeReleased:
		r.outcome = ActLetGo
	case err == nil:
		r.outcome = ActBroken
	case errors.Is(err, locksmith.ErrNotHeld):
		r.outcome = ActLetGo
	case errors.As(err, &r.refusal):
		r.outcome = ActRefused
	case errors.As(err, &cooled):
		r.outcome = ActCooled
	case errors.Is(context.Cause(ctx), errTooLong):
		r.outcome, r.err = ActTimedOut, fmt.Errorf("%w: %w", errTooLong, err)
	case ctx.Err() != nil, errors.Is(err, locksmith.ErrLost):
		r.outcome = ActStopped
	default:
		r.outcome = ActFailed
	}
}

// letGo tells of an attempt whose outcome is ActLetGo whether the holder itself is
// known to have ended its hold.
func (r *result) letGo() bool {
	switch b := r.broken; {
	case b == nil:
		return false
	case b.Record != nil:
		return b.Dismissed == ""
	case b.Verdict == nil:
		return false
	default:
		h := b.Verdict.Snapshot.Holder
		return h != nil && h.Released && h.Broken == ""
	}
}

// finished takes how an attempt came out.
func (g *Guard) finished(r result) {
	<-g.tokens
	l := r.l
	l.acting = false
	l.obs.Under(g.client)
	g.metrics.acted(r)
	if l.snap == nil {
		return
	}
	now := time.Now()
	same := l.snap.Hold() == r.hold
	name := printable(l.snap.Name)
	switch r.outcome {
	case ActBroken:
		l.ended = r.hold
		g.log.Warn("broke a HOT lock", "lock", name, "outcome", r.outcome, "rule", l.rule, "policy", r.policy, "token", r.token, "took", r.took.Round(time.Millisecond).String())
	case ActLetGo:
		l.ended = r.hold
		what := "the hold of a HOT lock ended before it was broken"
		if r.letGo() {
			what = "the holder of a HOT lock let go before it was broken"
		}
		g.log.Info(what, "lock", name, "token", r.token, "policy", r.policy, "rule", l.rule, "took", r.took.Round(time.Millisecond).String())
	case ActWould:
		l.askAt = now.Add(refusedPauseMax)
		if told := r.outcome + l.rule; l.told != told {
			l.told = told
			g.log.Warn("would break a HOT lock (dry run)", "lock", name, "token", r.token, "policy", r.policy, "rule", l.rule, "reason", l.reason, "steps", r.broken.Plan)
		}
	case ActRefused:
		if same {
			l.askAt = now.Add(min(refusedPause<<min(l.tries, 10), refusedPauseMax))
			l.tries++
		}
		if kind := r.refusal.Kind(); l.told != kind {
			l.told, l.tries = kind, 0
			g.log.Warn("a HOT lock is not broken now", "lock", name, "why", r.refusal.Why, "next", r.refusal.Next, "token", r.token)
		}
	case ActCooled, ActStopped:
		l.askAt = now.Add(refusedPause)
	default:
		if same {
			l.askAt = now.Add(min(failedPause<<min(l.tries, 10), failedPauseMax))
			l.tries++
		}
		l.told = ""
		g.log.Error("a HOT lock could not be broken", "lock", name, "token", r.token, "outcome", r.outcome, "error", r.err)
	}
	g.judge(l, now)
}

// notices logs what happens in a break.
func (g *Guard) notices(name string) func(locksmith.Notice) {
	return func(n locksmith.Notice) {
		switch n.Kind {
		case locksmith.NoticeBreaking, locksmith.NoticeStep:
			g.log.Info("breaking a HOT lock", "lock", printable(name), "what", n.Kind, "detail", n.Text)
		}
	}
}

func printable(s string) string { return text.Clip(text.Printable(s), 200) }

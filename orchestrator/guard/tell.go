package guard

import (
	"context"
	"errors"

	"github.com/aim-control/aimlock/internal/hooks"
	"github.com/aim-control/aimlock/internal/journal"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/internal/signals"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// Lag is within how many seconds of a change a lock is judged anew, for the
// journal: reading waits a second for more changes, and what drifts is looked at
// once a second.
const Lag = 2.0

// OnBreak is for locksmith.Config: it tells hooks and journal of each break. Both
// may be nil.
func OnBreak(rec *locksmith.Recorder, n *hooks.Notifier, m *Metrics) func(key string, b *records.Break) {
	return func(key string, b *records.Break) {
		n.Notify(hooks.OfBreak(key, b))
		e := journal.Break{
			Event: journal.BreakBegun, Key: key, Session: b.Session, Token: b.Token, Policy: b.Policy, PolicyHash: b.PolicyHash,
			Rule: b.Rule, Reason: b.Reason, By: b.By,
		}
		if b.Outcome != records.OutcomeIntent {
			for _, st := range b.Steps {
				m.journaled(rec.Break(b.Lock, journal.Break{
					Event: journal.BreakStep, Key: key, Session: b.Session, Token: b.Token, By: b.By, Step: st.Step, Result: st.Result, Detail: st.Detail,
				}))
			}
			e.Event, e.Outcome, e.Detail = journal.BreakEnded, b.Outcome, b.Detail
		}
		m.journaled(rec.Break(b.Lock, e))
	}
}

// journaled counts what the journal did not take.
func (m *Metrics) journaled(err error) {
	if err != nil {
		m.lostEntries.Add(1)
	}
}

// record tells journal and hooks of a verdict.
func (g *Guard) record(v *locksmith.Verdict) {
	err := g.cfg.Journal.Observe(v)
	g.metrics.journaled(err)
	if failed := err != nil; failed != g.journalFails {
		g.journalFails = failed
		if failed {
			g.log.Error("the journal cannot be written", "error", err)
		} else {
			g.log.Info("the journal is written again")
		}
	}
	if g.cfg.Hooks == nil {
		return
	}
	e := hooks.Event{Lock: v.Snapshot.Name, Key: v.Snapshot.Key, State: v.State}
	if v.State == locksmith.Hot || v.State == locksmith.Unknown {
		e.Session, e.Token = v.Snapshot.SessionID(), v.Snapshot.Index()
		e.Policy, e.Rule = v.Policy.Name, v.Judgement.Rule.Name
		if e.Reason = v.Judgement.Result.Reason; v.State == locksmith.Unknown {
			e.Reason = v.Judgement.Result.Why
		}
		if h := v.Snapshot.Holder; h != nil {
			e.Holder = hostPID(h.Host, int64(h.PID))
		}
	}
	g.cfg.Hooks.Seen(e)
}

// unrecord forgets a lock that is not watched any more.
func (g *Guard) unrecord(l *lock) {
	g.cfg.Journal.Forget(l.key)
	if l.snap != nil {
		g.cfg.Hooks.Seen(hooks.Event{Lock: l.snap.Name, Key: l.key, State: locksmith.Free})
	}
}

// ledBy tells of the begin or the end of a term of this locksmith.
func (g *Guard) ledBy(hold *locksmith.Hold, gained bool, why error) {
	l := journal.Leader{Gained: gained, Lock: LeaderLock, Token: hold.Token()}
	if why != nil {
		l.Why = printable(why.Error())
	}
	g.metrics.journaled(g.cfg.Journal.Leader(l))
	if gained {
		g.cfg.Hooks.Notify(hooks.Event{Kind: hooks.Leader, Lock: LeaderLock, Token: hold.Token(), Session: hold.Session(), By: self()})
	}
}

// trouble counts and tells of an error of Consul.
func (g *Guard) trouble(what string, err error) {
	if _, end := errors.AsType[signals.Error](err); end || errors.Is(err, context.Canceled) {
		return
	}
	g.metrics.errors.WithLabelValues(what).Inc()
	g.metrics.journaled(g.cfg.Journal.Error("", what, err))
	g.log.Warn("trouble with Consul", "what", what, "error", err)
}

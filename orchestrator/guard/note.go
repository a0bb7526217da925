package guard

import (
	"time"

	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// doubtFor is how long a lock is UNKNOWN before anybody is told. Many are for a moment
// at their beginning: the agent of the holder's host has not said yet that it lives,
// or the rollout's first record is not written.
const doubtFor = 5 * time.Second

// note keeps what is new in a verdict and tells of it.
func (g *Guard) note(l *lock, v *locksmith.Verdict) {
	policy, rule, reason := "", "", ""
	if v.Policy != nil {
		policy = v.Policy.Name
	}
	if r := v.Judgement.Result; r != nil {
		rule, reason = r.Rule.Name, r.Reason
		if v.State == locksmith.Unknown && r.Why != "" {
			reason = r.Why
		}
	}
	if l.state == v.State && l.rule == rule && l.policy == policy {
		l.reason = reason
		return
	}
	before := l.state
	l.state, l.policy, l.rule, l.reason = v.State, policy, rule, reason
	if before != v.State {
		l.since = v.At
		g.board.change(v.Snapshot.Name, before, v.State)
		if before != "" || v.State == locksmith.Hot {
			g.metrics.changes.WithLabelValues(v.State).Inc()
		}
	}
	if v.State == locksmith.Unknown {
		if before != v.State {
			l.doubt, l.shown = v.At.Add(doubtFor), before
		}
		return
	}
	if !l.doubt.IsZero() {
		l.doubt, before = time.Time{}, l.shown
	}
	switch {
	case v.State == locksmith.Hot:
		g.log.Warn("lock is HOT", "lock", printable(v.Snapshot.Name), "token", v.Snapshot.Index(), "rule", rule, "policy", policy, "reason", reason)
	case before != "" && before != v.State:
		g.log.Info("lock is "+v.State, "lock", printable(v.Snapshot.Name), "token", v.Snapshot.Index(), "was", before, "rule", rule, "reason", reason)
	}
}

// doubts tells that a lock is UNKNOWN once it has been for a while; before that it
// returns when that will be.
func (g *Guard) doubts(l *lock, now time.Time) time.Time {
	if l.doubt.IsZero() || now.Before(l.doubt) {
		return l.doubt
	}
	l.doubt = time.Time{}
	g.log.Warn("lock is UNKNOWN: it is not broken on unknown evidence", "lock", printable(l.snap.Name), "token", l.snap.Index(), "rule", l.rule, "policy", l.policy, "reason", l.reason)
	return time.Time{}
}

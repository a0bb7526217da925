package evidence

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

// A one-shot command has not watched the cluster, and takes what the locksmith
// that leads has seen. No clock of another machine enters: what is taken is the
// record of a locksmith that leads now, writes at every change, and passed its
// check within the check's TTL. It may so be late by that TTL and one look, some
// 15 s, and who leads Consul is asked anew. Ages in it are lower bounds.

// LeaderLock is the lock that the one locksmith which acts holds.
const LeaderLock = "aimlock.locksmith"

// clusterObserver is the last part of the key under observed/ where the leading
// locksmith writes what it saw of the cluster. No Consul node is called so.
const clusterObserver = "cluster@locksmith"

// ClusterKey is where the leading locksmith writes what it saw of the cluster.
func ClusterKey(p keys.Prefix) string { return p.Observed(LeaderLock, clusterObserver) }

// Seen is what cl knows now, in the form in which others take it.
func (cl *Cluster) Seen(now time.Time) records.ClusterSeen {
	v := cl.view(now)
	out := records.ClusterSeen{Leader: v.leader, Why: v.why, Lost: v.lost, LostWhole: v.lostWhole, LostWhy: v.lostWhy}
	if v.leader == "" && out.Why == "" {
		out.Why = noLeader
	}
	if out.Why == "" {
		age := v.watched
		if v.changed {
			age = v.changedAgo
		}
		out.LeaderAge, out.LeaderChanged = math.Floor(age.Seconds()), v.changed
	}
	return out
}

// ClusterDue reports whether what is known now is to be written, sinceWrite after
// old was: at once where the leader changed, more sessions are lost, or something
// is not known any more; a while later where fewer are; and when an age has
// doubled.
func ClusterDue(old *records.ClusterSeen, now records.ClusterSeen, sinceWrite time.Duration) bool {
	if old == nil {
		return true
	}
	grown := now.LeaderAge >= scribeFrom.Seconds() && now.LeaderAge >= 2*old.LeaderAge
	changed := now.Leader != old.Leader || now.Why != old.Why || now.LostWhy != old.LostWhy || now.LostWhole != old.LostWhole ||
		now.LeaderChanged != old.LeaderChanged || now.LeaderAge < old.LeaderAge
	return grown || changed || now.Lost >= 2*old.Lost+1 || now.Lost != old.Lost && sinceWrite >= lostLeast
}

// lostLeast is the least time between two writes because fewer, or some more,
// sessions are lost.
const lostLeast = 5 * time.Second

// lent is what a locksmith has seen, and until when that is of use.
type lent struct {
	at   time.Time
	why  string // why there is nothing; empty if there is
	from string
	seen records.ClusterSeen
	// leader is who leads Consul by its own word.
	leader    string
	leaderWhy string
}

const (
	// lentFor is for how long what was taken may be judged by, and lentAgain
	// when it is read again.
	lentFor   = 5 * time.Second
	lentAgain = 2 * time.Second
)

// NewCluster makes a memory that watches nothing: it knows what is borrowed.
func NewCluster() *Cluster { return &Cluster{} }

// wants reports whether there is anything to borrow for.
func (cl *Cluster) wants(now time.Time) bool {
	v := cl.view(now)
	if v.changed && v.lostWhole {
		return false
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.lent == nil || now.Sub(cl.lent.at) >= lentAgain
}

// Borrow lets cl know what the leading locksmith has seen of the cluster, as far
// as it does not know better. It fails quietly: then the facts say why.
func (r *Reader) Borrow(ctx context.Context, cl *Cluster) {
	if !cl.wants(time.Now()) {
		return
	}
	l := r.borrow(ctx)
	l.at = time.Now()
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.lent = l
}

func (r *Reader) borrow(ctx context.Context) *lent {
	l := &lent{}
	leader, err := consulkv.Retry(ctx, r.Consul, "read the cluster's leader", func(ctx context.Context) (string, error) {
		return r.Consul.API().Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx))
	})
	switch l.leader = leader; {
	case err != nil:
		l.leaderWhy = err.Error()
	case leader == "":
		l.leaderWhy = noLeader
	}
	s, err := r.Read(ctx, LeaderLock)
	if err != nil {
		l.why = err.Error()
		return l
	}
	id, check := s.checkOf()
	switch {
	case !s.Held():
		l.why = "no locksmith leads here that would have watched the cluster"
		return l
	case s.Holder == nil || s.Holder.Tool != ToolAimlock:
		l.why = "who holds " + s.Key + " is no locksmith"
		return l
	case id == "" || check == nil:
		l.why = "the leading locksmith has no check that would show whether it is at work"
		return l
	case check.Status != api.HealthPassing:
		l.why = "the leading locksmith is not at work: its check is " + shown(check.Status)
		return l
	}
	l.from = "locksmith@" + shown(s.Holder.Host)
	// After the lock: a record of this very term is of the one that was just seen
	// to be at work.
	key := ClusterKey(r.Keys)
	p, err := r.Consul.Get(ctx, key)
	if err != nil {
		l.why = err.Error()
		return l
	}
	if p == nil {
		l.why = "the leading locksmith has not said yet what it saw of the cluster"
		return l
	}
	var o records.Observed
	switch err := records.Decode(key, p.Value, &o); {
	case err != nil:
		l.why = err.Error()
	case o.Kind != records.ObservedCluster || o.Cluster == nil:
		l.why = key + " is not a record of the cluster"
	case o.Session != s.SessionID() || o.Token != s.Index():
		l.why = "the leading locksmith has not said yet what it saw of the cluster"
	default:
		l.seen = *o.Cluster
	}
	if s := l.seen; l.why == "" && (s.LeaderAge < 0 || s.LeaderAge > maxAge.Seconds() || s.Lost < 0) {
		l.why = key + " is no record of the cluster that can be"
	}
	return l
}

// borrowed completes a view by what is lent.
func (v *view) borrowed(l *lent, now time.Time) {
	if l == nil || now.Sub(l.at) > lentFor {
		return
	}
	if v.leader == "" && v.why == notWatched {
		if v.leader = l.leader; v.leader == "" {
			v.leaderWhy = l.leaderWhy
		}
	}
	age := time.Duration(l.seen.LeaderAge * float64(time.Second))
	switch blind := v.why == notWatched; {
	case v.changed:
	case l.why != "" || l.seen.Why != "":
		if blind {
			v.ageWhy = cmp.Or(l.why, l.seen.Why)
		}
	case l.leader != l.seen.Leader:
		if blind {
			v.ageWhy = fmt.Sprintf("%s leads now, and %s has not written that yet", shown(cmp.Or(l.leader, "nobody")), l.from)
		}
	case blind || age > v.watched:
		v.watched, v.lentAge, v.from = age, true, l.from
		v.ageWhy = "by the record of " + l.from + ", which tells the least age"
	}
	switch why := cmp.Or(l.why, l.seen.LostWhy); {
	case v.lostWhole:
	case why != "":
		if v.lostWhy == notWatched {
			v.lostWhy = why
		}
	default:
		v.lost, v.lostWhole, v.lostWhy, v.lostFrom = max(v.lost, l.seen.Lost), l.seen.LostWhole, "", l.from
	}
}

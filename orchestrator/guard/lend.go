package guard

import (
	"context"
	"time"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator/evidence"
	"github.com/aim-control/aimlock/orchestrator/locksmith"
)

// lendEvery is how often is looked at whether others must be told of the cluster.
const lendEvery = time.Second

// lends writes what this locksmith sees of the cluster for commands that have not
// watched it, at changes only, under the hold of its term.
func (g *Guard) lends(ctx context.Context, hold *locksmith.Hold, r *evidence.Reader, cl *evidence.Cluster) {
	key := evidence.ClusterKey(r.Keys)
	var last *records.ClusterSeen
	var at time.Time
	for {
		if seen := cl.Seen(time.Now()); evidence.ClusterDue(last, seen, time.Since(at)) {
			_, err := hold.Txn(ctx, consulkv.Set(key, records.Encode(&records.Observed{
				Version: records.Version, Kind: records.ObservedCluster, Observer: "locksmith@" + r.Self.Host, Lock: LeaderLock,
				Session: hold.Session(), Token: hold.Token(), At: time.Now().UTC(), Cluster: &seen,
			})))
			switch {
			case err == nil:
				last, at = &seen, time.Now()
			case ctx.Err() == nil:
				g.trouble("cluster", err)
			}
		}
		if !pause(ctx, lendEvery) {
			return
		}
	}
}

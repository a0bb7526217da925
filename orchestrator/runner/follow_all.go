package runner

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
)

// followAllEvery is the least time between two readings of all rollouts: one that
// runs writes its header every second.
const followAllEvery = time.Second

// FollowAll tells which rollouts there are, first and when anything about one
// changed, by one blocking query, until ctx ends. Who waits for a turn is read
// with them, and so at each minute at least. failed is told of what cannot be
// read, and of nil when it can again. Both are called from one goroutine.
func (r *Runner) FollowAll(ctx context.Context, f Filter, tell func(*Listing), failed func(error)) {
	prefix := r.keys.Rollouts()
	w := consulkv.NewWatcher(r.consul, consulkv.WatchOptions{Name: prefix, MinInterval: followAllEvery},
		func(q *api.QueryOptions) (struct{}, *api.QueryMeta, error) {
			// The names alone: plans and logs are not read to see that one changed.
			_, meta, err := r.consul.API().KV().Keys(prefix, "/", q)
			return struct{}{}, meta, err
		})
	bad := false
	for ctx.Err() == nil {
		wctx, cancel := context.WithTimeout(ctx, followAllWait)
		_, err := w.Next(wctx)
		if err != nil && wctx.Err() != nil && ctx.Err() == nil {
			err = nil // nothing changed; who waits may have
		}
		cancel()
		var list *Listing
		if err == nil {
			list, err = r.List(ctx, f)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			bad = true
			failed(err)
			pause(ctx, followAllEvery)
			continue
		case bad:
			bad = false
			failed(nil)
		}
		tell(list)
	}
}

// followAllWait is how long FollowAll waits for a change at most.
const followAllWait = 50 * time.Second

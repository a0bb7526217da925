package agent

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/fate"
	"github.com/aim-control/aimlock/internal/keys"
	"github.com/aim-control/aimlock/internal/records"
)

const (
	// blockFor is how long a query is held by the server without a change.
	blockFor = 2 * time.Minute
	// minDiscover is the least time between two listings of configs/.
	minDiscover = 500 * time.Millisecond
	// A query on a key that does not exist is woken by the server whenever any
	// key was written since, so it is repeated after a pause that grows from
	// firstMissing to maxMissing, and starts again with a new revision.
	firstMissing = 100 * time.Millisecond
	maxMissing   = time.Second
	// sweepEvery is about how often the names under desired/ are listed, for
	// configs that have no content.
	sweepEvery = 10 * time.Minute
	// manyConfigs is at how many configs an agent warns of Consul's limit of
	// connections. One query for all of them cannot be: the keys of a node have
	// no prefix in common, since the config's name stands before the node's.
	manyConfigs = 150
)

// discover learns of configs from the names under configs/: that list grows
// with configs and revisions, and not with the fleet, and a revision is
// published there before it is assigned to any node.
func (a *Agent) discover(ctx context.Context, wg *sync.WaitGroup) {
	root := a.cfg.Prefix.ConfigsRoot()
	w := consulkv.NewWatcher(a.cfg.Consul, consulkv.WatchOptions{Name: root, MinInterval: minDiscover, Wait: blockFor},
		func(q *api.QueryOptions) ([]string, *api.QueryMeta, error) {
			// Configs of other nodes are nothing that this one's token must read.
			folders, meta, err := a.cfg.Consul.API().KV().Keys(root, "/", q.WithContext(consulkv.Part(q.Context())))
			if err == nil && len(folders) == 0 && meta.ResultsFilteredByACLs {
				a.trouble.hidden(root)
			}
			return folders, meta, err
		})
	b := newBackOff(ctx, "discover")
	for ctx.Err() == nil {
		folders, err := w.Next(ctx)
		if err != nil {
			a.trouble.is(ctx, err)
			sleep(ctx, b.NextBackOff(), nil)
			continue
		}
		a.trouble.over()
		b.Reset()
		a.learn(ctx, wg, root, folders)
		a.ring()
	}
}

// sweepDesired finds what discover cannot: entries of a config without content.
func (a *Agent) sweepDesired(ctx context.Context, wg *sync.WaitGroup) {
	root := a.cfg.Prefix.DesiredRoot()
	wait := fate.N(ctx, "sweep desired", 3*time.Second)
	for sleep(ctx, wait, nil) {
		folders, err := a.cfg.Consul.Keys(consulkv.Part(ctx), root, "/")
		if err != nil {
			a.trouble.is(ctx, err)
		} else {
			a.learn(ctx, wg, root, folders)
		}
		wait = sweepEvery/2 + fate.N(ctx, "sweep desired", sweepEvery)
	}
}

func (a *Agent) learn(ctx context.Context, wg *sync.WaitGroup, root string, folders []string) {
	for _, f := range folders {
		seg, ok := strings.CutSuffix(strings.TrimPrefix(f, root), "/")
		if !ok || keys.CheckName("config", keys.Unescape(seg)) != nil {
			continue
		}
		a.ensure(ctx, wg, keys.Unescape(seg))
	}
}

// ensure starts following config unless it is followed already.
func (a *Agent) ensure(ctx context.Context, wg *sync.WaitGroup, config string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bells[config] != nil {
		return
	}
	bell := make(chan struct{}, 1)
	a.bells[config] = bell
	if len(a.bells) == manyConfigs {
		a.cfg.Log.Warn("many configs: each is followed by a connection to Consul of its own, and Consul takes 200 from one address "+
			"unless limits.http_max_conns_per_client is raised; agents behind the same address share them", "configs", manyConfigs)
	}
	wg.Go(func() { a.follow(ctx, wg, config, bell) })
}

// ring tells all followers that a revision may be on its way.
func (a *Agent) ring() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.bells {
		select {
		case b <- struct{}{}:
		default:
		}
	}
}

// follow carries out each entry for this node in one config. A key that is
// deleted changes nothing: the node keeps what it has.
func (a *Agent) follow(ctx context.Context, wg *sync.WaitGroup, config string, bell <-chan struct{}) {
	a.conclude(ctx, config)
	key := a.cfg.Prefix.Desired(config, a.cfg.Node)
	watch := func() *consulkv.Watcher[*api.KVPair] {
		return consulkv.NewWatcher(a.cfg.Consul, consulkv.WatchOptions{Name: key, Wait: blockFor},
			func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) {
				return a.cfg.Consul.API().KV().Get(key, q)
			})
	}
	w, b, pause := watch(), newBackOff(ctx, "follow "+config), firstMissing
	missed := false
	for ctx.Err() == nil {
		asked := time.Now()
		kv, err := w.Next(ctx)
		switch {
		case err != nil:
			a.trouble.is(ctx, err)
			sleep(ctx, b.NextBackOff(), nil)
			continue
		case kv == nil && time.Since(asked) < blockFor/2:
			a.trouble.over()
			if !missed {
				missed = true
				a.missing(config)
			}
			if sleep(ctx, pause+fate.N(ctx, "missing "+config, pause/4), bell) {
				pause = min(2*pause, maxMissing)
			} else {
				pause = firstMissing
			}
			continue
		case kv == nil:
			continue
		}
		a.trouble.over()
		pause, missed = firstMissing, false
		if a.handle(ctx, wg, config, kv) {
			b.Reset()
			continue
		}
		// Not answered: read it again, since it may be another by then.
		sleep(ctx, b.NextBackOff(), nil)
		w = watch()
	}
}

// conclude ends what a crash left unfinished. It needs no Consul, unless the
// state is lost.
func (a *Agent) conclude(ctx context.Context, config string) {
	out, err := a.fence.finish(ctx, config)
	if err != nil {
		a.unanswered(ctx, config, err)
		return
	}
	if out.Report != nil {
		a.reports.set(config, out.Report)
	}
}

// missing says again what this node has of a config whose entry is not there:
// if it was carried out once, Consul was restored to an older state, or somebody
// deleted the key, and whoever gives orders next must know how far the node is.
func (a *Agent) missing(config string) {
	st, err := loadState(configDir(a.cfg.StateDir, config), config)
	if err == nil && st.Phase == phaseDone && st.Report != nil {
		a.reports.again(config, st.Report)
	}
}

// handle carries out one entry and reports whether it is answered.
func (a *Agent) handle(ctx context.Context, wg *sync.WaitGroup, config string, kv *api.KVPair) bool {
	var d records.Desired
	if err := records.Decode(kv.Key, kv.Value, &d); err != nil {
		// Nobody can answer it; what replaces it will wake the watcher.
		a.cfg.Log.Error("entry cannot be read: nothing is changed", "config", config, "error", err)
		return true
	}
	if d.Order.IsZero() {
		a.cfg.Log.Error("entry has no order: nothing is changed", "config", config, "key", kv.Key)
		return true
	}
	if err := checkGroup(config, d.Configs); err != nil {
		a.cfg.Log.Error("entry cannot be carried out: nothing is changed", "config", config, "error", err)
		return true
	}
	if together(&d) {
		return a.handleGroup(ctx, wg, config, &d)
	}
	out, err := a.fence.apply(ctx, config, &d, func(ctx context.Context) ([]byte, error) {
		return fetchChunks(ctx, a.cfg.Consul, a.cfg.Prefix, config, &d)
	})
	if err != nil {
		a.unanswered(ctx, config, err)
		return false
	}
	a.report(config, out)
	return true
}

func (a *Agent) unanswered(ctx context.Context, config string, err error) {
	if ctx.Err() != nil {
		return
	}
	if _, ok := errors.AsType[*consulkv.Error](err); ok {
		a.trouble.is(ctx, err)
		return
	}
	a.trouble.other(config, err)
}

// sleep waits for d; it returns false early, when ctx ends or bell rings.
func sleep(ctx context.Context, d time.Duration, bell <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		fate.Turn(ctx, "slept")
		return ctx.Err() == nil
	case <-bell:
		return false
	case <-ctx.Done():
		return false
	}
}

// newBackOff is the pause between operations that failed after their own
// tries: from 1 s to 30 s, spread by half.
func newBackOff(ctx context.Context, what string) fate.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval, b.RandomizationFactor = time.Second, 2, 30*time.Second, 0.5
	return fate.Spread(ctx, what, b)
}

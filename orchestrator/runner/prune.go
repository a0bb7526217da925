package runner

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/aim-control/aimlock/internal/consulkv"
	"github.com/aim-control/aimlock/internal/records"
	"github.com/aim-control/aimlock/orchestrator"
)

// Retention says how long rollouts are kept that have ended. It bounds what a
// start has to read. What is unfinished is always kept, and of each config the
// newest rollout with all that it follows: these say what the fleet shall have.
type Retention struct {
	// Last is how many of each name are kept however old they are, with their
	// plans; 0: DefaultKeepLast.
	Last int
	// Age is how long more of them are kept, without their plans, and Most how
	// many at most; 0: DefaultKeepAge and DefaultKeepMost.
	Age  time.Duration
	Most int
}

// Defaults of Retention.
const (
	DefaultKeepLast = 20
	DefaultKeepAge  = 90 * 24 * time.Hour
	DefaultKeepMost = 100
)

// maxPruned bounds one Prune, so that it is in nobody's way.
const maxPruned = 200

// Pruned counts what Prune has deleted.
type Pruned struct {
	Rollouts int `json:"rollouts"`
	Plans    int `json:"plans"`
	// More is set where there may be more to delete: call it again.
	More bool `json:"more"`
}

// Prune deletes old rollouts that have ended: plans first, later all of a
// rollout. Ages are by the wall clock of this machine, and decide about history
// alone. It needs no lock: a rollout that has ended does not change any more, and
// each delete compares, so any number of pruners may run at once.
func (r *Runner) Prune(ctx context.Context, keep Retention) (Pruned, error) {
	if keep.Last <= 0 {
		keep.Last = DefaultKeepLast
	}
	if keep.Age <= 0 {
		keep.Age = DefaultKeepAge
	}
	if keep.Most <= 0 {
		keep.Most = DefaultKeepMost
	}
	keep.Most = max(keep.Most, keep.Last)
	var out Pruned
	heads, err := r.Headers(ctx)
	if err != nil {
		return out, err
	}
	used, err := r.inUse(ctx, heads)
	if err != nil {
		return out, err
	}
	now, nth := time.Now(), map[string]int{}
	for _, h := range heads { // the newest first
		if h.FinishedAt == nil {
			continue
		}
		i := nth[h.Name]
		nth[h.Name]++
		if i < keep.Last || used[h.ID] {
			continue
		}
		whole := i >= keep.Most || now.Sub(*h.FinishedAt) > keep.Age
		if !whole && (h.PlanDropped || h.PlanChunks == 0) {
			continue
		}
		if out.Rollouts+out.Plans >= maxPruned {
			out.More = true
			return out, nil
		}
		done, err := r.prune(ctx, h.ID, whole)
		switch {
		case err != nil:
			return out, err
		case done && whole:
			out.Rollouts++
		case done:
			out.Plans++
		}
	}
	return out, nil
}

// inUse are the rollouts that must stay: of each config the newest that began,
// with those that it follows, whose plans say who is a late joiner; and those
// that a lock names which is still held.
func (r *Runner) inUse(ctx context.Context, heads []*orchestrator.Header) (map[string]bool, error) {
	used, newest := map[string]bool{}, map[string]bool{}
	byID := make(map[string]*orchestrator.Header, len(heads))
	for _, h := range heads {
		byID[h.ID] = h
	}
	for _, h := range heads { // the newest first
		if neverBegan(h) {
			continue
		}
		for _, c := range h.Configs {
			if newest[c.Name] {
				continue
			}
			newest[c.Name] = true
			for x := h; x != nil && !used[x.ID]; x = byID[before(x)] {
				used[x.ID] = true
			}
		}
	}
	for name := range newest {
		p, err := r.consul.Get(ctx, r.keys.Lock(name))
		if err != nil {
			return nil, err
		}
		var rec records.Holder
		if p != nil && p.Session != "" && records.Decode(p.Key, p.Value, &rec) == nil {
			used[rec.RolloutID] = true
		}
	}
	return used, nil
}

// prune deletes the plan of a rollout that has ended, or all of it. It returns
// false where somebody else was faster.
func (r *Runner) prune(ctx context.Context, id string, whole bool) (bool, error) {
	key := r.keys.Rollout(id)
	p, err := r.consul.Get(ctx, key)
	if err != nil || p == nil {
		return false, err
	}
	var h orchestrator.Header
	if err := records.Decode(key, p.Value, &h); err != nil || h.FinishedAt == nil {
		return false, err
	}
	// The folders have a slash at their end: no other rollout's begins so.
	ops := []consulkv.Op{consulkv.DeleteCAS(key, p.ModifyIndex), deleteTree(key + "/")}
	if !whole {
		h.PlanDropped = true
		ops = []consulkv.Op{consulkv.CAS(key, records.Encode(&h), p.ModifyIndex), deleteTree(key + "/plan/")}
	}
	_, err = r.consul.Txn(ctx, ops...)
	if _, refused := errors.AsType[*consulkv.Refused](err); refused {
		return false, nil
	}
	return err == nil, err
}

func deleteTree(prefix string) consulkv.Op {
	return &api.KVTxnOp{Verb: api.KVDeleteTree, Key: prefix}
}

// tidy prunes after a rollout has ended. What goes wrong is the next one's.
func (r *Runner) tidy(ctx context.Context) {
	if out, err := r.Prune(ctx, Retention{}); err != nil && ctx.Err() == nil {
		r.log.Warn("deleting old rollouts", "error", err)
	} else if out.Rollouts+out.Plans > 0 {
		r.log.Info("deleted old rollouts", "rollouts", out.Rollouts, "plans", out.Plans)
	}
}
